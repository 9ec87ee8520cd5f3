package configs

import (
	"fmt"
	"net/netip"
)

// addresses checks the list of the guest's own addresses.
func (c *resolver) addresses(key string, texts []string) []netip.Addr {
	var addrs []netip.Addr
	seen := map[netip.Addr]bool{}
	for i, text := range texts {
		if c.isKnown(indexKey(key, i)) {
			continue
		}
		addr, err := parseAddress(text)
		if err != nil {
			c.addf(indexKey(key, i), "%v", err)
			continue
		}
		if seen[addr] {
			c.addf(indexKey(key, i), "%s is in the list already: remove one", addr)
			continue
		}
		seen[addr] = true
		addrs = append(addrs, addr)
	}
	return addrs
}

// parseAddress reads an IPv4 or IPv6 address that a guest can have as its own:
// unicast, and not of the loopback interface.
func parseAddress(text string) (netip.Addr, error) {
	const hint = "list the guest's own addresses"
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return netip.Addr{}, fmt.Errorf("%s has a prefix, which is not a part of the address: write %q", quote(text), prefix.Addr())
	}
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%s is not an IP address: write it as \"192.0.2.10\" or \"2001:db8::10\"", quote(text))
	case addr.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s has a zone, and the NIC is its zone: write %q", quote(text), addr.WithZone(""))
	case addr.Is4In6():
		return netip.Addr{}, fmt.Errorf("%s is an IPv4 address in IPv6's form, which is on no wire: write %q", quote(text), addr.Unmap())
	case addr.IsUnspecified():
		return netip.Addr{}, fmt.Errorf("%s is nobody's address: %s", quote(text), hint)
	case addr.IsLoopback():
		return netip.Addr{}, fmt.Errorf("%s is a loopback address, which no NIC has: %s", quote(text), hint)
	case addr.IsMulticast():
		return netip.Addr{}, fmt.Errorf("%s is a multicast address, not one guest's: %s", quote(text), hint)
	case addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.Addr{}, fmt.Errorf("%s is the broadcast address, not one guest's: %s", quote(text), hint)
	}
	return addr, nil
}
