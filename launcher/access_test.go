package launcher

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmrun/launcher/guesttest"
	"vmrun/netsetup/nettest"
)

// TestHostAccess has the host and its guest speak TCP with each other while
// everything under them goes and comes back, and a third machine watches the
// host's MAC.
func TestHostAccess(t *testing.T) {
	b := newBench(t, nettest.Switch)
	third := b.lab.AddMachine("third", netip.MustParsePrefix("192.0.2.3/24"), netip.MustParsePrefix("2001:db8::3/64"))
	for _, scope := range []string{"all", "default", "lab0"} {
		b.must(b.lab.Host.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/"+scope+"/rp_filter", []byte("1"), 0) }))
	}
	b.before = b.lab.Snapshot(t, b.base)
	g := b.spec("guest", "192.0.2.11/24,2001:db8::11/64", nic("bridge", "host_access = true"))
	c := b.boot(g)[0]
	b.lab.Host.ServeEcho(7)
	b.say(c, "tcp serve 7")
	b.say(c, "ping 192.0.2.1 1") // by which its addresses are learned
	b.say(c, "ping 2001:db8::1 1")
	b.talk(c, "at first")
	for range 20 {
		b.sameMAC(third)
		time.Sleep(20 * time.Millisecond)
	}
	shim := b.shim()
	for _, trial := range []struct {
		what      string
		gone, and func()
	}{
		{"the shim down and up", func() { b.onHost(shim, netlink.LinkSetDown) }, func() { b.onHost(shim, netlink.LinkSetUp) }},
		{"the shim down", func() { b.onHost(shim, netlink.LinkSetDown) }, nil},
		{"the shim deleted", func() { b.onHost(shim, netlink.LinkDel) }, nil},
		{"the parent down and up", func() { b.onHost("lab0", netlink.LinkSetDown) }, func() {
			b.onHost("lab0", netlink.LinkSetUp)
			b.lab.Host.AddAddress("lab0", nettest.HostAddr6) // the kernel takes it away with the link
		}},
		{"the host's addresses removed and put back", func() {
			b.must(b.lab.Host.DelAddress("lab0", nettest.HostAddr4))
			b.must(b.lab.Host.DelAddress("lab0", nettest.HostAddr6))
		}, func() {
			b.must(b.lab.Host.AddAddress("lab0", nettest.HostAddr4))
			b.must(b.lab.Host.AddAddress("lab0", nettest.HostAddr6))
		}},
		{"every vmrun process killed", func() { b.killSupervisor(g.Name) }, func() {
			b.mustStart(mustLoad(t, g.Path), order{})
			c = b.console(g)
		}},
	} {
		trial.gone()
		if trial.and != nil {
			time.Sleep(200 * time.Millisecond)
			trial.and()
		}
		b.talk(c, trial.what)
		b.sameMAC(third)
	}

	b.say(c, "addr eth0 192.0.2.1/24") // the machine outside, which is no gateway of the host's
	b.must(b.lab.Host.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Gw: netip.MustParseAddr("192.0.2.3").AsSlice()})
	}))
	for _, claimed := range []string{"192.0.2.2", "192.0.2.3"} {
		b.say(c, "gratuitous eth0 %s", claimed)
		b.eventually(2*time.Second, "a route is refused to "+claimed, func() string {
			n := b.observe(g).NICs[0]
			if why := n.Unrouted[netip.MustParseAddr(claimed)]; why == "" {
				return fmt.Sprintf("%+v", n)
			}
			return ""
		})
		routes := b.hostRoutes()
		if strings.Contains(routes, claimed+"/32") {
			t.Errorf("%s is routed to the guest:\n%s", claimed, routes)
		}
	}
	b.must(b.lab.Host.Do(func() error {
		return netlink.RouteDel(&netlink.Route{Gw: netip.MustParseAddr("192.0.2.3").AsSlice()})
	}))
	b.kill(g.Name)
	b.clean("host access")
}

// talk has the host and the guest each open a TCP connection to the other, by
// IPv4 and IPv6.
func (b *bench) talk(c *guesttest.Console, when string) {
	b.t.Helper()
	began := time.Now()
	for _, addr := range []string{"192.0.2.11", "2001:db8::11"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(addr), 7)
		b.eventually(5*time.Second, when+": host to "+addr, func() string {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			answer, err := b.lab.Host.EchoTCP(ctx, to, "hello")
			if err != nil || answer != "hello" {
				return fmt.Sprintf("%q, %v\n%s", answer, err, b.hostRoutes())
			}
			return ""
		})
	}
	for _, addr := range []string{"192.0.2.2", "2001:db8::2"} {
		b.eventually(5*time.Second, when+": guest to "+addr, func() string {
			reply, _, err := c.Run(b.within(10*time.Second), "tcp echo "+addr+" 7 hello")
			if err != nil {
				return err.Error()
			}
			if !strings.Contains(reply, "hello") {
				return reply
			}
			return ""
		})
	}
	b.t.Logf("%s: both talked to each other after %v", when, time.Since(began).Round(10*time.Millisecond))
}

// sameMAC has a machine ask for the host's MAC anew and look at what it got.
func (b *bench) sameMAC(from *nettest.Host) {
	b.t.Helper()
	b.must(from.FlushNeighbours(from.NIC))
	for _, addr := range []netip.Addr{nettest.HostAddr4.Addr(), nettest.HostAddr6.Addr()} {
		b.eventually(3*time.Second, "the third machine asks for "+addr.String(), func() string { return b.answers(from, addr.String()) })
	}
	known, err := from.Neighbours(from.NIC)
	b.must(err)
	for _, addr := range []netip.Addr{nettest.HostAddr4.Addr(), nettest.HostAddr6.Addr()} {
		if mac := known[addr]; mac.String() != b.lab.Host.MAC.String() {
			b.t.Errorf("the third machine has %s for %s, which is %s", mac, addr, b.lab.Host.MAC)
		}
	}
}

// shim names the host's shim.
func (b *bench) shim() (name string) {
	b.t.Helper()
	b.must(b.lab.Host.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if l.Type() == "macvlan" {
				name = l.Attrs().Name
			}
		}
		return err
	}))
	return name
}

// hostRoutes are those of the lab's host, in words.
func (b *bench) hostRoutes() (text string) {
	b.t.Helper()
	b.must(b.lab.Host.Do(func() error {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		for _, r := range routes {
			text += r.String() + "\n"
		}
		return err
	}))
	return text
}
