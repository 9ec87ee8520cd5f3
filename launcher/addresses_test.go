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
