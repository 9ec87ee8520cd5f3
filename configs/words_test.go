package configs

import (
	"errors"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNICFromWords(t *testing.T) {
	tests := []struct {
		name  string
		words string
		want  NIC
	}{
		{"defaults", "parent=eth1", testNIC("eth1", func(n *NIC) { n.Queues = 4 })},
		{"no value", "parent=eth1 mac= vlan= bandwidth=", testNIC("eth1", func(n *NIC) { n.Queues = 4 })},
		{"a parent of digits", "parent=123 model=e1000", testNIC("123", func(n *NIC) { n.Model = "e1000" })},
		{
			"every kind of value",
			"parent=eth1 vlan=7 mode=source sources=52:54:00:00:00:01,52-54-00-00-00-02 addresses=192.0.2.10,2001:db8::1 " +
				"pin=true bandwidth.outbound=1gbit bandwidth.inbound=64kbit host_offload=false queues=2 mac=52:54:00:00:00:03",
			testNIC("eth1", func(n *NIC) {
				n.VLAN, n.Mode, n.Pin, n.HostOffload, n.Queues = 7, ModeSource, PinAll, false, 2
				n.MAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 3}
				n.Sources = []net.HardwareAddr{{0x52, 0x54, 0, 0, 0, 1}, {0x52, 0x54, 0, 0, 0, 2}}
				n.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::1")}
				n.Bandwidth = Bandwidth{Inbound: 64 * kbit, Outbound: gbit}
			}),
		},
		{"a pinned MAC", "pin=mac parent=eth1", testNIC("eth1", func(n *NIC) { n.Pin, n.Queues = PinMAC, 4 })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := NICFromWords(4, strings.Fields(tt.words))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpGuest); diff != "" {
				t.Errorf("NIC (-want +got):\n%s", diff)
			}
			checkNIC(t, got)
		})
	}
}

func TestBadWords(t *testing.T) {
	tests := []struct {
		name  string
		words string
		want  string
	}{
		{"nothing", "", `parent: missing: name the host's NIC, as parent = "eth0" (ip link lists them)`},
		{"no value", "parent=eth0 vlan", `"vlan" is no setting: write key=value, as mtu=1500`},
		{"no key", "parent=eth0 =1", `"=1" is no setting: write key=value, as mtu=1500`},
		{"not UTF-8", "parent=eth0 mac=\xb0", `"mac=\xb0" is not UTF-8: write it in the characters of a spec`},
		{"not a number", "parent=eth0 vlan=ten", `vlan: want a whole number, not the text "ten"`},
		{"not a boolean", "parent=eth0 host_access=yes", `host_access: want true or false, without quotes, not the text "yes"`},
		{"not a table", "parent=eth0 bandwidth=1mbit", `bandwidth: want inbound and outbound, not the text "1mbit": write bandwidth.inbound = "100mbit" for the way to the guest, bandwidth.outbound for the other`},
		{"a table", "parent=eth0 vlan.id=1", `vlan: want a whole number, not a table`},
		{"not a pin", "parent=eth0 pin=all", `pin: want true or false without quotes, or "mac", not the text "all"`},
		{"unknown", "parent=eth0 inbound=1mbit", `unknown key "inbound": write bandwidth.inbound`},
		{"a typo", "parnet=eth0", `unknown key "parnet": did you mean "parent"?`},
		{"unknown in a table", "parent=eth0 bandwidth.in=1mbit", `bandwidth: unknown key "in": the keys here are inbound and outbound`},
		{"deep", "parent=eth0 " + strings.Repeat("a.", 1<<18) + "=1", `"a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a."… is no setting: no key is that deep`},
		{"twice", "parent=eth0 mtu=1500 mtu=1400", `mtu: given twice: keep one`},
		{"a table and a key of it", "parent=eth0 bandwidth= bandwidth.inbound=1mbit", `bandwidth: given twice: keep one`},
		{"a key of a table and it", "parent=eth0 bandwidth.inbound=1mbit bandwidth=", `bandwidth: given twice: keep one`},
		{"in a list", "parent=eth0 addresses=192.0.2.1,192.0.2.0/24", `addresses[1]: "192.0.2.0/24": it is the subnet, and no address in it: write one of the guest's own`},
		{
			"all at once", "parent=eth0 mode=brigde mtu=1",
			"mode: \"brigde\" is not a mode: use bridge, private, vepa, passthru or source\nmtu: 1 is out of range: use 68 to 65535",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, err := NICFromWords(1, strings.Fields(tt.words))
			var errs Errors
			if !errors.As(err, &errs) || !cmp.Equal(n, NIC{}) {
				t.Fatalf("got %+v, %v, want Errors", n, err)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

func TestChangeNIC(t *testing.T) {
	limited := testNIC("eth0", func(n *NIC) {
		n.MAC, n.Queues, n.Pin = net.HardwareAddr{2, 0, 0, 0, 0, 1}, 3, PinAll
		n.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.10")}
		n.Bandwidth = Bandwidth{Inbound: gbit, Outbound: 3 * mibit}
	})
	ipvtap := testNIC("eth0", func(n *NIC) {
		n.Kind, n.Mode, n.Multicast, n.MAC = KindIPvtap, "", MulticastAll, net.HardwareAddr{2, 0, 0, 0, 0, 1}
		n.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.10")}
	})
	tests := []struct {
		name   string
		nic    NIC
		words  string
		change func(*NIC) // nil where err is wanted
		err    string
	}{
		{"nothing", limited, "", func(*NIC) {}, ""},
		{"one limit", limited, "bandwidth.inbound=10mbit", func(n *NIC) { n.Bandwidth.Inbound = 10 * mbit }, ""},
		{"one limit lifted", limited, "bandwidth.inbound=", func(n *NIC) { n.Bandwidth.Inbound = 0 }, ""},
		{"both limits lifted", limited, "bandwidth=", func(n *NIC) { n.Bandwidth = Bandwidth{} }, ""},
		{"policies", limited, "pin=false trust=all multicast=off", func(n *NIC) { n.Pin, n.Trust, n.Multicast = PinNone, TrustAll, MulticastOff }, ""},
		{"a list", limited, "addresses=2001:db8::1", func(n *NIC) { n.Addresses = []netip.Addr{netip.MustParseAddr("2001:db8::1")} }, ""},
		{"with its prefix", limited, "addresses=2001:db8::1/64", func(n *NIC) {
			n.Addresses, n.Prefixes = []netip.Addr{netip.MustParseAddr("2001:db8::1")}, []netip.Prefix{netip.MustParsePrefix("2001:db8::1/64")}
		}, ""},
		{"the queues have no other default", limited, "queues=", func(*NIC) {}, ""},
		{"a list that is needed", limited, "addresses=", nil, `addresses: missing: pin = true lets out only frames from the guest's addresses: list them, as addresses = ["192.0.2.10"], or use pin = "mac"`},
		{"against what is there", limited, "trust=mac", nil, `trust: "mac" lets the guest change its MAC, and pin keeps it from that: remove trust, or pin`},
		{"no parent", limited, "parent=", nil, `parent: missing: name the host's NIC, as parent = "eth0" (ip link lists them)`},
		{"an ipvtap's address", ipvtap, "addresses=192.0.2.11", func(n *NIC) { n.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.11")} }, ""},
		{"an ipvtap's MAC", ipvtap, "mac=02:00:00:00:00:02", nil, `mac: an ipvtap has its parent's MAC: remove mac, or use kind = "macvtap"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := rawOf(tt.nic)
			got, err := ChangeNIC(tt.nic, strings.Fields(tt.words))
			if diff := cmp.Diff(before, rawOf(tt.nic)); diff != "" {
				t.Errorf("it changed (-before +after):\n%s", diff)
			}
			if tt.change == nil {
				if err == nil || err.Error() != tt.err {
					t.Errorf("got %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := tt.nic
			tt.change(&want)
			if diff := cmp.Diff(want, got, cmpGuest); diff != "" {
				t.Errorf("NIC (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRawOf proves that a change keeps every key that is not changed.
func TestRawOf(t *testing.T) {
	raw := reflect.ValueOf(*rawOf(NIC{ // none of it a default, whether it goes together or not
		Parent: "eth0", VLAN: 1, Kind: "other", Mode: ModeSource, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Queues: 2, MTU: 1500,
		Model: "e1000", Sources: []net.HardwareAddr{{2, 0, 0, 0, 0, 2}}, Multicast: MulticastOff, Trust: TrustAll, HostAccess: true,
		Addresses: []netip.Addr{netip.IPv6LinkLocalAllNodes()}, Pin: PinMAC, Bandwidth: Bandwidth{Inbound: 1, Outbound: 1},
		Gateways: []netip.Addr{netip.IPv6LinkLocalAllNodes()}, Nameservers: []netip.Addr{netip.IPv6LinkLocalAllNodes()},
		Vhost: VhostOn, TxQueueLen: 1, BcQueueLen: 1,
	}))
	for i := range raw.NumField() {
		if raw.Field(i).IsZero() {
			t.Errorf("%s is lost", raw.Type().Field(i).Tag.Get("toml"))
		}
	}
}

func TestCheckNICs(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	ipvtap := func(vlan int, address string) NIC {
		return testNIC("eth0", func(n *NIC) {
			n.Kind, n.Mode, n.VLAN, n.MAC, n.Addresses = KindIPvtap, "", vlan, mac, []netip.Addr{netip.MustParseAddr(address)}
		})
	}
	bridge := testNIC("eth0", nil)
	onVLAN := testNIC("eth0", func(n *NIC) { n.VLAN, n.MAC = 5, mac })
	passthru := testNIC("eth0.5", func(n *NIC) { n.Mode = ModePassthru })
	tests := []struct {
		name string
		nics []NIC
		want string // the error; "" for none
	}{
		{"none", nil, ""},
		{"two VLANs", []NIC{bridge, onVLAN}, ""},
		{"passthru beside a VLAN's device", []NIC{bridge, passthru}, ""},
		{"passthru of a VLAN's device", []NIC{bridge, onVLAN, passthru}, `nic[2].parent: "eth0.5" is nic[1]'s already, and mode "passthru" shares it with nobody: use another parent, or another mode for both`},
		{"one MAC", []NIC{onVLAN, testNIC("eth1", func(n *NIC) { n.MAC = mac })}, "nic[1].mac: 02:00:00:00:00:01 is nic[0]'s already: give each NIC its own, or leave it out"},
		{"ipvtaps with their parent's MAC", []NIC{ipvtap(0, "192.0.2.1"), ipvtap(0, "192.0.2.2"), ipvtap(5, "192.0.2.1")}, ""},
		{"one address", []NIC{ipvtap(0, "192.0.2.1"), ipvtap(0, "192.0.2.1")}, "nic[1].addresses[0]: 192.0.2.1 is nic[0]'s already: give each NIC on a parent its own"},
		{"two kinds", []NIC{ipvtap(0, "192.0.2.1"), bridge}, `nic[1].kind: nic[0] is of kind "ipvtap", and a parent has macvtaps or ipvtaps but not both: use another parent, or one kind`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := CheckNICs(tt.nics); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzNICFromWords looks for panics, and for NICs that break their own rules.
func FuzzNICFromWords(f *testing.F) {
	for _, words := range []string{
		"parent=eth0", "parent=eth0 vlan=1 mode=passthru pin=mac", "parent=eth0 bandwidth.inbound=1.5gbit bandwidth.=",
		"parent=a kind=ipvtap addresses=192.0.2.1,,::1", "= . .= a.b.c=d parent=eth0 parent.x=1 host_access=TRUE",
	} {
		f.Add(words)
	}
	f.Fuzz(func(t *testing.T, words string) {
		n, err := NICFromWords(2, strings.Fields(words))
		if err == nil {
			checkNIC(t, n)
			return
		}
		var errs Errors
		if !errors.As(err, &errs) || len(errs) == 0 || len(errs) > maxErrors+1 {
			t.Fatalf("got %v, want Errors", err)
		}
		for _, e := range errs {
			if e.File != "" || e.Line != 0 || e.Msg == "" || strings.Contains(e.Error(), "\n") {
				t.Errorf("error %+v", e)
			}
		}
	})
}
