package netsetup

import (
	"net/netip"
	"slices"
	"time"
)

// Address is one address of a guest.
type Address struct {
	IP     netip.Addr `json:"ip"` // link-local ones too, without zone
	Source Source     `json:"source"`
	Since  time.Time  `json:"since"`
	// Seen is when the guest last used it, as far as the frames looked at tell:
	// a guest that only answers to data goes unnoticed for as long as its
	// neighbours remember its MAC.
	Seen time.Time `json:"seen"`
	// Expires is when its lease ends, unless it is renewed; zero without one.
	Expires time.Time `json:"expires,omitzero"`
	// Conflict is the MAC of another machine that claims it too.
	Conflict string `json:"conflict,omitempty"`
}

// Source is what told of an address.
type Source string

// The sources that a Learner has. The launcher has more.
const (
	SourceARP  Source = "arp"
	SourceDHCP Source = "dhcp" // either version
	SourceND   Source = "nd"   // IPv6 neighbour discovery
)

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Learnable tells whether ip can be one machine's address on its link.
func Learnable(ip netip.Addr) bool {
	if !ip.IsValid() || ip.Is4In6() || ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() || ip == broadcast4 {
		return false
	}
	return !ip.Is4() || ip.As4()[0] != 0 // RFC 1122, 3.2.1.3: 0/8 is this network
}

func sortAddresses(list []Address) {
	slices.SortFunc(list, func(a, b Address) int { return a.IP.Compare(b.IP) })
}
