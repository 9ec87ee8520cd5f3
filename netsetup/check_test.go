package netsetup_test

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
	"vmrun/netsetup"
)

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0, last} }

// parent is a NIC in order, changed by edit.
func parent(edit func(*netsetup.Parent)) netsetup.Parent {
	p := netsetup.Parent{Name: "eth0", Index: 2, Kind: "device", MAC: mac(0), MTU: 1500, Up: true, Carrier: true, Ethernet: true}
	if edit != nil {
		edit(&p)
	}
	return p
}

func on(mode configs.Mode, last byte) netsetup.Child {
	return netsetup.Child{Name: "net0", NIC: configs.NIC{Parent: "eth0", Mode: mode, MAC: mac(last), Queues: 1}}
}

func problem(key, msg string) netsetup.Problem { return netsetup.Problem{Key: key, Msg: msg} }

func masteredBy(kind, name string) func(*netsetup.Parent) {
	return func(p *netsetup.Parent) { p.MasterKind, p.Master = kind, name }
}

func withChild(s netsetup.Sibling) func(*netsetup.Parent) {
	return func(p *netsetup.Parent) { p.Children = append(p.Children, s) }
}

func TestCheckParent(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*netsetup.Parent)
		want []netsetup.Problem
	}{
		{"good", nil, nil},
		{"up, no carrier", func(p *netsetup.Parent) { p.Carrier = false }, nil},
		{"loopback", func(p *netsetup.Parent) { p.Loopback, p.Ethernet = true, false }, []netsetup.Problem{problem("parent",
			"eth0 is the loopback link, which cannot have macvtap children: use an Ethernet NIC")}},
		{"not Ethernet", func(p *netsetup.Parent) { p.Ethernet, p.Kind = false, "wireguard" }, []netsetup.Problem{problem("parent",
			"eth0 carries no Ethernet frames (kind wireguard): use an Ethernet NIC")}},
		{"Wi-Fi", func(p *netsetup.Parent) { p.Wireless = true }, []netsetup.Problem{problem("parent",
			"eth0 is a Wi-Fi link: access points drop frames from a second MAC, so no guest would ever hear an answer: use kind = \"ipvtap\", which shares the NIC's own, or a wired NIC")}},
		{"ipvlan", func(p *netsetup.Parent) { p.Kind, p.Lower = "ipvlan", "eno1" }, []netsetup.Problem{problem("parent",
			`eth0 is an ipvlan link, which hears what is for its own addresses alone: use kind = "ipvtap", or parent = "eno1"`)}},
		{"bridge port", masteredBy("bridge", "br0"), []netsetup.Problem{problem("parent",
			`eth0 is owned by the bridge br0, and a link has one such owner only: use parent = "br0", or type: ip link set eth0 nomaster`)}},
		{"bond slave", masteredBy("bond", "bond0"), []netsetup.Problem{problem("parent",
			`eth0 is owned by the bond bond0, and a link has one such owner only: use parent = "bond0", or type: ip link set eth0 nomaster`)}},
		{"team port", masteredBy("team", "team0"), []netsetup.Problem{problem("parent",
			`eth0 is owned by the team team0, and a link has one such owner only: use parent = "team0", or type: ip link set eth0 nomaster`)}},
		{"in a VRF, which owns no frames", masteredBy("vrf", "blue"), nil},
		{"down", func(p *netsetup.Parent) { p.Up, p.Carrier = false, false }, []netsetup.Problem{{Key: "parent", Warning: true,
			Msg: "eth0 is down, so the guest has no link yet: type: ip link set eth0 up"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := parent(tt.edit)
			host := netsetup.Host{Parents: map[string]netsetup.Parent{"eth0": p}, Names: []string{"eth0"}}
			got := netsetup.Check([]netsetup.Child{on(configs.ModeBridge, 1)}, host, nil)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCheckMissingParent(t *testing.T) {
	for _, tt := range []struct {
		name  string
		names []string
		want  string
	}{
		{"no link at all", nil, `this host has no link "eth0", nor any other Ethernet link`},
		{"others", []string{"eno1", "eno2"}, `this host has no link "eth0": use one of eno1, eno2`},
		{"many others", []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"}, `this host has no link "eth0": use one of a, b, c, d, e, f, g, h, …`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := netsetup.Check([]netsetup.Child{on(configs.ModeBridge, 1)}, netsetup.Host{Names: tt.names}, nil)
			if diff := cmp.Diff([]netsetup.Problem{problem("parent", tt.want)}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCheckChild(t *testing.T) {
	webs := netsetup.Sibling{Parent: "eth0", Name: "net0", Guest: "web1", Mode: configs.ModeBridge, MAC: mac(9)}
	taken := netsetup.Sibling{Parent: "eth0", Name: "net0", Guest: "db1", Mode: configs.ModePassthru, MAC: mac(0)}
	elsewhere := netsetup.Sibling{Parent: "eth1", Name: "net0", Guest: "web1", Mode: configs.ModePassthru, MAC: mac(1)}
	macvlan := netsetup.Sibling{Parent: "eth0", Name: "mv0", Mode: configs.ModeVEPA, MAC: mac(8)}
	mtu := func(c netsetup.Child, mtu int) netsetup.Child { c.MTU = mtu; return c }
	second := func(c netsetup.Child) netsetup.Child { c.Name = "net1"; return c }

	for _, tt := range []struct {
		name     string
		edit     func(*netsetup.Parent)
		children []netsetup.Child
		others   []netsetup.Sibling
		want     []netsetup.Problem
	}{
		{name: "beside another guest", children: []netsetup.Child{on(configs.ModeBridge, 1)}, others: []netsetup.Sibling{webs, elsewhere}},
		{name: "MTU as the parent's", children: []netsetup.Child{mtu(on(configs.ModeBridge, 1), 1500)}},
		{name: "MTU above", children: []netsetup.Child{mtu(on(configs.ModeBridge, 1), 1501)}, want: []netsetup.Problem{problem("mtu",
			"1501 is above the 1500 of eth0: lower it, or type: ip link set eth0 mtu 1501")}},
		{name: "MAC of the parent", children: []netsetup.Child{on(configs.ModeBridge, 0)}, want: []netsetup.Problem{problem("mac",
			"52:54:00:00:00:00 is the MAC of eth0 itself: leave mac out to have one derived")}},
		{name: "MAC of the parent in passthru", children: []netsetup.Child{on(configs.ModePassthru, 0)}},
		{name: "MAC of another guest", children: []netsetup.Child{on(configs.ModeBridge, 9)}, others: []netsetup.Sibling{webs},
			want: []netsetup.Problem{problem("mac",
				"52:54:00:00:00:09 is in use on eth0 by guest web1: leave mac out to have one derived, or give another")}},
		{name: "MAC of a link", edit: withChild(macvlan), children: []netsetup.Child{on(configs.ModeBridge, 8)},
			want: []netsetup.Problem{problem("mac",
				"52:54:00:00:00:08 is in use on eth0 by link mv0: leave mac out to have one derived, or give another")}},
		{name: "MAC twice in one guest", children: []netsetup.Child{on(configs.ModeBridge, 1), second(on(configs.ModeVEPA, 1))},
			want: []netsetup.Problem{{Child: 1, Key: "mac",
				Msg: "52:54:00:00:00:01 is in use on eth0 by net0 of this guest: leave mac out to have one derived, or give another"}}},
		{name: "passthru beside a guest", children: []netsetup.Child{on(configs.ModePassthru, 0)}, others: []netsetup.Sibling{webs},
			want: []netsetup.Problem{problem("mode",
				`passthru takes eth0 for one child alone, and guest web1 is on it already (mode bridge): end that first, or use mode = "bridge"`)}},
		{name: "passthru beside a link", edit: withChild(macvlan), children: []netsetup.Child{on(configs.ModePassthru, 0)},
			want: []netsetup.Problem{problem("mode",
				`passthru takes eth0 for one child alone, and link mv0 is on it already (mode vepa): end that first, or use mode = "bridge"`)}},
		{name: "beside passthru", children: []netsetup.Child{on(configs.ModeSource, 1)}, others: []netsetup.Sibling{taken},
			want: []netsetup.Problem{problem("parent", "eth0 belongs to guest db1 alone (mode passthru): end that first, or use another NIC")}},
		{name: "passthru beside itself", children: []netsetup.Child{on(configs.ModeBridge, 1), second(on(configs.ModePassthru, 0))},
			want: []netsetup.Problem{{Child: 1, Key: "mode",
				Msg: `passthru takes eth0 for one child alone, and net0 of this guest is on it already (mode bridge): end that first, or use mode = "bridge"`}}},
		{name: "itself beside passthru", children: []netsetup.Child{on(configs.ModePassthru, 0), second(on(configs.ModeBridge, 1))},
			want: []netsetup.Problem{{Child: 1, Key: "parent", Msg: "eth0 belongs to net0 of this guest alone (mode passthru): end that first, or use another NIC"}}},
		{name: "everything at once", edit: withChild(macvlan), children: []netsetup.Child{mtu(on(configs.ModePassthru, 8), 9000)},
			want: []netsetup.Problem{
				problem("mtu", "9000 is above the 1500 of eth0: lower it, or type: ip link set eth0 mtu 9000"),
				problem("mode", `passthru takes eth0 for one child alone, and link mv0 is on it already (mode vepa): end that first, or use mode = "bridge"`),
				problem("mac", "52:54:00:00:00:08 is in use on eth0 by link mv0: leave mac out to have one derived, or give another"),
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := netsetup.Host{Parents: map[string]netsetup.Parent{"eth0": parent(tt.edit)}, Names: []string{"eth0"}}
			if diff := cmp.Diff(tt.want, netsetup.Check(tt.children, host, tt.others)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCheckCutOff(t *testing.T) {
	addressed := func(p *netsetup.Parent) { p.Addresses = []string{"192.0.2.2/24", "2001:db8::2/64"} }
	routed := func(p *netsetup.Parent) { p.Default = true }
	for _, tt := range []struct {
		name string
		mode configs.Mode
		edit func(*netsetup.Parent)
		want string
	}{
		{"nothing on it", configs.ModePassthru, nil, ""},
		{"bridge takes nothing away", configs.ModeBridge, func(p *netsetup.Parent) { addressed(p); routed(p) }, ""},
		{"addresses", configs.ModePassthru, addressed,
			`passthru gives eth0 to the guest, and the host's address 192.0.2.2/24, 2001:db8::2/64 is on it: the host would be cut off: use mode = "bridge", another NIC, or --force`},
		{"default route", configs.ModePassthru, routed,
			`passthru gives eth0 to the guest, and the host's default route is on it: the host would be cut off: use mode = "bridge", another NIC, or --force`},
		{"both", configs.ModePassthru, func(p *netsetup.Parent) { addressed(p); routed(p) },
			`passthru gives eth0 to the guest, and the host's default route and the host's address 192.0.2.2/24, 2001:db8::2/64 is on it: the host would be cut off: use mode = "bridge", another NIC, or --force`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := netsetup.Host{Parents: map[string]netsetup.Parent{"eth0": parent(tt.edit)}}
			var want []netsetup.Problem
			if tt.want != "" {
				want = []netsetup.Problem{{Key: "mode", Force: true, Msg: tt.want}}
			}
			got := netsetup.Check([]netsetup.Child{{Name: "net0", NIC: configs.NIC{Parent: "eth0", Mode: tt.mode, MAC: mac(1)}}}, host, nil)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A child of a macvlan lands on that one's own parent (netdev_master… in
// macvlan_common_newlink), and so meets the children there.
func TestCheckOnMacvlan(t *testing.T) {
	mv := parent(func(p *netsetup.Parent) { p.Name, p.Kind, p.Lower, p.MAC = "mv0", "macvlan", "eth0", mac(7) })
	host := netsetup.Host{Parents: map[string]netsetup.Parent{"mv0": mv, "eth0": parent(nil)}}
	others := []netsetup.Sibling{{Parent: "eth0", Name: "net0", Guest: "web1", Mode: configs.ModeBridge, MAC: mac(9)}}
	child := func(parent string, mode configs.Mode, last byte) netsetup.Child {
		return netsetup.Child{Name: "net0", NIC: configs.NIC{Parent: parent, Mode: mode, MAC: mac(last)}}
	}
	for _, tt := range []struct {
		name     string
		children []netsetup.Child
		want     int
	}{
		{"MAC of another guest below", []netsetup.Child{child("mv0", configs.ModeBridge, 9)}, 1},
		{"MAC twice in one guest", []netsetup.Child{child("eth0", configs.ModeBridge, 1), child("mv0", configs.ModeBridge, 1)}, 1},
		{"passthru below", []netsetup.Child{child("mv0", configs.ModePassthru, 3)}, 1},
		{"good", []netsetup.Child{child("mv0", configs.ModeBridge, 3)}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := netsetup.Check(tt.children, host, others); len(got) != tt.want {
				t.Errorf("%d problems, want %d: %+v", len(got), tt.want, got)
			}
		})
	}
}

// Frames of a parent go to children of one kind, and of all modes of ipvlan to
// those of one mode.
func TestCheckKinds(t *testing.T) {
	ipvtap := func(parent string) netsetup.Child {
		return netsetup.Child{Name: "net0", NIC: configs.NIC{Parent: parent, Kind: configs.KindIPvtap, MAC: mac(0), Queues: 1}}
	}
	webs := netsetup.Sibling{Parent: "eth0", Name: "net0", Guest: "web1", Mode: configs.ModeBridge, MAC: mac(9)}
	shared := netsetup.Sibling{Parent: "eth0", Name: "net0", Guest: "db1", Kind: configs.KindIPvtap, MAC: mac(0)}
	taken := netsetup.Sibling{Parent: "eth0", Name: "net0", Guest: "db1", Mode: configs.ModePassthru, MAC: mac(0)}
	link := func(kind configs.Kind, mode configs.Mode) func(*netsetup.Parent) {
		return withChild(netsetup.Sibling{Parent: "eth0", Name: "ln0", Kind: kind, Mode: mode, MAC: mac(8)})
	}
	wireless := func(p *netsetup.Parent) { p.Wireless = true }
	for _, tt := range []struct {
		name     string
		edit     func(*netsetup.Parent)
		children []netsetup.Child
		others   []netsetup.Sibling
		want     []netsetup.Problem
	}{
		{name: "ipvtap alone", children: []netsetup.Child{ipvtap("eth0")}},
		{name: "ipvtap on Wi-Fi", edit: wireless, children: []netsetup.Child{ipvtap("eth0")}},
		{name: "ipvtap beside ipvtap", children: []netsetup.Child{ipvtap("eth0")}, others: []netsetup.Sibling{shared}},
		{name: "ipvtap beside ipvlan", edit: link(configs.KindIPvtap, "l2"), children: []netsetup.Child{ipvtap("eth0")}},
		{name: "ipvtap beside another mode", edit: link(configs.KindIPvtap, "l3"), children: []netsetup.Child{ipvtap("eth0")},
			want: []netsetup.Problem{problem("kind",
				"link ln0 is on eth0 in ipvlan's mode l3, which all of its children share, and a guest's needs l2: end that first, or use another NIC")}},
		{name: "ipvtap beside a macvtap guest", children: []netsetup.Child{ipvtap("eth0")}, others: []netsetup.Sibling{webs},
			want: []netsetup.Problem{problem("kind",
				`guest web1 is on eth0 already (mode bridge), and a link has macvtap or ipvtap children, not both: use kind = "macvtap", or another NIC`)}},
		{name: "ipvtap beside a macvlan", edit: link(configs.KindMacvtap, configs.ModeVEPA), children: []netsetup.Child{ipvtap("eth0")},
			want: []netsetup.Problem{problem("kind",
				`link ln0 is on eth0 already (mode vepa), and a link has macvtap or ipvtap children, not both: use kind = "macvtap", or another NIC`)}},
		{name: "ipvtap beside passthru", children: []netsetup.Child{ipvtap("eth0")}, others: []netsetup.Sibling{taken},
			want: []netsetup.Problem{problem("parent", "eth0 belongs to guest db1 alone (mode passthru): end that first, or use another NIC")}},
		{name: "macvtap beside ipvtap", children: []netsetup.Child{on(configs.ModeBridge, 1)}, others: []netsetup.Sibling{shared},
			want: []netsetup.Problem{problem("kind",
				`guest db1 is on eth0 already (kind ipvtap), and a link has macvtap or ipvtap children, not both: use kind = "ipvtap", or another NIC`)}},
		{name: "passthru beside ipvtap", children: []netsetup.Child{on(configs.ModePassthru, 0)}, others: []netsetup.Sibling{shared},
			want: []netsetup.Problem{problem("mode",
				`passthru takes eth0 for one child alone, and guest db1 is on it already (kind ipvtap): end that first, or use mode = "bridge"`)}},
		{name: "both in one guest", children: []netsetup.Child{on(configs.ModeBridge, 1), ipvtap("eth0")},
			want: []netsetup.Problem{{Child: 1, Key: "kind",
				Msg: `net0 of this guest is on eth0 already (mode bridge), and a link has macvtap or ipvtap children, not both: use kind = "macvtap", or another NIC`}}},
		{name: "ipvtap on a macvlan, which is a link of its own", children: []netsetup.Child{ipvtap("mv0")}, others: []netsetup.Sibling{webs}},
		{name: "ipvtap on an ipvlan, which passes it on", children: []netsetup.Child{ipvtap("iv0")}, others: []netsetup.Sibling{webs},
			want: []netsetup.Problem{problem("kind",
				`guest web1 is on iv0 already (mode bridge), and a link has macvtap or ipvtap children, not both: use kind = "macvtap", or another NIC`)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := netsetup.Host{Parents: map[string]netsetup.Parent{
				"eth0": parent(tt.edit),
				"mv0":  parent(func(p *netsetup.Parent) { p.Name, p.Kind, p.Lower, p.MAC = "mv0", "macvlan", "eth0", mac(7) }),
				"iv0":  parent(func(p *netsetup.Parent) { p.Name, p.Kind, p.Lower = "iv0", "ipvlan", "eth0" }),
			}}
			if diff := cmp.Diff(tt.want, netsetup.Check(tt.children, host, tt.others)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A child on a VLAN meets those of the same VLAN, and needs a NIC that can have it.
func TestCheckVLAN(t *testing.T) {
	tagged := func(id int, mode configs.Mode, last byte) netsetup.Child {
		c := on(mode, last)
		c.VLAN = id
		return c
	}
	mtu := func(c netsetup.Child, mtu int) netsetup.Child { c.MTU = mtu; return c }
	guest := func(parent string, mode configs.Mode) netsetup.Sibling {
		return netsetup.Sibling{Parent: parent, Name: "net0", Guest: "web1", Mode: mode, MAC: mac(9)}
	}
	device := func(kind string) func(map[string]netsetup.Parent) {
		return func(parents map[string]netsetup.Parent) {
			parents["eth0.10"] = parent(func(p *netsetup.Parent) { p.Name, p.Kind, p.MTU = "eth0.10", kind, 1400 })
		}
	}
	nic := func(edit func(*netsetup.Parent)) func(map[string]netsetup.Parent) {
		return func(parents map[string]netsetup.Parent) { parents["eth0"] = parent(edit) }
	}
	for _, tt := range []struct {
		name   string
		edit   func(map[string]netsetup.Parent)
		child  netsetup.Child
		others []netsetup.Sibling
		want   []netsetup.Problem
	}{
		{name: "yet to be made", child: mtu(tagged(10, configs.ModeBridge, 1), 1500)},
		{name: "there already", edit: device("vlan"), child: mtu(tagged(10, configs.ModeBridge, 1), 1400)},
		{name: "MTU above the NIC's", child: mtu(tagged(10, configs.ModeBridge, 1), 1501), want: []netsetup.Problem{problem("mtu",
			"1501 is above the 1500 of eth0: lower it, or type: ip link set eth0 mtu 1501")}},
		{name: "MTU above the device's", edit: device("vlan"), child: mtu(tagged(10, configs.ModeBridge, 1), 1500), want: []netsetup.Problem{problem("mtu",
			"1500 is above the 1400 of eth0.10: lower it, or type: ip link set eth0.10 mtu 1500")}},
		{name: "something else of the name", edit: device("bridge"), child: tagged(10, configs.ModeBridge, 1), want: []netsetup.Problem{problem("vlan",
			"eth0.10 is to be VLAN 10 of eth0, and there is a bridge of that name: rename it, or type: ip link delete eth0.10")}},
		{name: "beside an untagged passthru", child: tagged(10, configs.ModeBridge, 1), others: []netsetup.Sibling{guest("eth0", configs.ModePassthru)}},
		{name: "passthru beside another VLAN", child: tagged(10, configs.ModePassthru, 1), others: []netsetup.Sibling{guest("eth0.11", configs.ModeBridge)}},
		{name: "passthru beside the same VLAN", child: tagged(10, configs.ModePassthru, 1), others: []netsetup.Sibling{guest("eth0.10", configs.ModeBridge)},
			want: []netsetup.Problem{problem("mode",
				`passthru takes eth0.10 for one child alone, and guest web1 is on it already (mode bridge): end that first, or use mode = "bridge"`)}},
		{name: "MAC in the same VLAN", child: tagged(10, configs.ModeBridge, 9), others: []netsetup.Sibling{guest("eth0.10", configs.ModeBridge)},
			want: []netsetup.Problem{problem("mac",
				"52:54:00:00:00:09 is in use on eth0.10 by guest web1: leave mac out to have one derived, or give another")}},
		{name: "MAC of the NIC", child: tagged(10, configs.ModeBridge, 0), want: []netsetup.Problem{problem("mac",
			"52:54:00:00:00:00 is the MAC of eth0.10 itself: leave mac out to have one derived")}},
		{name: "Wi-Fi", edit: nic(func(p *netsetup.Parent) { p.Wireless = true }), child: tagged(10, configs.ModeBridge, 1),
			want: []netsetup.Problem{problem("vlan", "eth0 is a Wi-Fi link, which carries no VLAN tags: use a wired NIC, or leave vlan out")}},
		{name: "bond slave", edit: nic(masteredBy("bond", "bond0")), child: tagged(10, configs.ModeBridge, 1),
			want: []netsetup.Problem{problem("vlan", `eth0 is one of the links of bond bond0, which may send by another: use parent = "bond0"`)}},
		{name: "bridge port", edit: nic(masteredBy("bridge", "br0")), child: tagged(10, configs.ModeBridge, 1)},
		{name: "not Ethernet", edit: nic(func(p *netsetup.Parent) { p.Ethernet, p.Kind = false, "wireguard" }), child: tagged(10, configs.ModeBridge, 1),
			want: []netsetup.Problem{problem("vlan", "eth0 carries no Ethernet frames (kind wireguard): use an Ethernet NIC")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := netsetup.Host{Parents: map[string]netsetup.Parent{"eth0": parent(nil)}}
			if tt.edit != nil {
				tt.edit(host.Parents)
			}
			if diff := cmp.Diff(tt.want, netsetup.Check([]netsetup.Child{tt.child}, host, tt.others)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
