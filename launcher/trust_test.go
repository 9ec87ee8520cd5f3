package launcher

import (
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup/nettest/wire"
	"vmrun/qmp"
)

// TestTrust has guests change their MAC: one that may not and is pinned, and one
// that may.
func TestTrust(t *testing.T) {
	b := newBench(t)
	const own, other = "02:00:00:00:00:0a", "02:00:00:00:00:1a"
	pinned := b.spec("pinned", "192.0.2.11/24", nic("bridge", `mac = "`+own+`"`, `pin = "mac"`))
	trusted := b.spec("trusted", "192.0.2.12/24", nic("bridge", `trust = "mac"`))
	consoles := b.boot(pinned, trusted)
	events := b.events(pinned)

	capture := b.lab.Outside.Capture(b.lab.Outside.NIC, "as-other")
	b.say(consoles[0], "mac eth0 %s", other)
	b.say(consoles[0], "sendtag eth0 %s as-other %s 10", wire.Broadcast, other)
	events.wait(EventNIC, "refused", 2*time.Second)
	if n := b.observe(pinned).NICs[0]; !strings.Contains(n.Refused, other) || n.MAC != own {
		t.Errorf("status of a guest that set its MAC to %s: MAC %s, refused %q", other, n.MAC, n.Refused)
	}
	if n := capture.Wait(1, 300*time.Millisecond); n.Received() != 0 {
		t.Errorf("%d frames with another MAC arrived", n.Received())
	}
	b.say(consoles[0], "mac eth0 %s", own)
	b.eventually(2*time.Second, "the refusal is over", func() string { return b.observe(pinned).NICs[0].Refused })

	b.say(consoles[1], "mac eth0 %s", other)
	changed := time.Now()
	b.eventually(time.Second, "ping from a changed MAC", func() string { return b.pinged(consoles[1], "192.0.2.1") })
	t.Logf("a trusted guest's new MAC worked %v after it was set", time.Since(changed).Round(time.Millisecond))
	if n := b.observe(trusted).NICs[0]; n.MAC != other {
		t.Errorf("the child of a guest that changed its MAC to %s has %s", other, n.MAC)
	}
}

// TestFilterStorm has a guest change what it wants to receive as fast as it can.
func TestFilterStorm(t *testing.T) {
	b := newBench(t)
	g := b.spec("storm", "192.0.2.11/24", nic("bridge"))
	c := b.boot(g)[0]
	supervisor := b.observe(g).Supervisor
	before, began := cpuTime(supervisor), time.Now()
	reply := b.say(c, "storm eth0 10")
	share := float64(cpuTime(supervisor)-before) / float64(time.Since(began))
	t.Logf("%s in 10 s cost the supervisor %.1f %% of a core", reply, 100*share)
	if share > 0.2 {
		t.Errorf("that is more than 20 %%")
	}
	if got := b.pinged(c, "192.0.2.1"); got != "" {
		t.Errorf("ping after the storm: %s", got)
	}
}

// TestPassthruMACGuard changes the parent's MAC through the tap, as a QEMU that
// a guest has broken into could.
func TestPassthruMACGuard(t *testing.T) {
	b := newBench(t)
	b.force = true
	g := b.spec("taker", "", nic("passthru"))
	b.mustStart(g, order{Force: true})
	events := b.events(g)
	want := b.lab.Host.MAC
	forged := net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
	b.throughTap(g, forged)
	events.wait(EventNIC, "mac-restored", time.Second)
	b.eventually(time.Second, "the parent's MAC", func() string {
		link, err := b.lab.Host.Link("lab0")
		b.must(err)
		if mac := link.Attrs().HardwareAddr; mac.String() != want.String() {
			return mac.String()
		}
		return ""
	})
}

// throughTap sets a MAC by the tap that QEMU holds (SIOCSIFHWADDR, drivers/net/tap.c).
func (b *bench) throughTap(g *configs.Guest, mac net.HardwareAddr) {
	b.t.Helper()
	tap := b.stealTap(g)
	defer unix.Close(tap)
	var ifr ifreq
	binary.NativeEndian.PutUint16(ifr.data[:], unix.ARPHRD_ETHER)
	copy(ifr.data[2:], mac)
	b.must(tapIoctl(tap, unix.SIOCSIFHWADDR, &ifr))
}

// eventLog is what a control client hears.
type eventLog struct {
	b   *bench
	sub *qmp.Subscription
}

// events listens to a guest's events from now on.
func (b *bench) events(g *configs.Guest) *eventLog {
	b.t.Helper()
	client, err := Control(b.within(5*time.Second), b.base, g.Name)
	b.must(err)
	b.t.Cleanup(func() { client.Close() })
	return &eventLog{b: b, sub: client.Subscribe()}
}

// wait waits for an event with this change, or any of the name when it is "".
func (l *eventLog) wait(name, change string, limit time.Duration) qmp.Event {
	l.b.t.Helper()
	deadline := time.After(limit)
	for {
		select {
		case ev, ok := <-l.sub.Events():
			if !ok {
				l.b.t.Fatalf("no %s (%s): the connection has ended", name, change)
			}
			if ev.Event == name && (change == "" || ev.Data["change"] == change) {
				return ev
			}
		case <-deadline:
			l.b.t.Errorf("no %s (%s) within %v", name, change, limit)
			return qmp.Event{}
		}
	}
}

// stealTap returns a copy of QEMU's descriptor of its first tap.
func (b *bench) stealTap(g *configs.Guest) int {
	b.t.Helper()
	pidfd, err := unix.PidfdOpen(b.observe(g).PID, 0)
	b.must(err)
	defer unix.Close(pidfd)
	for n := range 64 {
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue
		}
		var ifr ifreq
		if tapIoctl(fd, unix.TUNGETIFF, &ifr) == nil {
			return fd
		}
		unix.Close(fd)
	}
	b.t.Fatal("QEMU has no tap open")
	return -1
}

// ifreq is struct ifreq of netdevice(7).
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data [24]byte
}

func tapIoctl(fd int, request uintptr, ifr *ifreq) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(ifr))); errno != 0 {
		return errno
	}
	return nil
}
