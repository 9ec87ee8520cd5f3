package launcher

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmrun/netsetup/nettest"
)

// TestParentComesBack takes the parent from under two guests and brings it back.
func TestParentComesBack(t *testing.T) {
	b := newBench(t)
	g1 := b.spec("a", "192.0.2.11/24", nic("bridge", "host_access = true"))
	g2 := b.spec("b", "192.0.2.12/24", nic("vepa"))
	consoles := b.boot(g1, g2)
	pci := b.say(consoles[0], "pci eth0")
	events := b.events(g1)
	b.lab.RemoveNIC("lab0")
	events.wait(EventNIC, "parent-gone", 2*time.Second)
	for _, c := range consoles {
		b.eventually(2*time.Second, "the guest sees its link go", func() string { return other(b.say(c, "carrier eth0"), "down") })
	}
	if n := b.observe(g1).NICs[0]; n.Link != LinkParentGone {
		t.Errorf("link %q, want %q", n.Link, LinkParentGone)
	}
	time.Sleep(5 * time.Second)
	b.lab.AddNIC("lab0", nettest.NIC{MAC: b.lab.Host.MAC, Addresses: []netip.Prefix{nettest.HostAddr4, nettest.HostAddr6}})
	back := time.Now()
	for _, addr := range []string{"192.0.2.11", "192.0.2.12"} {
		b.eventually(3*time.Second, "ping "+addr, func() string { return b.answers(b.lab.Outside, addr) })
	}
	t.Logf("both guests answered %v after the parent was back", time.Since(back).Round(10*time.Millisecond))
	b.eventually(3*time.Second, "the host reaches its guest", func() string { return b.answers(b.lab.Host, "192.0.2.11") })
	if now := b.say(consoles[0], "pci eth0"); now != pci {
		t.Errorf("the card is at %s, was at %s", now, pci)
	}
}

// TestParentLeaves unplugs, renames and moves the parent, and changes its MTU.
func TestParentLeaves(t *testing.T) {
	b := newBench(t)
	g := b.spec("a", "192.0.2.11/24", nic("bridge"))
	c := b.boot(g)[0]
	for _, trial := range []struct {
		what      string
		link      LinkState
		gone, and func()
	}{
		{"the cable out", LinkNoCarrier, func() { b.lab.SetCarrier("lab0", false) }, func() { b.lab.SetCarrier("lab0", true) }},
		{"down", LinkNoCarrier, func() { b.onHost("lab0", netlink.LinkSetDown) }, func() { b.onHost("lab0", netlink.LinkSetUp) }},
		{"renamed", LinkParentGone, func() { b.lab.RenameNIC("lab0", "other") }, func() { b.lab.RenameNIC("other", "lab0") }},
		{"moved", LinkParentGone, func() { b.lab.MoveNIC("lab0", b.lab.Host, b.lab.Outside) }, func() {
			b.lab.MoveNIC("lab0", b.lab.Outside, b.lab.Host)
			b.must(b.lab.Host.AddAddress("lab0", nettest.HostAddr4))
			b.must(b.lab.Host.AddAddress("lab0", nettest.HostAddr6))
		}},
	} {
		trial.gone()
		b.eventually(2*time.Second, trial.what+": the guest's link", func() string { return other(b.say(c, "carrier eth0"), "down") })
		if n := b.observe(g).NICs[0]; n.Link != trial.link {
			t.Errorf("%s: link %q, want %q", trial.what, n.Link, trial.link)
		}
		trial.and()
		b.eventually(3*time.Second, trial.what+", and back: ping", func() string { return b.answers(b.lab.Outside, "192.0.2.11") })
	}
	b.lab.SetMTU("lab0", 1400)
	b.eventually(2*time.Second, "a lower MTU is explained", func() string {
		n := b.observe(g).NICs[0]
		return other(fmt.Sprint(n.MTU, n.Note != ""), "1400 true")
	})
	b.lab.SetMTU("lab0", 1500)
	b.eventually(2*time.Second, "the MTU is given back", func() string {
		n := b.observe(g).NICs[0]
		return other(fmt.Sprint(n.MTU, n.Note), "1500")
	})
}

// other is got, unless that is what was wanted.
func other(got, want string) string {
	if got == want {
		return ""
	}
	return got + ", want " + want
}

// answers pings from a machine of the lab and says what went wrong, or "".
func (b *bench) answers(from *nettest.Host, to string) string {
	b.t.Helper()
	_, got, err := from.Ping(b.within(5*time.Second), netip.MustParseAddr(to), 1, 0)
	if err != nil || got != 1 {
		return fmt.Sprintf("%d answers, %v", got, err)
	}
	return ""
}

// onHost does something to a link of the lab's host.
func (b *bench) onHost(name string, act func(netlink.Link) error) {
	b.t.Helper()
	b.must(b.lab.Host.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return act(link)
	}))
}
