package netsetup

// Refusals counts the frames of a guest that were dropped, by what they forged.
type Refusals struct {
	MAC    uint64 `json:"mac"`    // the Ethernet source
	IPv4   uint64 `json:"ipv4"`   // the IPv4 source
	IPv6   uint64 `json:"ipv6"`   // the IPv6 source
	ARP    uint64 `json:"arp"`    // an ARP or RARP sender
	ND     uint64 `json:"nd"`     // the address or the MAC that a neighbour discovery message claims
	DHCP   uint64 `json:"dhcp"`   // a DHCP server, or another client's hardware address
	Router uint64 `json:"router"` // a router: advertisements, redirects, and ICMPv6 types that no end host sends
	Other  uint64 `json:"other"`  // protocols that are not let through, and headers that hide what is behind them
}
