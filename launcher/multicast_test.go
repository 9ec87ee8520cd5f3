package launcher

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup"
)

// TestMulticast has two guests with default settings speak IPv6 with each other
// and with a machine outside, and one of them join and leave mDNS's groups.
func TestMulticast(t *testing.T) {
	b := newBench(t)
	g1 := b.spec("a", "192.0.2.11/24,2001:db8::11/64", nic("bridge"))
	g2 := b.spec("b", "192.0.2.12/24,2001:db8::12/64", nic("bridge"))
	consoles := b.boot(g1, g2)
	a := consoles[0]
	for _, to := range []string{"2001:db8::12", "2001:db8::1", "192.0.2.1", linkLocal(b, g2).String() + "%eth0"} {
		b.eventually(10*time.Second, "ping "+to, func() string { return b.pinged(a, to) })
	}
	for _, from := range []string{"2001:db8::11", "2001:db8::12"} {
		if _, got, err := b.lab.Outside.Ping(t.Context(), netip.MustParseAddr(from), 3, 0); got != 3 || err != nil {
			t.Errorf("from outside to %s: %d of 3 answered, %v", from, got, err)
		}
	}
	if n := b.observe(g1).NICs[0]; n.AllGroups {
		t.Errorf("all multicast is let in: %+v", n)
	}
	if f := b.filter(g1); f.AllMulticast {
		t.Errorf("the child lets in all multicast: %+v", f)
	}
	for _, group := range []struct{ ip, mac string }{{"224.0.0.251", "01:00:5e:00:00:fb"}, {"ff02::fb", "33:33:00:00:00:fb"}} {
		b.joinAndLeave(a, group.ip, func() bool {
			return slices.ContainsFunc(b.filter(g1).Multicast, func(mac net.HardwareAddr) bool { return mac.String() == group.mac })
		})
	}
}

// linkLocal is the address that a guest's kernel derives for its first NIC
// (RFC 4291, appendix A).
func linkLocal(b *bench, g *configs.Guest) netip.Addr {
	b.t.Helper()
	mac, err := net.ParseMAC(b.observe(g).NICs[0].MAC)
	b.must(err)
	return eui64(mac)
}

func eui64(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// joinAndLeave has a guest listen to a group as an mDNS responder does, and stop.
func (b *bench) joinAndLeave(c *guesttest.Console, group string, listed func() bool) {
	b.t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(group), 5353)
	words := " udp " + group + " 5353 eth0"
	heard := func() int {
		n, err := strconv.Atoi(strings.TrimPrefix(strings.Fields(b.say(c, "heard%s", words))[0], "datagrams="))
		if err != nil {
			b.t.Fatal(err)
		}
		return n
	}
	if listed() {
		b.t.Errorf("%s: in the child's list before anybody joined", group)
	}
	b.say(c, "listen%s", words)
	joined := time.Now()
	b.eventually(2*time.Second, group+" heard", func() string {
		b.must(b.lab.Outside.SendUDP(b.lab.Outside.NIC, to, "query", 1))
		time.Sleep(20 * time.Millisecond)
		if heard() == 0 {
			return "nothing was heard"
		}
		return ""
	})
	b.t.Logf("%s: the first datagram was heard %v after the guest joined", group, time.Since(joined).Round(time.Millisecond))
	if took := time.Since(joined); took > time.Second {
		b.t.Errorf("%s: heard after %v, want 1 s", group, took)
	}
	if !listed() {
		b.t.Errorf("%s: heard, and not in the child's list", group)
	}
	b.say(c, "unlisten%s", words)
	b.eventually(time.Second, group+" left", func() string {
		if listed() {
			return "still in the child's list"
		}
		return ""
	})
}

// filter is that of the guest's first child, as the kernel has it.
func (b *bench) filter(g *configs.Guest) (f netsetup.Filter) {
	b.t.Helper()
	b.inNamespace(g, func(ns *netsetup.Namespace, rec *record) (err error) {
		f, err = ns.Filter(rec.Children[0])
		return err
	})
	return f
}

// inNamespace runs fn with the guest's namespace.
func (b *bench) inNamespace(g *configs.Guest, fn func(*netsetup.Namespace, *record) error) {
	b.t.Helper()
	rec, err := guestDir(b.base, g.Name).readRecord()
	b.must(err)
	ns, err := netsetup.NamespaceOf(rec.QEMU.PID)
	b.must(err)
	defer ns.Close()
	b.must(fn(ns, rec))
}

// pinged pings from a guest and says what went wrong, or "".
func (b *bench) pinged(c *guesttest.Console, to string) string {
	b.t.Helper()
	reply, _, err := c.Run(b.within(20*time.Second), "ping "+to+" 3")
	if err != nil {
		return err.Error()
	}
	if reply != "sent=3 received=3" {
		return reply
	}
	return ""
}

// eventually repeats fn until it has nothing to complain about.
func (b *bench) eventually(limit time.Duration, what string, fn func() string) {
	b.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		complaint := fn()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			b.t.Errorf("%s: after %v: %s", what, limit, complaint)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}
