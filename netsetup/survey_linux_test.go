package netsetup_test

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

// survey looks at links of the lab's host.
func survey(t *testing.T, lab *nettest.Lab, names ...string) netsetup.Host {
	t.Helper()
	var host netsetup.Host
	if err := lab.Host.Do(func() (err error) {
		host, err = netsetup.Survey(names...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return host
}

// inLab runs steps on the lab's host, one after the other.
func inLab(t *testing.T, lab *nettest.Lab, steps ...func() error) {
	t.Helper()
	for i, step := range steps {
		if err := lab.Host.Do(step); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

func addLink(link netlink.Link) func() error { return func() error { return netlink.LinkAdd(link) } }

func attrs(name string, parent int) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.ParentIndex = name, parent
	return a
}

func indexOf(t *testing.T, lab *nettest.Lab, name string) int {
	t.Helper()
	link, err := lab.Host.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index
}

func TestSurvey(t *testing.T) {
	lab := nettest.New(t)
	lab.AddNIC("port0", nettest.NIC{Bridge: "br0"})
	lab.AddNIC("bare0", nettest.NIC{MTU: 9000, MAC: mac(5)})
	lab.AddNIC("dead0", nettest.NIC{Unplugged: true})
	lab.AddNIC("down0", nettest.NIC{})
	inLab(t, lab, func() error {
		down, err := netlink.LinkByName("down0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(down)
	})
	names := []string{"lab0", "port0", "br0", "bare0", "dead0", "down0", "lo"}
	host := survey(t, lab, append(names, "eth9")...)

	for _, tt := range []struct {
		name string
		want netsetup.Parent
	}{
		{"lab0", netsetup.Parent{Kind: "veth", MTU: 1500, Up: true, Carrier: true, Ethernet: true,
			Addresses: []string{nettest.HostAddr4.String(), nettest.HostAddr6.String()}}},
		{"port0", netsetup.Parent{Kind: "veth", MTU: 1500, Up: true, Carrier: true, Ethernet: true, Master: "br0", MasterKind: "bridge", Promisc: 1}},
		{"br0", netsetup.Parent{Kind: "bridge", MTU: 1500, Up: true, Carrier: true, Ethernet: true}},
		{"bare0", netsetup.Parent{Kind: "veth", MTU: 9000, Up: true, Carrier: true, Ethernet: true}},
		{"dead0", netsetup.Parent{Kind: "veth", MTU: 1500, Up: true, Ethernet: true}},
		{"down0", netsetup.Parent{Kind: "veth", MTU: 1500, Ethernet: true}},
		{"lo", netsetup.Parent{Kind: "device", MTU: 65536, Up: true, Carrier: true, Loopback: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := host.Parents[tt.name]
			if !ok {
				t.Fatal("not seen")
			}
			tt.want.Name, tt.want.Index, tt.want.MAC = tt.name, indexOf(t, lab, tt.name), got.MAC
			if tt.name == "lo" {
				got.Addresses = nil // the kernel's
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if _, ok := host.Parents["eth9"]; ok {
		t.Error("a link that does not exist was seen")
	}
	if host.Parents["bare0"].MAC.String() != mac(5).String() {
		t.Errorf("MAC %s, want %s", host.Parents["bare0"].MAC, mac(5))
	}
	if slices.Contains(host.Names, "lo") || !slices.Contains(host.Names, "bare0") {
		t.Errorf("proposes %q", host.Names)
	}
}

// What Survey saw, Check refuses, and the kernel would have as well.
func TestSurveyedParentsAreRefused(t *testing.T) {
	lab := nettest.New(t)
	lab.AddNIC("port0", nettest.NIC{Bridge: "br0"})
	host := survey(t, lab, "lo", "port0", "br0", "eth9")
	for _, tt := range []struct {
		parent string
		good   bool
	}{{"lo", false}, {"port0", false}, {"eth9", false}, {"br0", true}} {
		t.Run(tt.parent, func(t *testing.T) {
			c := netsetup.Child{Name: "net0", Index: 1 << 24, NIC: configs.NIC{Parent: tt.parent, Mode: configs.ModeBridge, MAC: mac(1), Queues: 1}}
			problems := netsetup.Check([]netsetup.Child{c}, host, nil)
			if good := len(problems) == 0; good != tt.good {
				t.Errorf("problems: %+v", problems)
			}
			if err := create(t, lab, newNamespace(t), c); (err == nil) != tt.good {
				t.Errorf("the kernel thinks otherwise: %v", err)
			}
		})
	}
}

func TestSurveyDefaultRoute(t *testing.T) {
	via := func(addr string) net.IP { return net.ParseIP(addr) }
	for _, tt := range []struct {
		name  string
		route func(lab0, lab1 int) *netlink.Route
		want  map[string]bool
	}{
		{"none", nil, map[string]bool{}},
		{"a subnet's", func(lab0, _ int) *netlink.Route {
			_, dst, _ := net.ParseCIDR("198.51.100.0/24")
			return &netlink.Route{Dst: dst, Gw: via("192.0.2.1"), LinkIndex: lab0}
		}, map[string]bool{}},
		{"IPv4", func(lab0, _ int) *netlink.Route { return &netlink.Route{Gw: via("192.0.2.1"), LinkIndex: lab0} },
			map[string]bool{"lab0": true}},
		{"IPv6", func(lab0, _ int) *netlink.Route { return &netlink.Route{Gw: via("2001:db8::1"), LinkIndex: lab0} },
			map[string]bool{"lab0": true}},
		{"over two NICs", func(lab0, lab1 int) *netlink.Route {
			_, dst, _ := net.ParseCIDR("0.0.0.0/0")
			return &netlink.Route{Dst: dst, MultiPath: []*netlink.NexthopInfo{
				{LinkIndex: lab0, Gw: via("192.0.2.1")}, {LinkIndex: lab1, Gw: via("203.0.113.1")}}}
		}, map[string]bool{"lab0": true, "lab1": true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := nettest.New(t)
			lab.AddNIC("lab1", nettest.NIC{Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.2/24")}})
			if tt.route != nil {
				route := tt.route(indexOf(t, lab, "lab0"), indexOf(t, lab, "lab1"))
				inLab(t, lab, func() error { return netlink.RouteAdd(route) })
			}
			for name, p := range survey(t, lab, "lab0", "lab1").Parents {
				if p.Default != tt.want[name] {
					t.Errorf("default route through %s: %t", name, p.Default)
				}
			}
		})
	}
}

func TestSurveySiblings(t *testing.T) {
	lab := nettest.New(t)
	lab0 := indexOf(t, lab, "lab0")
	inLab(t, lab,
		addLink(&netlink.Macvlan{LinkAttrs: attrs("mv0", lab0), Mode: netlink.MACVLAN_MODE_VEPA}),
		addLink(&netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: attrs("mt0", lab0), Mode: netlink.MACVLAN_MODE_PRIVATE}}),
	)
	ns := newNamespace(t)
	if err := create(t, lab, ns, testChild(configs.ModeBridge, 1)); err != nil {
		t.Fatal(err) // in another namespace: not to be seen
	}
	host := survey(t, lab, "lab0", "mv0")
	macOf := func(name string) net.HardwareAddr {
		link, err := lab.Host.Link(name)
		if err != nil {
			t.Fatal(err)
		}
		return link.Attrs().HardwareAddr
	}
	want := []netsetup.Sibling{
		{Parent: "lab0", Name: "mt0", Kind: configs.KindMacvtap, Mode: configs.ModePrivate, MAC: macOf("mt0")},
		{Parent: "lab0", Name: "mv0", Kind: configs.KindMacvtap, Mode: configs.ModeVEPA, MAC: macOf("mv0")},
	}
	if diff := cmp.Diff(want, host.Parents["lab0"].Children); diff != "" {
		t.Errorf("lab0's (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, host.Parents["mv0"].Children); diff != "" {
		t.Errorf("those of lab0 below mv0 (-want +got):\n%s", diff)
	}
	if got := host.Parents["mv0"].Lower; got != "lab0" {
		t.Errorf("mv0's children land on %q", got)
	}
	if slices.Contains(host.Names, "mt0") {
		t.Errorf("a macvtap is proposed as a parent: %q", host.Names)
	}
}
