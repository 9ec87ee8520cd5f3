package launcher

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"vmrun/netsetup"
)

// SourceSpec is the source of an address that nobody has seen yet: the spec says
// that the guest has it.
const SourceSpec netsetup.Source = "spec"

// GuestAddress is an address of a guest, and the NIC that has it.
type GuestAddress struct {
	NIC    string          `json:"nic"`
	IP     netip.Addr      `json:"ip"` // without zone
	Source netsetup.Source `json:"source"`
	Since  time.Time       `json:"since,omitzero"`
	Seen   time.Time       `json:"seen,omitzero"` // when the guest last used it, as far as is known
	// Expires is when its lease ends, unless it is renewed; zero without one.
	Expires time.Time `json:"expires,omitzero"`
	// Conflict is the MAC of another machine that claims it too.
	Conflict string `json:"conflict,omitempty"`
}

// LinkLocal reports whether the address is of use on one link only.
func (a GuestAddress) LinkLocal() bool { return a.IP.IsLinkLocalUnicast() }

// GuestAddresses are the addresses of all NICs, those first that serve best for
// reaching the guest: global ones before link-local ones, undisputed ones before
// those that another machine claims, IPv4 before IPv6.
func (s Status) GuestAddresses() []GuestAddress {
	list := []GuestAddress{}
	for _, n := range s.NICs {
		list = append(list, n.guestAddresses()...)
	}
	slices.SortStableFunc(list, func(a, b GuestAddress) int {
		return cmp.Or(
			falseFirst(a.LinkLocal(), b.LinkLocal()),
			falseFirst(a.Conflict != "", b.Conflict != ""),
			falseFirst(a.IP.Is6(), b.IP.Is6()),
		)
	})
	return list
}

// Address is the best address that the guest has used, or that its agent tells
// of, and is not link-local: to have it in the spec is not to be there.
func (s Status) Address() (string, bool) {
	for _, addr := range s.GuestAddresses() {
		if addr.Source != SourceSpec && !addr.LinkLocal() {
			return addr.IP.String(), true
		}
	}
	return "", false
}

func (n NICStatus) guestAddresses() []GuestAddress {
	var list []GuestAddress
	for _, text := range n.Addresses {
		ip, err := netip.ParseAddr(text)
		seen := slices.ContainsFunc(n.Learned, func(a netsetup.Address) bool { return a.IP == ip })
		if err == nil && !seen {
			list = append(list, GuestAddress{NIC: n.Name, IP: ip, Source: SourceSpec})
		}
	}
	for _, a := range n.Learned {
		list = append(list, GuestAddress{NIC: n.Name, IP: a.IP, Source: a.Source, Since: a.Since, Seen: a.Seen, Expires: a.Expires, Conflict: a.Conflict})
	}
	slices.SortStableFunc(list, func(a, b GuestAddress) int { return a.IP.Compare(b.IP) })
	return list
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// HostAddress is an address at which the host may reach a guest.
type HostAddress struct {
	NIC    string
	IP     netip.Addr
	Access bool   // by host access
	Why    string // the host has no way to it, or ""
}

// HostAddresses are the addresses at which the host may reach the guest, the best
// first: those that host access bears a route for, and then others of its spec and
// of its frames, which the host reaches only where something on the wire brings them
// back. What only an agent tells of is not among them: it may be another machine's.
func (s Status) HostAddresses() []HostAddress {
	var list []HostAddress
	for _, addr := range s.GuestAddresses() {
		i := slices.IndexFunc(s.NICs, func(n NICStatus) bool { return n.Name == addr.NIC })
		nic := s.NICs[i]
		if addr.LinkLocal() || addr.Conflict != "" || addr.Source == SourceAgent && !slices.Contains(nic.Declared, addr.IP.String()) {
			continue
		}
		list = append(list, HostAddress{NIC: addr.NIC, IP: addr.IP, Access: nic.HostAccess, Why: nic.Unrouted[addr.IP]})
	}
	slices.SortStableFunc(list, func(a, b HostAddress) int {
		return cmp.Or(falseFirst(a.Why != "", b.Why != ""), falseFirst(!a.Access, !b.Access))
	})
	return list
}
