package netsetup_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

var modes = []configs.Mode{configs.ModePrivate, configs.ModeVEPA, configs.ModeBridge, configs.ModePassthru, configs.ModeSource}

// group is an IPv6 solicited-node group (RFC 4291, 2.7.1). These differ in
// their last byte alone, from broadcast too, and so have hashes of their own.
func group(n byte) net.HardwareAddr { return net.HardwareAddr{0x33, 0x33, 0xff, 0xff, 0xff, n} }

func groups(ns ...byte) (list []net.HardwareAddr) {
	for _, n := range ns {
		list = append(list, group(n))
	}
	return list
}

func filterIs(t *testing.T, ns *netsetup.Namespace, c netsetup.Child, want netsetup.Filter) {
	t.Helper()
	got, err := ns.Filter(c)
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("filter (-want +got):\n%s", diff)
	}
}

// tapped is a child with its tap.
type tapped struct {
	netsetup.Child
	ns   *netsetup.Namespace
	tap  *os.File
	sent int
}

func newTapped(t *testing.T, lab *nettest.Lab, c netsetup.Child) *tapped {
	t.Helper()
	ns := newNamespace(t)
	must(t, ns.Quiet())
	must(t, create(t, lab, ns, c))
	return &tapped{Child: c, ns: ns, tap: openTaps(t, ns, c)[0]}
}

// end deletes the child and gives up what keeps its namespace.
func (g *tapped) end(t *testing.T) {
	t.Helper()
	g.tap.Close()
	must(t, g.ns.Delete(g.Child))
	must(t, g.ns.Close())
}

// hears sends a frame to each destination and a broadcast after them, and
// returns which came out of the tap before the broadcast did.
func (g *tapped) hears(t *testing.T, lab *nettest.Lab, from net.HardwareAddr, to ...net.HardwareAddr) (heard []net.HardwareAddr) {
	t.Helper()
	byTag := map[string]net.HardwareAddr{}
	send := func(dst net.HardwareAddr) {
		g.sent++
		tag := fmt.Sprintf("frame %04d", g.sent)
		byTag[tag] = dst
		must(t, lab.Outside.Send("wire0", wire.Tagged(dst, from, tag)))
	}
	for _, dst := range to {
		send(dst)
	}
	send(wire.Broadcast)
	tags := slices.Collect(maps.Keys(byTag))
	for {
		dst, ok := byTag[readTagged(t, g.tap, tags...)]
		switch {
		case !ok:
			t.Fatal("not even a broadcast came in")
		case dst.String() == wire.Broadcast.String():
			return heard
		}
		heard = append(heard, dst)
	}
}

// What is let in is what is listed, from before the child is up. In source mode
// it is the sender that counts.
func TestFilterInEveryMode(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			lab := nettest.New(t)
			before := lab.Snapshot(t)
			g := newTapped(t, lab, testChild(mode, 1))
			all := groups(1, 2, 3)
			for i, tt := range []struct {
				filter netsetup.Filter
				heard  []net.HardwareAddr
			}{
				{netsetup.Filter{Multicast: groups(1, 2)}, groups(1, 2)},
				{netsetup.Filter{Multicast: groups(2, 3)}, groups(2, 3)},
				{netsetup.Filter{Multicast: groups(2, 3)}, groups(2, 3)},
				{netsetup.Filter{AllMulticast: true}, all},
				{netsetup.Filter{Multicast: groups(3), AllMulticast: true}, all},
				{netsetup.Filter{Multicast: groups(1)}, groups(1)},
				{netsetup.Filter{}, nil},
			} {
				must(t, g.ns.SetFilter(g.Child, tt.filter))
				if i == 0 {
					filterIs(t, g.ns, g.Child, tt.filter)
					must(t, g.ns.Up(g.Child))
				}
				want := tt.filter
				if mode == configs.ModePassthru { // promiscuous already
					want.Promisc = want.AllMulticast
				}
				filterIs(t, g.ns, g.Child, want)
				if mode == configs.ModeSource {
					tt.heard = all
				}
				if diff := cmp.Diff(tt.heard, g.hears(t, lab, mac(0xaa), all...)); diff != "" {
					t.Errorf("with %+v, heard (-want +got):\n%s", tt.filter, diff)
				}
			}
			g.end(t)
			before.Check(t)
		})
	}
}

// A parent listens to no more than its child, and has its own counts back in
// the end, whether the child is deleted or left to the kernel.
func TestParentListensNoMoreThanItsChild(t *testing.T) {
	type counts struct{ Promiscuity, Allmulti int }
	type step struct {
		filter netsetup.Filter
		want   counts
	}
	up := step{want: counts{-1, -1}} // instead of SetFilter
	list, all := netsetup.Filter{Multicast: groups(1, 2)}, netsetup.Filter{AllMulticast: true}
	promisc := netsetup.Filter{Promisc: true, Multicast: groups(1)}
	for _, tt := range []struct {
		name   string
		mode   configs.Mode
		alone  bool // without promisc
		steps  []step
		kernel counts // when the kernel ends the child after the last step
	}{
		{name: "list", mode: configs.ModePassthru, alone: true, steps: []step{{list, counts{}}, up, {list, counts{}}}},
		{name: "all, then up", mode: configs.ModePassthru, alone: true, kernel: counts{0, 1},
			steps: []step{{all, counts{}}, up, {all, counts{0, 1}}}},
		{name: "all, then less", mode: configs.ModePassthru, alone: true,
			steps: []step{{all, counts{}}, up, {list, counts{}}, {all, counts{0, 1}}, {all, counts{0, 1}}, {list, counts{}}}},
		{name: "never up", mode: configs.ModePassthru, alone: true, steps: []step{{all, counts{}}, {promisc, counts{}}, {all, counts{}}}},
		{name: "promisc, then up", mode: configs.ModePassthru, alone: true,
			steps: []step{{promisc, counts{}}, up, {promisc, counts{1, 0}}}},
		{name: "promisc, then less", mode: configs.ModePassthru, alone: true,
			steps: []step{{promisc, counts{}}, up, {all, counts{0, 1}}, {promisc, counts{1, 0}}, {list, counts{}}}},
		{name: "promisc of its own", mode: configs.ModePassthru,
			steps: []step{{all, counts{}}, up, {all, counts{1, 0}}, {list, counts{1, 0}}, {promisc, counts{1, 0}}, {all, counts{1, 0}}}},
		// A veth has no unicast filter: another MAC makes it promiscuous.
		{name: "bridge", mode: configs.ModeBridge, steps: []step{{all, counts{}}, up, {list, counts{1, 0}}, {all, counts{1, 1}}}},
	} {
		for _, end := range []string{"deleted", "left to the kernel"} {
			t.Run(tt.name+", "+end, func(t *testing.T) {
				lab := nettest.New(t)
				before := lab.Snapshot(t)
				c := testChild(tt.mode, 1)
				c.Promisc = !tt.alone
				if tt.mode == configs.ModePassthru {
					c.MAC = lab.Host.MAC
				}
				g := newTapped(t, lab, c)
				now := func() counts {
					out, err := inside(lab.Host.Namespace, "ip", "-d", "-j", "link", "show", "lab0")
					must(t, err)
					var links []struct{ Promiscuity, Allmulti int }
					must(t, json.Unmarshal([]byte(out), &links))
					return counts(links[0])
				}
				for i, s := range tt.steps {
					if s.want == up.want {
						must(t, g.ns.Up(c))
						continue
					}
					must(t, g.ns.SetFilter(c, s.filter))
					if got := now(); got != s.want {
						t.Errorf("step %d, %+v: the parent at %+v, want %+v", i, s.filter, got, s.want)
					}
				}
				if end == "deleted" {
					g.end(t)
					before.Check(t)
					return
				}
				link := linkIn(t, g.ns, "net0")
				must(t, g.ns.Do(func() error { return netlink.LinkDel(link) }))
				if got := now(); got != tt.kernel {
					t.Errorf("the parent at %+v afterwards, want %+v", got, tt.kernel)
				}
			})
		}
	}
}

// Where all unicast comes in, promiscuous brings all multicast too.
func TestPromiscFilter(t *testing.T) {
	lab := nettest.New(t)
	c := testChild(configs.ModePassthru, 1)
	c.MAC, c.Promisc = lab.Host.MAC, false
	g := newTapped(t, lab, c)
	must(t, g.ns.Up(c))
	must(t, g.ns.SetFilter(c, netsetup.Filter{Promisc: true}))
	filterIs(t, g.ns, c, netsetup.Filter{Promisc: true, AllMulticast: true})
	other := mac(0x66)
	if heard := g.hears(t, lab, mac(0xaa), group(9), other); len(heard) != 2 {
		t.Errorf("heard %v, want %s and %s", heard, group(9), other)
	}
}

// A further address is the parent's business too.
func TestUnicastFilter(t *testing.T) {
	lab := nettest.New(t)
	before := lab.Snapshot(t)
	c := testChild(configs.ModePassthru, 1)
	c.MAC, c.Promisc = lab.Host.MAC, false
	g := newTapped(t, lab, c)
	must(t, g.ns.Up(c))
	f := netsetup.Filter{Multicast: groups(1), Unicast: []net.HardwareAddr{mac(0x66), mac(0x67)}}
	must(t, g.ns.SetFilter(c, f))
	filterIs(t, g.ns, c, f)
	parent := netsetup.Child{Name: "lab0", Index: linkIn(t, lab.Host.Namespace, "lab0").Attrs().Index}
	got, err := lab.Host.Namespace.Filter(parent)
	must(t, err)
	if diff := cmp.Diff(f.Unicast, got.Unicast); diff != "" {
		t.Errorf("the parent's (-want +got):\n%s", diff)
	}
	f.Unicast = f.Unicast[1:]
	must(t, g.ns.SetFilter(c, f))
	filterIs(t, g.ns, c, f)
	g.end(t)
	before.Check(t)
}

// What the host's stacks join on the child goes, and so does what the child's own
// list has in common with them. IPv6 joins ff02::1 with the making of the child,
// be it disabled or not (net/ipv6/addrconf.c, ipv6_add_dev), and IPv4 joins
// 224.0.0.1 when it comes up.
func TestFilterAgainstTheHostsStacks(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	must(t, ns.Quiet()) // or IPv6 would join more, in its own time
	c := testChild(configs.ModeBridge, 1)
	must(t, create(t, lab, ns, c))
	allNodes := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	allHosts := net.HardwareAddr{0x01, 0x00, 0x5e, 0, 0, 1}
	if _, err := os.Stat("/proc/net/if_inet6"); err == nil {
		filterIs(t, ns, c, netsetup.Filter{Multicast: []net.HardwareAddr{allNodes}})
	}
	must(t, ns.SetFilter(c, netsetup.Filter{}))
	filterIs(t, ns, c, netsetup.Filter{})

	must(t, ns.Do(func() error { return netlink.LinkSetUp(linkNamed("net0")) }))
	filterIs(t, ns, c, netsetup.Filter{Multicast: []net.HardwareAddr{allHosts}})
	must(t, ns.Do(func() error { return netlink.LinkSetDown(linkNamed("net0")) }))
	must(t, ns.Up(c))
	filterIs(t, ns, c, netsetup.Filter{})

	must(t, ns.Do(func() error { return netlink.LinkSetDown(linkNamed("net0")) }))
	own := netsetup.Filter{Multicast: []net.HardwareAddr{allHosts, group(1)}}
	must(t, ns.SetFilter(c, own))
	must(t, ns.Up(c)) // joined twice now
	filterIs(t, ns, c, own)
	must(t, ns.SetFilter(c, netsetup.Filter{}))
	filterIs(t, ns, c, netsetup.Filter{})
	must(t, ns.Delete(c))
}

func linkNamed(name string) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return &netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: attrs}}
}

func TestFilterErrors(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	must(t, ns.Quiet())
	c := testChild(configs.ModeBridge, 1)
	must(t, create(t, lab, ns, c))
	must(t, ns.SetFilter(c, netsetup.Filter{}))
	missing, passthru := c, c
	missing.Index++
	passthru.Mode = configs.ModePassthru
	for _, tt := range []struct {
		name   string
		child  netsetup.Child
		filter netsetup.Filter
		want   error
	}{
		{"unicast", c, netsetup.Filter{Unicast: []net.HardwareAddr{mac(1)}}, unix.EOPNOTSUPP},
		{"promisc", c, netsetup.Filter{Promisc: true}, unix.EOPNOTSUPP},
		{"station as group", c, netsetup.Filter{Multicast: []net.HardwareAddr{mac(1)}}, unix.EINVAL},
		{"group as station", passthru, netsetup.Filter{Unicast: groups(1)}, unix.EINVAL},
		{"null", passthru, netsetup.Filter{Unicast: []net.HardwareAddr{make(net.HardwareAddr, 6)}}, unix.EINVAL},
		{"too long", c, netsetup.Filter{Multicast: []net.HardwareAddr{append(group(1), 0, 0)}}, unix.EINVAL},
		{"no such child", missing, netsetup.Filter{}, unix.ENODEV},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := ns.SetFilter(tt.child, tt.filter)
			var typed *netsetup.LinkError
			if !errors.As(err, &typed) || typed.Link != "net0@lab0" || !errors.Is(err, tt.want) {
				t.Errorf("%v, want a LinkError with %v", err, tt.want)
			}
		})
	}
	filterIs(t, ns, c, netsetup.Filter{})
}

// As often as a guest may change its mind, with as many groups as QEMU's models
// count.
func BenchmarkSetFilter(b *testing.B) {
	lab := nettest.New(b)
	ns := newNamespace(b)
	c := testChild(configs.ModeBridge, 1)
	must(b, create(b, lab, ns, c))
	must(b, ns.Up(c))
	var lists [2]netsetup.Filter
	for i := range byte(64) {
		lists[0].Multicast = append(lists[0].Multicast, group(i))
		lists[1].Multicast = append(lists[1].Multicast, group(128+i))
	}
	more := netsetup.Filter{Multicast: append(groups(200), lists[0].Multicast...)}
	for _, bb := range []struct {
		name string
		turn [2]netsetup.Filter
	}{
		{"64 groups for 64 others", lists},
		{"one more or less beside 64", [2]netsetup.Filter{lists[0], more}},
		{"no change of 64", [2]netsetup.Filter{lists[0], lists[0]}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				must(b, ns.SetFilter(c, bb.turn[i%2]))
			}
		})
	}
}
