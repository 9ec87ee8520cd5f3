package netsetup

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// surroundings is what the host's network has that decides whether an address
// of a guest may be routed to the shim on a parent. It is pure.
type surroundings struct {
	parent  string
	index   int                 // the parent's interface index
	own     map[netip.Addr]bool // the host's addresses, on any link
	subnets []subnet            // the parent's, the best first
	routes  []hostRoute         // all but ours
	asked   map[netip.Addr]bool // the host's resolvers
	taken   map[netip.Addr]int  // addresses that are routed for another owner
	deaf    string              // why the host answers no guest's ARP, or ""
}

// subnet is one that the parent is connected to, with the host's address there.
type subnet struct {
	prefix netip.Prefix
	source netip.Addr
}

// hostRoute is a route of the host, in any table. A default route has a prefix
// of length 0.
type hostRoute struct {
	to       netip.Prefix
	link     int          // 0 with several next hops
	gateways []netip.Addr // none: on-link
	local    bool         // to the host itself
}

// judge returns the source address by which the host reaches a guest's address,
// or why it must not be routed.
func (s surroundings) judge(addr netip.Addr, mac net.HardwareAddr) (source netip.Addr, refusal string) {
	switch {
	case !Learnable(addr):
		return source, "it is no machine's address"
	case addr.IsLinkLocalUnicast():
		return source, "it is link-local, and would have to be on " + s.parent + ", which guests do not hear"
	case len(mac) != 6:
		return source, "the guest's MAC is not known"
	case s.isOwn(addr):
		return source, "it is the host's own"
	case s.isGateway(addr):
		return source, "it is a gateway of the host"
	case s.asked[addr]:
		return source, "it is a resolver of the host"
	}
	in := slices.IndexFunc(s.subnets, func(n subnet) bool { return n.prefix.Contains(addr) })
	if in < 0 {
		return source, "it is in no subnet of the host's on " + s.parent
	}
	home := s.subnets[in]
	if what := special(home.prefix, addr); what != "" {
		return source, fmt.Sprintf("it is the %s address of %s", what, home.prefix)
	}
	if to, ok := s.narrower(home.prefix, addr); ok {
		return source, fmt.Sprintf("the host has a route of its own to it, %s", to)
	}
	if owner, ok := s.taken[addr]; ok {
		return source, fmt.Sprintf("it is routed to another guest already, that of uid %d", owner)
	}
	if addr.Is4() && s.deaf != "" {
		return source, s.deaf
	}
	return home.source, ""
}

// isOwn reports whether addr is the host's, also by a local route to a whole
// prefix.
func (s surroundings) isOwn(addr netip.Addr) bool {
	return s.own[addr] || slices.ContainsFunc(s.routes, func(r hostRoute) bool { return r.local && r.to.Contains(addr) })
}

func (s surroundings) isGateway(addr netip.Addr) bool {
	return slices.ContainsFunc(s.routes, func(r hostRoute) bool { return slices.Contains(r.gateways, addr) })
}

// narrower finds a route to addr that is more specific than its subnet and leads
// elsewhere: to a container, or through a tunnel.
func (s surroundings) narrower(subnet netip.Prefix, addr netip.Addr) (netip.Prefix, bool) {
	for _, r := range s.routes {
		onLink := r.link == s.index && len(r.gateways) == 0
		if r.to.Contains(addr) && r.to.Bits() > subnet.Bits() && !onLink {
			return r.to, true
		}
	}
	return netip.Prefix{}, false
}

// special names what the first and the last address of a subnet are: RFC 1122
// (3.2.1.3) for IPv4, but for the two-address subnets of RFC 3021, and RFC 4291
// (2.6.1) for IPv6.
func special(p netip.Prefix, addr netip.Addr) string {
	if addr.BitLen()-p.Bits() < 2 {
		return ""
	}
	first := p.Masked().Addr()
	if addr == first {
		if addr.Is6() {
			return "routers' anycast"
		}
		return "network"
	}
	if next := addr.Next(); addr.Is4() && (!next.IsValid() || !p.Contains(next)) {
		return "broadcast"
	}
	return ""
}
