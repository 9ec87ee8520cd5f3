package configs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// addresses checks the list of the guest's own addresses, and returns those with a
// prefix once more with it.
func (c *resolver) addresses(key string, texts []string) (addrs []netip.Addr, prefixes []netip.Prefix) {
	seen := map[netip.Addr]bool{}
	for i, text := range texts {
		if c.isKnown(indexKey(key, i)) {
			continue
		}
		bare, length, hasPrefix := strings.Cut(text, "/")
		addr, err := parseAddress(bare)
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
		if !hasPrefix {
			continue
		}
		prefix, err := parseSubnet(addr, length)
		if err != nil {
			c.addf(indexKey(key, i), "%s: %v", quote(text), err)
			continue
		}
		prefixes = append(prefixes, prefix)
	}
	return addrs, prefixes
}

// parseSubnet reads the length of the prefix of the subnet that an address is in.
func parseSubnet(addr netip.Addr, length string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(addr.String() + "/" + length)
	switch {
	case err != nil || p.Bits() == 0:
		return netip.Prefix{}, fmt.Errorf("the prefix is a number of bits, 1 to %d", addr.BitLen())
	case p.Bits() >= addr.BitLen()-1: // RFC 3021, RFC 6164: both addresses are hosts'
		return p, nil
	case p.Masked().Addr() == addr:
		return netip.Prefix{}, errors.New("it is the subnet, and no address in it: write one of the guest's own")
	case addr.Is4() && lastOf(p) == addr:
		return netip.Prefix{}, errors.New("it is the subnet's broadcast address: write one of the guest's own")
	}
	return p, nil
}

// lastOf is the last address of an IPv4 subnet.
func lastOf(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|1<<(32-p.Bits())-1)
	return netip.AddrFrom4(a)
}

// addressWords writes the addresses of a NIC as its spec has them.
func (n NIC) addressWords() []string {
	var words []string
	for _, addr := range n.Addresses {
		word := addr.String()
		if i := slices.IndexFunc(n.Prefixes, func(p netip.Prefix) bool { return p.Addr() == addr }); i >= 0 {
			word = n.Prefixes[i].String()
		}
		words = append(words, word)
	}
	return words
}

// parseAddress reads an IPv4 or IPv6 address that a guest can have as its own:
// unicast, and not of the loopback interface.
func parseAddress(text string) (netip.Addr, error) {
	const hint = "list the guest's own addresses"
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
