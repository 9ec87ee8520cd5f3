package netsetup_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

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
	c := testChild(mode, 1)
	if mode == configs.ModeSource {
		c.Sources = append(c.Sources, lab.Outside.MAC)
	}
	return learnOn(t, lab, c, seed...)
}

func learnOn(t testing.TB, lab *nettest.Lab, c netsetup.Child, seed ...netsetup.Address) *learning {
	t.Helper()
	l := &learning{lab: lab, ns: newNamespace(t), child: c}
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

// Children that share their parent's MAC hear each other, and have each its own.
func TestLearnOnIPvtap(t *testing.T) {
	nettest.Kernel(t, "ipvtap")
	lab := nettest.New(t)
	mac, outside := lab.Host.MAC, lab.Outside.MAC
	var guests []*learning
	for n := range byte(2) {
		c := testChild("", int(n)+1)
		c.Kind, c.MAC = configs.KindIPvtap, nil
		c.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 10 + n})}
		guests = append(guests, learnOn(t, lab, c))
	}
	guests[0].say(t, netsetup.ARPFrame(mac, 1, "192.0.2.10", "192.0.2.10"), netsetup.NDFrame(mac, 135, 0, "", "fe80::10"))
	guests[1].say(t, netsetup.ARPFrame(mac, 1, "192.0.2.11", "192.0.2.11"), netsetup.NDFrame(mac, 135, 0, "", "fe80::11"),
		netsetup.DHCP4{ID: 9, Kind: 3, Client: mac, Requested: "192.0.2.12"}.Frame(mac))
	guests[0].want(t, "192.0.2.10 arp, fe80::10 nd", goal)
	guests[1].want(t, "192.0.2.11 arp, fe80::11 nd", goal)
	guests[0].hear(t, netsetup.DHCP4{ID: 9, Kind: 5, Client: mac, Source: "192.0.2.1", YIAddr: "192.0.2.12", Lease: 600}.Frame(outside),
		netsetup.ARPFrame(outside, 1, "192.0.2.10", "192.0.2.10"))
	guests[1].want(t, "192.0.2.11 arp, 192.0.2.12 dhcp, fe80::11 nd", goal)
	guests[0].want(t, "192.0.2.10 arp against "+outside.String()+", fe80::10 nd", goal)
}

// tagged puts a frame on VLAN 5.
func tagged(frame []byte) []byte { return tag(frame, 5) }

// tag puts 802.1Q's tag into a frame.
func tag(frame []byte, vlan byte) []byte {
	return slices.Concat(frame[:12], []byte{0x81, 0x00, 0, vlan}, frame[12:])
}

// What the kernel's filter lets through, where that is not plain: a tag is
// beside the frame when it came in.
func TestLearnFilter(t *testing.T) {
	lab := nettest.New(t)
	l := learn(t, lab, configs.ModeBridge)
	guest, outside := l.child.MAC, lab.Outside.MAC
	claim := func(ip string) []byte { return netsetup.ARPFrame(outside, 1, ip, "192.0.2.1") }

	l.say(t, netsetup.ARPFrame(guest, 1, "192.0.2.10", "192.0.2.1"), netsetup.ARPFrame(guest, 1, "192.0.2.11", "192.0.2.1"))
	l.hear(t, tag(claim("192.0.2.10"), 5), tag(claim("192.0.2.11"), 0))
	l.want(t, "192.0.2.10 arp, 192.0.2.11 arp against "+outside.String(), goal)
	l.Forget()

	inform := netsetup.DHCP4{Kind: 8, Client: guest, Source: "192.0.2.12", CIAddr: "192.0.2.12"}.Frame(guest)
	fragment := slices.Clone(inform)
	fragment[14+7] = 1
	options := slices.Concat(inform[:34], []byte{1, 1, 1, 1}, inform[34:]) // no-operation
	options[14], options[14+3] = 0x46, options[14+3]+4
	l.say(t, fragment, netsetup.NDFrame(guest, 137, 0, "fe80::12", ""))
	time.Sleep(3 * pace)
	l.want(t, "", 0)
	l.say(t, options, netsetup.NDFrame(guest, 133, 0, "fe80::13", ""), netsetup.NDFrame(guest, 134, 0, "fe80::14", ""))
	l.want(t, "192.0.2.12 dhcp, fe80::13 nd, fe80::14 nd", goal)
}

// What a guest may not send is not learned: it is dropped before it is seen.
func TestLearnOnPinnedChild(t *testing.T) {
	lab := nettest.New(t)
	l := learn(t, lab, configs.ModeBridge)
	l.child.Pin, l.child.Addresses = configs.PinAll, []netip.Addr{netip.MustParseAddr("192.0.2.10")}
	must(t, l.ns.Pin(l.child))
	for _, ip := range []string{"192.0.2.11", "192.0.2.10"} {
		l.say(t, netsetup.ARPFrame(l.child.MAC, 1, ip, "192.0.2.1"))
		time.Sleep(2 * pace)
	}
	l.want(t, "192.0.2.10 arp", goal)
}

// pace is how long a Learner can sleep.
const pace = 100 * time.Millisecond

// An interruption of the link is no end, and neither is that of the child.
func TestLearnAcrossLinkChanges(t *testing.T) {
	lab := nettest.New(t)
	l := learn(t, lab, configs.ModeBridge)
	claim := netsetup.ARPFrame(l.child.MAC, 1, "192.0.2.10", "192.0.2.1")
	setDown := func() {
		must(t, l.ns.Do(func() error {
			link, err := netlink.LinkByName(l.child.Name)
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(link)
		}))
	}
	for range 2 {
		l.say(t, claim)
		l.want(t, "192.0.2.10 arp", goal)
		setDown()
		l.Forget()
		l.want(t, "", 0)
		time.Sleep(2 * pace) // it hears of the end
		must(t, l.ns.Up(l.child))
	}
	l.say(t, claim)
	l.want(t, "192.0.2.10 arp", goal)
	must(t, l.ns.Delete(l.child))
	before := cpuTime(t)
	time.Sleep(5 * pace)
	if spent := cpuTime(t) - before; spent > 2*pace {
		t.Errorf("%v of CPU for a child that is gone", spent)
	}
	l.want(t, "192.0.2.10 arp", 0)
	must(t, l.Close())
}

func TestLearnErrors(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	c := testChild(configs.ModeBridge, 1)
	var typed *netsetup.LinkError
	if l, err := ns.Learn(c, nil, nil); !errors.As(err, &typed) || !errors.Is(err, unix.ENODEV) || l != nil {
		t.Errorf("without a link: %v, %v", l, err)
	}
	must(t, create(t, lab, ns, c))
	c.MAC = c.MAC[:5]
	if l, err := ns.Learn(c, nil, nil); !errors.As(err, &typed) || l != nil {
		t.Errorf("with a short MAC: %v, %v", l, err)
	}
	c.MAC = nil // the link's own
	l, err := ns.Learn(c, nil, nil)
	must(t, err)
	must(t, l.Close())
}

// A seed is there at once, what is over in it goes at once, and so does what was
// known when the guest is reset; changed tells of both, and not after Close.
func TestLearnTells(t *testing.T) {
	lab := nettest.New(t)
	now := time.Now()
	l := learn(t, lab, configs.ModeBridge,
		netsetup.Address{IP: netip.MustParseAddr("192.0.2.10"), Source: netsetup.SourceARP, Seen: now},
		netsetup.Address{IP: netip.MustParseAddr("192.0.2.11"), Source: netsetup.SourceDHCP, Seen: now, Expires: now.Add(-time.Hour)})
	l.want(t, "192.0.2.10 arp", goal)
	told := func(n int32) {
		t.Helper()
		for end := time.Now().Add(goal); l.changes.Load() < n && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		if got := l.changes.Load(); got != n {
			t.Fatalf("told of %d changes, want %d", got, n)
		}
	}
	told(1)
	l.Forget()
	l.SetPaused(true)
	l.SetPaused(false)
	l.SetMAC(mac(0x77))
	l.SetMAC(nil)
	told(2)
	l.say(t, netsetup.ARPFrame(l.child.MAC, 1, "192.0.2.10", "192.0.2.1"), netsetup.ARPFrame(mac(0x77), 1, "192.0.2.12", "192.0.2.1"))
	l.want(t, "192.0.2.12 arp", goal)
	told(3)
	l.say(t, netsetup.ARPFrame(mac(0x77), 1, "192.0.2.13", "192.0.2.1"))
	l.want(t, "192.0.2.12 arp, 192.0.2.13 arp", goal)
	must(t, l.Close()) // less than a second after it told
	time.Sleep(pace)
	told(3)
	l.Forget()
	l.want(t, "", 0)
}

// cpuTime is what this process has used.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var ru unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_SELF, &ru))
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// threadTime is what the calling thread has used.
func threadTime(t testing.TB) time.Duration {
	t.Helper()
	var ru unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_THREAD, &ru))
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// A storm of ARP costs a bounded share of a core, which is told and not judged,
// and what comes after it is learned in time.
func TestLearnInAStorm(t *testing.T) {
	lab := nettest.New(t)
	l := learn(t, lab, configs.ModeBridge)
	var claims [][]byte
	for i := range 1 << 10 {
		ip := fmt.Sprintf("10.0.%d.%d", i>>8, i&0xff)
		// To nobody: who is asked notes who asks, in a table of neighbours that the whole
		// machine shares (net/ipv4/arp.c, gc_thresh3), other tests' networks too.
		claims = append(claims, slices.Concat(emptyHeader, netsetup.ARPFrame(l.child.MAC, 1, ip, "192.0.2.99")))
	}
	runtime.LockOSThread() // for threadTime
	defer runtime.UnlockOSThread()
	storm := func(what string) {
		begin, all, own := time.Now(), cpuTime(t), threadTime(t)
		frames := 0
		for ; time.Since(begin) < time.Second; frames++ {
			_, err := l.tap.Write(claims[frames%len(claims)])
			must(t, err)
		}
		own = threadTime(t) - own
		all = cpuTime(t) - all - own
		t.Logf("%s: %d frames in %v took %v of the guest's thread and %v of all others", what, frames, time.Since(begin), own, all)
	}
	storm("with a Learner")
	if n := l.changes.Load(); n > 3 {
		t.Errorf("told of %d changes in a second", n)
	}
	if n := len(l.Addresses()); n > 64 {
		t.Errorf("%d addresses", n)
	}
	l.Forget()
	last := netsetup.ARPFrame(l.child.MAC, 1, "192.0.2.10", "192.0.2.1")
	for end := time.Now().Add(goal); !strings.Contains(l.list(), "192.0.2.10 arp"); time.Sleep(pace) {
		if time.Now().After(end) {
			t.Fatalf("%q", l.list())
		}
		l.say(t, last)
	}
	must(t, l.Close())
	storm("without")
}

// BenchmarkBulk is what listening costs a guest that sends data: the same frames
// with and without a Learner, in turn. An operation is a frame of 1500 bytes.
func BenchmarkBulk(b *testing.B) {
	lab := nettest.New(b)
	l := learn(b, lab, configs.ModeBridge)
	must(b, l.Close())
	frame := slices.Concat(emptyHeader, lab.Outside.MAC, l.child.MAC, []byte{8, 0, 0x45, 0}, make([]byte, 1498))
	frame[len(emptyHeader)+14+9] = 6 // TCP
	const round = 5000
	send := func() time.Duration {
		begin := time.Now()
		for range round {
			if _, err := l.tap.Write(frame); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(begin)
	}
	var with, without []time.Duration
	for b.Loop() {
		without = append(without, send())
		learner, err := l.ns.Learn(l.child, nil, nil)
		must(b, err)
		with = append(with, send())
		must(b, learner.Close())
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2]) / round
	}
	b.ReportMetric(median(without), "ns/frame-without")
	b.ReportMetric(median(with), "ns/frame-with")
	b.ReportMetric(0, "ns/op")
}
