package launcher

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmrun/netsetup"
)

// What serves best for reaching the guest comes first, whichever NIC has it.
func TestGuestAddresses(t *testing.T) {
	learned := func(text, conflict string) netsetup.Address {
		return netsetup.Address{IP: netip.MustParseAddr(text), Source: netsetup.SourceARP, Conflict: conflict}
	}
	s := Status{NICs: []NICStatus{
		{Name: "net0", Addresses: []string{"198.51.100.9", "192.0.2.7", "rubbish"}, Learned: []netsetup.Address{
			learned("fe80::1", ""), learned("2001:db8::7", ""), learned("169.254.1.1", ""), learned("192.0.2.7", ""), learned("192.0.2.8", "02:00:00:00:00:09"),
		}},
		{Name: "net1", Learned: []netsetup.Address{learned("203.0.113.1", "")}},
	}}
	var got [][3]string
	for _, a := range s.GuestAddresses() {
		got = append(got, [3]string{a.NIC, a.IP.String(), string(a.Source)})
	}
	want := [][3]string{
		{"net0", "192.0.2.7", "arp"}, {"net0", "198.51.100.9", "spec"}, {"net1", "203.0.113.1", "arp"}, {"net0", "2001:db8::7", "arp"},
		{"net0", "192.0.2.8", "arp"}, // somebody else claims it
		{"net0", "169.254.1.1", "arp"}, {"net0", "fe80::1", "arp"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if list := (Status{}).GuestAddresses(); list == nil || len(list) != 0 {
		t.Errorf("no addresses are %v, want an empty list for JSON", list)
	}
}

// The host takes a way that is sure before one that may be, and no agent's word.
func TestHostAddresses(t *testing.T) {
	learned := func(text string, source netsetup.Source) netsetup.Address {
		return netsetup.Address{IP: netip.MustParseAddr(text), Source: source}
	}
	stranger := learned("192.0.2.9", netsetup.SourceARP)
	stranger.Conflict = "02:00:00:00:00:09"
	s := Status{NICs: []NICStatus{
		{Name: "net0", Addresses: []string{"192.0.2.7", "192.0.2.8"}, Declared: []string{"192.0.2.7", "192.0.2.8"}, Learned: []netsetup.Address{
			learned("192.0.2.7", SourceAgent), learned("192.0.2.10", SourceAgent), learned("fe80::1", netsetup.SourceND), stranger,
		}},
		{Name: "net1", HostAccess: true, Unrouted: map[netip.Addr]string{netip.MustParseAddr("203.0.113.2"): "a gateway's"}, Learned: []netsetup.Address{
			learned("203.0.113.1", netsetup.SourceARP), learned("203.0.113.2", netsetup.SourceARP), learned("203.0.113.3", SourceAgent),
		}},
	}}
	want := []HostAddress{
		{NIC: "net1", IP: netip.MustParseAddr("203.0.113.1"), Access: true},
		{NIC: "net0", IP: netip.MustParseAddr("192.0.2.7")},
		{NIC: "net0", IP: netip.MustParseAddr("192.0.2.8")},
		{NIC: "net1", IP: netip.MustParseAddr("203.0.113.2"), Access: true, Why: "a gateway's"},
	}
	if diff := cmp.Diff(want, s.HostAddresses(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
