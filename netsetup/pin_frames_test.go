package netsetup_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"vmrun/netsetup/nettest/wire"
)

// The guest that is pinned, and somebody else.
var (
	ownMAC     = mac(0x11)
	ownAddr4   = "192.0.2.10"
	ownAddr6   = "2001:db8::10"
	ownListed  = "fe80::10"
	ownDerived = "fe80::5054:ff:fe00:11" // of ownMAC (RFC 4291, appendix A)

	foreignMAC   = mac(0x66)
	foreignAddr4 = "192.0.2.66"
	foreignAddr6 = "2001:db8::66"
	foreignLocal = "fe80::5054:ff:fe00:66"
)

// kind is a frame that has a name.
type kind struct {
	name  string
	frame []byte
}

func u16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func zeros(n int) []byte { return make([]byte, n) }

// ethernet is a frame to whoever the test sends it to.
func ethernet(from net.HardwareAddr, etherType uint16, payload ...[]byte) []byte {
	return slices.Concat(wire.Broadcast, from, u16(etherType), slices.Concat(payload...))
}

func own(etherType uint16, payload ...[]byte) []byte { return ethernet(ownMAC, etherType, payload...) }

func arp(op uint16, sender net.HardwareAddr, addr string, target net.HardwareAddr, targetAddr string) []byte {
	a, b := netip.MustParseAddr(addr), netip.MustParseAddr(targetAddr)
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4}, u16(op), sender, a.AsSlice(), target, b.AsSlice())
}

// ipv4 is a packet with options, whose checksum is 0 and nobody's business here.
func ipv4(from string, protocol byte, fragment uint16, options []byte, payload ...[]byte) []byte {
	data := slices.Concat(payload...)
	src := netip.MustParseAddr(from).As4()
	return slices.Concat([]byte{0x45 + byte(len(options)/4), 0}, u16(uint16(20+len(options)+len(data))), zeros(2), u16(fragment),
		[]byte{64, protocol, 0, 0}, src[:], []byte{192, 0, 2, 1}, options, data)
}

func own4(protocol byte, payload ...[]byte) []byte {
	return own(unix.ETH_P_IP, ipv4(ownAddr4, protocol, 0, nil, payload...))
}

func ipv6(from string, next byte, payload ...[]byte) []byte {
	data := slices.Concat(payload...)
	src, dst := netip.MustParseAddr(from).As16(), netip.MustParseAddr("ff02::1").As16()
	return slices.Concat([]byte{0x60, 0, 0, 0}, u16(uint16(len(data))), []byte{next, 255}, src[:], dst[:], data)
}

func from6(addr string, next byte, payload ...[]byte) []byte {
	return own(unix.ETH_P_IPV6, ipv6(addr, next, payload...))
}

// extension is an IPv6 extension header of 8 bytes and more, filled with PadN
// (RFC 8200, 4.2).
func extension(next byte, more int) []byte {
	return slices.Concat([]byte{next, byte(more), 1, byte(4 + 8*more)}, zeros(4+8*more))
}

// routerAlert is the hop-by-hop header that MLD has (RFC 2711).
func routerAlert() []byte { return []byte{unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0} }

// fragment6 is a fragment header; offset in units of 8 bytes.
func fragment6(next byte, offset uint16, more uint16) []byte {
	return slices.Concat([]byte{next, 0}, u16(offset<<3|more), []byte{1, 2, 3, 4})
}

func udp(source, destination uint16, payload ...[]byte) []byte {
	data := slices.Concat(payload...)
	return slices.Concat(u16(source), u16(destination), u16(uint16(8+len(data))), zeros(2), data)
}

func tcp() []byte {
	return slices.Concat(u16(40000), u16(80), zeros(8), []byte{0x50, 2, 1, 0}, zeros(4))
}

// bootp is a DHCP message (RFC 951).
func bootp(op byte, client net.HardwareAddr) []byte {
	return slices.Concat([]byte{op, 1, 6, 0}, zeros(24), client, zeros(10+64+128), []byte{99, 130, 83, 99, 53, 1, 1, 255})
}

func icmp(kind byte, rest ...[]byte) []byte {
	return slices.Concat([]byte{kind, 0, 0, 0}, slices.Concat(rest...))
}

// discovery is a neighbour solicitation or advertisement (RFC 4861, 4.3 and 4.4).
func discovery(kind byte, target string, options ...[]byte) []byte {
	addr := netip.MustParseAddr(target).As16()
	return icmp(kind, zeros(4), addr[:], slices.Concat(options...))
}

func option(kind byte, mac net.HardwareAddr) []byte { return append([]byte{kind, 1}, mac...) }

func nonce() []byte { return []byte{14, 1, 1, 2, 3, 4, 5, 6} }

func advertisement() []byte { return icmp(134, []byte{64, 0, 7, 8}, zeros(8), option(1, ownMAC)) }

func snap(etherType uint16) []byte {
	return slices.Concat([]byte{0xaa, 0xaa, 3, 0, 0, 0}, u16(etherType))
}

// legitimate is what a guest with its addresses pinned sends.
func legitimate() []kind {
	const ip4, ip6, arpType = unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP
	alert := []byte{0x94, 4, 0, 0}
	return []kind{
		{"TCP over IPv4", own4(6, tcp())},
		{"TCP with IPv4 options", own(ip4, ipv4(ownAddr4, 6, 0, []byte{1, 1, 1, 0}, tcp()))},
		{"UDP over IPv4", own4(17, udp(5353, 5353))},
		{"echo over IPv4", own4(1, icmp(8, zeros(8)))},
		{"unreachable over IPv4", own4(1, icmp(3, zeros(8)))},
		{"first IPv4 fragment", own(ip4, ipv4(ownAddr4, 17, 0x2000, nil, udp(5353, 53), zeros(64)))},
		{"later IPv4 fragment that looks like DHCP", own(ip4, ipv4(ownAddr4, 17, 8, nil, udp(67, 68), zeros(64)))},
		{"GRE over IPv4", own4(47, zeros(40))},
		{"IPv6 in IPv4", own4(41, ipv6(foreignAddr6, 6, tcp()))},
		{"IGMP query of its own", own4(2, []byte{0x11, 0, 0, 0}, zeros(4))},
		{"DHCP discover", own(ip4, ipv4("0.0.0.0", 17, 0, nil, udp(68, 67, bootp(1, ownMAC))))},
		{"DHCP renewal", own4(17, udp(68, 67, bootp(1, ownMAC)))},
		{"IGMPv1 report without address", own(ip4, ipv4("0.0.0.0", 2, 0, nil, []byte{0x12, 0, 0, 0}, zeros(4)))},
		{"IGMPv2 report without address", own(ip4, ipv4("0.0.0.0", 2, 0, alert, []byte{0x16, 0, 0, 0}, zeros(4)))},
		{"IGMPv2 leave without address", own(ip4, ipv4("0.0.0.0", 2, 0, alert, []byte{0x17, 0, 0, 0}, zeros(4)))},
		{"IGMPv3 report without address", own(ip4, ipv4("0.0.0.0", 2, 0, alert, []byte{0x22, 0, 0, 0}, zeros(12)))},

		{"ARP request", own(arpType, arp(1, ownMAC, ownAddr4, zeros(6), "192.0.2.1"))},
		{"ARP reply", own(arpType, arp(2, ownMAC, ownAddr4, foreignMAC, foreignAddr4))},
		{"ARP announcement", own(arpType, arp(1, ownMAC, ownAddr4, zeros(6), ownAddr4))},
		{"ARP announcement as reply", own(arpType, arp(2, ownMAC, ownAddr4, wire.Broadcast, ownAddr4))},
		{"ARP probe", own(arpType, arp(1, ownMAC, "0.0.0.0", zeros(6), ownAddr4))},
		{"RARP as QEMU announces", own(unix.ETH_P_RARP, arp(3, ownMAC, "0.0.0.0", ownMAC, "0.0.0.0"))},

		{"TCP over IPv6", from6(ownAddr6, 6, tcp())},
		{"UDP over IPv6", from6(ownAddr6, 17, udp(5353, 5353))},
		{"UDP from the derived link-local", from6(ownDerived, 17, udp(5353, 5353))},
		{"UDP from the listed link-local", from6(ownListed, 17, udp(5353, 5353))},
		{"echo over IPv6", from6(ownAddr6, 58, icmp(128, zeros(8)))},
		{"packet too big", from6(ownAddr6, 58, icmp(2, zeros(8)))},
		{"SCTP over IPv6", from6(ownAddr6, 132, zeros(20))},
		{"ESP over IPv6", from6(ownAddr6, 50, zeros(40))},
		{"no next header", from6(ownAddr6, 59)},
		{"first IPv6 fragment of UDP", from6(ownAddr6, 44, fragment6(17, 0, 1), udp(5353, 53), zeros(64))},
		{"first IPv6 fragment of an echo", from6(ownAddr6, 44, fragment6(58, 0, 1), icmp(128, zeros(60)))},
		{"later IPv6 fragment that looks like an advertisement", from6(ownAddr6, 44, fragment6(58, 8, 0), advertisement())},
		{"tunnel with an encapsulation limit", from6(ownAddr6, 60, []byte{41, 0, 4, 1, 4, 1, 1, 0}, ipv6(foreignAddr6, 6, tcp()))},
		{"UDP behind destination options", from6(ownAddr6, 60, extension(17, 0), udp(5353, 53))},
		{"DHCPv6 client", from6(ownDerived, 17, udp(546, 547, zeros(20)))},
		{"DHCPv6 client at the listed link-local", from6(ownListed, 17, udp(546, 547, zeros(20)))},

		{"neighbour solicitation", from6(ownAddr6, 58, discovery(135, foreignAddr6, option(1, ownMAC)))},
		{"neighbour solicitation without option", from6(ownAddr6, 58, discovery(135, foreignAddr6))},
		{"neighbour advertisement", from6(ownAddr6, 58, discovery(136, ownAddr6, option(2, ownMAC)))},
		{"neighbour advertisement from the link-local", from6(ownDerived, 58, discovery(136, ownAddr6, option(2, ownMAC)))},
		{"neighbour advertisement without option", from6(ownDerived, 58, discovery(136, ownDerived))},
		{"router solicitation", from6(ownDerived, 58, icmp(133, zeros(4), option(1, ownMAC)))},
		{"router solicitation without option", from6(ownDerived, 58, icmp(133, zeros(4)))},
		{"router solicitation without address", from6("::", 58, icmp(133, zeros(4)))},
		{"duplicate detection", from6("::", 58, discovery(135, ownAddr6))},
		{"duplicate detection with a nonce", from6("::", 58, discovery(135, ownAddr6, nonce()))},
		{"duplicate detection of the derived link-local", from6("::", 58, discovery(135, ownDerived, nonce()))},
		{"duplicate detection of the listed link-local", from6("::", 58, discovery(135, ownListed))},
		{"MLDv1 report without address", from6("::", 0, routerAlert(), icmp(131, zeros(20)))},
		{"MLDv1 done without address", from6("::", 0, routerAlert(), icmp(132, zeros(20)))},
		{"MLDv2 report without address", from6("::", 0, routerAlert(), icmp(143, zeros(24)))},
		{"MLDv2 report", from6(ownDerived, 0, routerAlert(), icmp(143, zeros(24)))},
	}
}

// forged is what it must not send, by the counter.
func forged() map[string][]kind {
	const ip4, ip6, arpType, vlan, qinq = unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP, unix.ETH_P_8021Q, unix.ETH_P_8021AD
	nop := []byte{1, 1, 1, 0}
	tag := []byte{0, 5}
	return map[string][]kind{
		"mac": {
			{"foreign MAC", ethernet(foreignMAC, ip4, ipv4(ownAddr4, 6, 0, nil, tcp()))},
			{"multicast MAC", ethernet(net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}, ip4, ipv4(ownAddr4, 6, 0, nil, tcp()))},
			{"foreign MAC in a probe", ethernet(foreignMAC, arpType, arp(1, ownMAC, "0.0.0.0", zeros(6), ownAddr4))},
			{"foreign MAC with a tag", ethernet(foreignMAC, vlan, tag, u16(ip4), ipv4(ownAddr4, 6, 0, nil, tcp()))},
		},
		"ipv4": {
			{"foreign address", own(ip4, ipv4(foreignAddr4, 6, 0, nil, tcp()))},
			{"foreign address and UDP", own(ip4, ipv4(foreignAddr4, 17, 0, nil, udp(68, 67, bootp(1, ownMAC))))},
			{"foreign address in a later fragment", own(ip4, ipv4(foreignAddr4, 17, 8, nil, zeros(64)))},
			{"foreign address with options", own(ip4, ipv4(foreignAddr4, 6, 0, nop, tcp()))},
			{"link-local address", own(ip4, ipv4("169.254.1.1", 6, 0, nil, tcp()))},
			{"broadcast address", own(ip4, ipv4("255.255.255.255", 6, 0, nil, tcp()))},
			{"loopback address", own(ip4, ipv4("127.0.0.1", 6, 0, nil, tcp()))},
			{"no address and TCP", own(ip4, ipv4("0.0.0.0", 6, 0, nil, tcp()))},
			{"no address and an echo", own(ip4, ipv4("0.0.0.0", 1, 0, nil, icmp(8, zeros(8))))},
			{"no address and an IGMP query", own(ip4, ipv4("0.0.0.0", 2, 0, nil, []byte{0x11, 0, 0, 0}, zeros(4)))},
			{"IPv6 under the type of IPv4", own(ip4, ipv6(ownAddr6, 6, tcp()))},
		},
		"ipv6": {
			{"foreign address", from6(foreignAddr6, 6, tcp())},
			{"foreign link-local address", from6(foreignLocal, 17, udp(5353, 5353))},
			{"foreign address and an echo", from6(foreignAddr6, 58, icmp(128, zeros(8)))},
			{"foreign address in a later fragment", from6(foreignAddr6, 44, fragment6(17, 8, 0), zeros(64))},
			{"foreign advertisement", from6(foreignLocal, 58, advertisement())},
			{"loopback address", from6("::1", 6, tcp())},
			{"IPv4-mapped own address", from6("::ffff:"+ownAddr4, 6, tcp())},
			{"multicast address", from6("ff02::1", 6, tcp())},
			{"no address and TCP", from6("::", 6, tcp())},
			{"no address and DHCPv6", from6("::", 17, udp(546, 547))},
			{"no address and a fragment", from6("::", 44, fragment6(58, 0, 0), discovery(135, ownAddr6))},
			{"no address and an MLD query", from6("::", 0, routerAlert(), icmp(130, zeros(20)))},
			{"IPv4 under the type of IPv6", own(ip6, ipv4(ownAddr4, 6, 0, nil, tcp(), zeros(40)))},
		},
		"arp": {
			{"request with a foreign MAC", own(arpType, arp(1, foreignMAC, ownAddr4, zeros(6), "192.0.2.1"))},
			{"request with a foreign address", own(arpType, arp(1, ownMAC, foreignAddr4, zeros(6), "192.0.2.1"))},
			{"reply with a foreign MAC", own(arpType, arp(2, foreignMAC, ownAddr4, zeros(6), "192.0.2.1"))},
			{"reply with a foreign address", own(arpType, arp(2, ownMAC, foreignAddr4, zeros(6), "192.0.2.1"))},
			{"reply without address", own(arpType, arp(2, ownMAC, "0.0.0.0", zeros(6), "192.0.2.1"))},
			{"probe with a foreign MAC", own(arpType, arp(1, foreignMAC, "0.0.0.0", zeros(6), ownAddr4))},
			{"announcement of a foreign address", own(arpType, arp(1, ownMAC, foreignAddr4, zeros(6), foreignAddr4))},
			{"inverse request", own(arpType, arp(8, ownMAC, ownAddr4, zeros(6), "192.0.2.1"))},
			{"other hardware", own(arpType, []byte{0, 6}, arp(2, ownMAC, ownAddr4, zeros(6), "192.0.2.1")[2:])},
			{"other protocol", own(arpType, []byte{0, 1, 0x86, 0xdd}, arp(2, ownMAC, ownAddr4, zeros(6), "192.0.2.1")[4:])},
			{"other lengths", own(arpType, []byte{0, 1, 8, 0, 4, 6}, arp(2, ownMAC, ownAddr4, zeros(6), "192.0.2.1")[6:])},
			{"RARP reply", own(unix.ETH_P_RARP, arp(4, ownMAC, ownAddr4, foreignMAC, foreignAddr4))},
			{"RARP request for another", own(unix.ETH_P_RARP, arp(3, ownMAC, "0.0.0.0", foreignMAC, "0.0.0.0"))},
			{"RARP with a foreign MAC", own(unix.ETH_P_RARP, arp(3, foreignMAC, "0.0.0.0", ownMAC, "0.0.0.0"))},
		},
		"nd": {
			{"solicitation with a foreign MAC", from6(ownAddr6, 58, discovery(135, foreignAddr6, option(1, foreignMAC)))},
			{"solicitation with two MACs", from6(ownAddr6, 58, discovery(135, foreignAddr6, option(1, ownMAC), option(1, foreignMAC)))},
			{"solicitation with a MAC behind a nonce", from6(ownAddr6, 58, discovery(135, foreignAddr6, nonce(), option(1, foreignMAC)))},
			{"advertisement of a foreign address", from6(ownAddr6, 58, discovery(136, foreignAddr6, option(2, ownMAC)))},
			{"advertisement of a foreign link-local address", from6(ownDerived, 58, discovery(136, foreignLocal))},
			{"advertisement with a foreign MAC", from6(ownAddr6, 58, discovery(136, ownAddr6, option(2, foreignMAC)))},
			{"advertisement with two MACs", from6(ownAddr6, 58, discovery(136, ownAddr6, option(2, ownMAC), option(2, foreignMAC)))},
			{"router solicitation with a foreign MAC", from6(ownDerived, 58, icmp(133, zeros(4), option(1, foreignMAC)))},
			{"router solicitation without address, with a MAC", from6("::", 58, icmp(133, zeros(4), option(1, ownMAC)))},
			{"detection of a foreign address", from6("::", 58, discovery(135, foreignAddr6))},
			{"detection with a MAC", from6("::", 58, discovery(135, ownAddr6, option(1, foreignMAC)))},
			{"advertisement without address", from6("::", 58, discovery(136, ownAddr6, option(2, ownMAC)))},
			{"solicitation behind hop-by-hop options", from6(ownAddr6, 0, extension(58, 0), discovery(135, foreignAddr6, option(1, foreignMAC)))},
			{"advertisement behind destination options", from6(ownAddr6, 60, extension(58, 0), discovery(136, foreignAddr6, option(2, foreignMAC)))},
			{"advertisement behind a routing header", from6(ownAddr6, 43, extension(58, 0), discovery(136, foreignAddr6, option(2, foreignMAC)))},
			{"advertisement in an only fragment", from6(ownAddr6, 44, fragment6(58, 0, 0), discovery(136, foreignAddr6, option(2, foreignMAC)))},
			{"advertisement in a first fragment", from6(ownAddr6, 44, fragment6(58, 0, 1), discovery(136, ownAddr6))},
		},
		"dhcp": {
			{"offer", own4(17, udp(67, 68, bootp(2, foreignMAC)))},
			{"offer from another port", own4(17, udp(5000, 68, bootp(2, foreignMAC)))},
			{"offer without address", own(ip4, ipv4("0.0.0.0", 17, 0, nil, udp(67, 68, bootp(2, foreignMAC))))},
			{"relayed request", own4(17, udp(67, 67, bootp(1, foreignMAC)))},
			{"discover of another client", own(ip4, ipv4("0.0.0.0", 17, 0, nil, udp(68, 67, bootp(1, foreignMAC))))},
			{"reply to a server", own(ip4, ipv4("0.0.0.0", 17, 0, nil, udp(68, 67, bootp(2, ownMAC))))},
			{"release of another client", own4(17, udp(68, 67, bootp(1, foreignMAC)))},
			{"request of another client from another port", own4(17, udp(5000, 67, bootp(1, foreignMAC)))},
			{"request of other hardware", own4(17, udp(68, 67, []byte{1, 6, 6}, bootp(1, ownMAC)[3:]))},
			{"request in a fragment", own(ip4, ipv4(ownAddr4, 17, 0x2000, nil, udp(68, 67, bootp(1, ownMAC))))},
			{"request without address in a fragment", own(ip4, ipv4("0.0.0.0", 17, 0x2000, nil, udp(68, 67, bootp(1, ownMAC))))},
			{"offer in a first fragment", own(ip4, ipv4(ownAddr4, 17, 0x2000, nil, udp(67, 68, bootp(2, foreignMAC))))},
			{"other UDP without address", own(ip4, ipv4("0.0.0.0", 17, 0, nil, udp(5353, 5353)))},
			{"DHCPv6 reply", from6(ownDerived, 17, udp(547, 546, zeros(20)))},
			{"DHCPv6 reply from another port", from6(ownDerived, 17, udp(5000, 546, zeros(20)))},
			{"DHCPv6 relay", from6(ownAddr6, 17, udp(547, 547, zeros(20)))},
			{"DHCPv6 reply behind options", from6(ownDerived, 60, extension(17, 0), udp(547, 546, zeros(20)))},
			{"DHCPv6 reply in a first fragment", from6(ownDerived, 44, fragment6(17, 0, 1), udp(547, 546, zeros(24)))},
		},
		"router": {
			{"advertisement", from6(ownDerived, 58, advertisement())},
			{"advertisement behind hop-by-hop options", from6(ownDerived, 0, extension(58, 0), advertisement())},
			{"advertisement behind destination options", from6(ownDerived, 60, extension(58, 0), advertisement())},
			{"advertisement in an only fragment", from6(ownDerived, 44, fragment6(58, 0, 0), advertisement())},
			{"advertisement in a first fragment", from6(ownDerived, 44, fragment6(58, 0, 1), advertisement())},
			{"redirect", from6(ownDerived, 58, icmp(137, zeros(36)))},
			{"renumbering", from6(ownDerived, 58, icmp(138, zeros(12)))},
			{"inverse discovery", from6(ownDerived, 58, icmp(142, zeros(4), option(1, foreignMAC), option(2, foreignMAC)))},
			{"multicast router", from6(ownDerived, 0, routerAlert(), icmp(151, zeros(4)))},
			{"IPv4 redirect", own4(1, icmp(5, zeros(28)))},
			{"IPv4 advertisement", own4(1, icmp(9, zeros(12)))},
		},
		"other": {
			{"own address with a tag", own(vlan, tag, u16(ip4), ipv4(ownAddr4, 6, 0, nil, tcp()))},
			{"foreign address with a priority", own(vlan, []byte{0xe0, 0}, u16(ip4), ipv4(foreignAddr4, 6, 0, nil, tcp()))},
			{"foreign ARP with a priority", own(vlan, []byte{0xe0, 0}, u16(arpType), arp(2, foreignMAC, foreignAddr4, zeros(6), "192.0.2.1"))},
			{"advertisement with a service tag", own(qinq, tag, u16(ip6), ipv6(ownDerived, 58, advertisement()))},
			{"foreign address with two tags", own(qinq, tag, u16(vlan), tag, u16(ip4), ipv4(foreignAddr4, 6, 0, nil, tcp()))},
			{"foreign address in SNAP", own(60, snap(ip4), ipv4(foreignAddr4, 6, 0, nil, tcp()))},
			{"spanning tree", own(38, []byte{0x42, 0x42, 3}, zeros(35))},
			{"type 0", own(0, ipv4(foreignAddr4, 6, 0, nil, tcp()))},
			{"LLDP", own(unix.ETH_P_LLDP, zeros(46))},
			{"EAPOL", own(unix.ETH_P_PAE, zeros(46))},
			{"PPPoE", own(unix.ETH_P_PPP_DISC, zeros(46))},
			{"MPLS", own(unix.ETH_P_MPLS_UC, []byte{0, 0, 1, 64}, ipv4(foreignAddr4, 6, 0, nil, tcp()))},
			{"pause", own(unix.ETH_P_PAUSE, []byte{0, 1, 0xff, 0xff}, zeros(42))},
			{"DHCP offer behind IPv4 options", own(ip4, ipv4(ownAddr4, 17, 0, nop, udp(67, 68, bootp(2, foreignMAC))))},
			{"IPv4 redirect behind options", own(ip4, ipv4(ownAddr4, 1, 0, nop, icmp(5, zeros(28))))},
			{"advertisement behind long options", from6(ownDerived, 0, extension(58, 1), advertisement())},
			{"advertisement behind two headers", from6(ownDerived, 0, extension(60, 0), extension(58, 0), advertisement())},
			{"advertisement behind options in a fragment", from6(ownDerived, 44, fragment6(60, 0, 1), extension(58, 0), advertisement())},
			{"options alone in a first fragment", from6(ownDerived, 44, fragment6(60, 0, 1), extension(58, 0))},
			{"fragment of a fragment", from6(ownDerived, 44, fragment6(44, 0, 1), fragment6(58, 0, 0), advertisement())},
			{"advertisement behind authentication", from6(ownDerived, 51, []byte{58, 4, 0, 0}, zeros(20), advertisement())},
			{"advertisement behind shim6", from6(ownDerived, 140, extension(58, 0), advertisement())},
			{"DHCPv6 reply behind long options", from6(ownDerived, 60, extension(17, 1), udp(547, 546, zeros(20)))},
		},
	}
}

// forgedMAC and anything are what a guest with its MAC pinned must not send, and
// may.
func forgedMAC() map[string][]kind {
	const vlan, qinq = unix.ETH_P_8021Q, unix.ETH_P_8021AD
	reply, tag := arp(2, foreignMAC, ownAddr4, zeros(6), "192.0.2.1"), []byte{0, 0}
	return map[string][]kind{
		"mac": forged()["mac"],
		"arp": {
			{"foreign MAC", own(unix.ETH_P_ARP, reply)},
			{"foreign MAC in RARP", own(unix.ETH_P_RARP, reply)},
			{"foreign MAC with a tag", own(vlan, tag, u16(unix.ETH_P_ARP), reply)},
			{"foreign MAC with a service tag", own(qinq, tag, u16(unix.ETH_P_ARP), reply)},
			{"foreign MAC with two tags", own(qinq, tag, u16(vlan), tag, u16(unix.ETH_P_ARP), reply)},
		},
		"other": {
			{"three tags", own(vlan, tag, u16(vlan), tag, u16(vlan), tag, u16(unix.ETH_P_ARP), reply)},
		},
	}
}

func anything() []kind {
	all := legitimate()
	for _, what := range []string{"ipv4", "ipv6", "nd", "dhcp", "router"} {
		all = append(all, forged()[what]...)
	}
	return append(all,
		kind{"ARP with a foreign address", own(unix.ETH_P_ARP, arp(2, ownMAC, foreignAddr4, zeros(6), "192.0.2.1"))},
		kind{"tagged IPv4", own(unix.ETH_P_8021Q, []byte{0, 5}, u16(unix.ETH_P_IP), ipv4(foreignAddr4, 6, 0, nil, tcp()))},
		kind{"tagged ARP", own(unix.ETH_P_8021Q, []byte{0, 5}, u16(unix.ETH_P_ARP), arp(2, ownMAC, foreignAddr4, zeros(6), "192.0.2.1"))},
		kind{"two tags", own(unix.ETH_P_8021AD, []byte{0, 5}, u16(unix.ETH_P_8021Q), []byte{0, 6}, u16(unix.ETH_P_IPV6), zeros(40))},
		kind{"LLDP", own(unix.ETH_P_LLDP, zeros(46))},
		kind{"spanning tree", own(38, []byte{0x42, 0x42, 3}, zeros(35))},
	)
}
