package netsetup_test

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

// emptyHeader is what precedes each frame on a tap as it is opened: an empty
// struct virtio_net_hdr (linux/virtio_net.h).
var emptyHeader = make([]byte, 10)

// learning is a child with a Learner, and what a guest there would say.
type learning struct {
	*netsetup.Learner
	lab     *nettest.Lab
	ns      *netsetup.Namespace
	child   netsetup.Child
	tap     *os.File
	changes atomic.Int32
}

func learn(t testing.TB, lab *nettest.Lab, mode configs.Mode, seed ...netsetup.Address) *learning {
	t.Helper()
	l := &learning{lab: lab, ns: newNamespace(t), child: testChild(mode, 1)}
	if mode == configs.ModeSource {
		l.child.Sources = append(l.child.Sources, lab.Outside.MAC)
	}
	must(t, l.ns.Quiet())
	must(t, create(t, lab, l.ns, l.child))
	l.tap = openTaps(t, l.ns, l.child)[0]
	var err error
	l.Learner, err = l.ns.Learn(l.child, seed, func() { l.changes.Add(1) })
	must(t, err)
	t.Cleanup(func() { l.Close() })
	must(t, l.ns.Up(l.child))
	return l
}

// say sends the guest's frames.
func (l *learning) say(t testing.TB, frames ...[]byte) {
	t.Helper()
	for _, f := range frames {
		_, err := l.tap.Write(append(emptyHeader, f...))
		must(t, err)
	}
}

// hear sends frames to the guest from across the wire.
func (l *learning) hear(t testing.TB, frames ...[]byte) {
	t.Helper()
	for _, f := range frames {
		must(t, l.lab.Outside.Send("wire0", f))
	}
}

// list shows what was learned, an address with its source, and a conflict.
func (l *learning) list() string {
	var list []string
	for _, a := range l.Addresses() {
		s := fmt.Sprintf("%s %s", a.IP, a.Source)
		if a.Conflict != "" {
			s += " against " + a.Conflict
		}
		list = append(list, s)
	}
	return strings.Join(list, ", ")
}

// want waits for what list shows and returns how long that took.
func (l *learning) want(t testing.TB, want string, limit time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	for l.list() != want {
		if time.Since(start) > limit {
			t.Fatalf("%q, want %q", l.list(), want)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(start)
}

// goal is within what time of the first frame an address is listed.
const goal = 2 * time.Second

func TestLearnInEveryMode(t *testing.T) {
	for _, mode := range []configs.Mode{configs.ModePrivate, configs.ModeVEPA, configs.ModeBridge, configs.ModePassthru, configs.ModeSource} {
		t.Run(string(mode), func(t *testing.T) {
			lab := nettest.New(t)
			before := lab.Snapshot(t)
			l := learn(t, lab, mode)
			guest, outside := l.child.MAC, lab.Outside.MAC

			// A tagged frame, a probe and another's claim tell nothing of the guest.
			l.say(t, tagged(netsetup.ARPFrame(guest, 1, "192.0.2.66", "192.0.2.1")), netsetup.ARPFrame(guest, 1, "", "192.0.2.67"),
				netsetup.ARPFrame(mac(0x99), 1, "192.0.2.68", "192.0.2.1"))
			l.hear(t, tagged(netsetup.ARPFrame(outside, 1, "192.0.2.69", "192.0.2.10")), netsetup.ARPFrame(outside, 1, "192.0.2.1", "192.0.2.10"))

			l.say(t, netsetup.ARPFrame(guest, 1, "192.0.2.10", "192.0.2.1"))
			t.Log("ARP:", l.want(t, "192.0.2.10 arp", goal))
			l.say(t, netsetup.NDFrame(guest, 135, 0, "", "fe80::10"), netsetup.NDFrame(guest, 135, 0, "2001:db8::10", "2001:db8::1"))
			l.want(t, "192.0.2.10 arp, 2001:db8::10 nd, fe80::10 nd", goal)

			l.say(t, netsetup.DHCP4{ID: 7, Kind: 3, Client: guest, Requested: "192.0.2.11"}.Frame(guest),
				netsetup.DHCP6{ID: 8, Kind: 3, Source: "fe80::10"}.Frame(guest))
			l.hear(t, netsetup.DHCP4{ID: 7, Kind: 5, Client: guest, Source: "192.0.2.1", YIAddr: "192.0.2.11", Lease: 600}.Frame(outside),
				netsetup.DHCP6{ID: 8, Kind: 7, Source: "fe80::1", Addresses: map[string]uint32{"2001:db8::11": 600}}.Frame(outside))
			l.want(t, "192.0.2.10 arp, 192.0.2.11 dhcp, 2001:db8::10 nd, 2001:db8::11 dhcp, fe80::10 nd", goal)

			l.hear(t, netsetup.ARPFrame(outside, 1, "192.0.2.10", "192.0.2.10"), netsetup.NDFrame(outside, 136, 0x20, "fe80::1", "2001:db8::10"))
			against := " against " + outside.String()
			l.want(t, "192.0.2.10 arp"+against+", 192.0.2.11 dhcp, 2001:db8::10 nd"+against+", 2001:db8::11 dhcp, fe80::10 nd", goal)
			for end := time.Now().Add(goal); l.changes.Load() < 2 && time.Now().Before(end); {
				time.Sleep(5 * time.Millisecond)
			}
			if n := l.changes.Load(); n < 2 || n > 5 {
				t.Errorf("told of %d changes", n)
			}

			l.Forget()
			l.want(t, "", 0)
			must(t, l.Close())
			must(t, l.Close())
			must(t, l.tap.Close())
			must(t, l.ns.Close())
			before.Check(t)
		})
	}
}

// tagged puts a frame on VLAN 5.
func tagged(frame []byte) []byte {
	return append(append(append([]byte(nil), frame[:12]...), 0x81, 0x00, 0, 5), frame[12:]...)
}
