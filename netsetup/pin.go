package netsetup

import (
	"fmt"
	"iter"
	"strings"
)

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

// Total is how many frames were dropped.
func (r Refusals) Total() (n uint64) {
	for _, kind := range r.kinds() {
		n += kind.count
	}
	return n
}

// String names what was forged, and how often: "MAC 2, DHCP 1". It is empty where
// nothing was.
func (r Refusals) String() string {
	var words []string
	for _, kind := range r.kinds() {
		if kind.count > 0 {
			words = append(words, fmt.Sprintf("%s %d", kind.name, kind.count))
		}
	}
	return strings.Join(words, ", ")
}

type refusalKind struct {
	name  string
	count uint64
}

// Kinds yields what was forged, and how often, zero included.
func (r Refusals) Kinds() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		for _, kind := range r.kinds() {
			if !yield(kind.name, kind.count) {
				return
			}
		}
	}
}

func (r Refusals) kinds() []refusalKind {
	return []refusalKind{{"MAC", r.MAC}, {"IPv4", r.IPv4}, {"IPv6", r.IPv6}, {"ARP", r.ARP},
		{"ND", r.ND}, {"DHCP", r.DHCP}, {"router", r.Router}, {"other", r.Other}}
}
