package netsetup

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// The rules are an allow list: a field that a frame is too short for ends its
// rule without a match, so what ends in a drop whenever it is not accepted
// cannot be slipped past by cutting a frame short.
//
// Fields are read at fixed offsets from the Ethernet and the network header.
// What nftables knows of the transport header on egress is not used: kernels in
// the field have it at the wrong place, or not at all for short datagrams
// (Linux commits "set transport offset from mac header for netdev/egress" and
// "restore IP sanity checks for netdev/egress"). So headers of which the place
// depends on others are not followed, but refused.

// The names of the counters are those of Refusals in JSON.
const (
	refuseMAC    = "mac"
	refuseIPv4   = "ipv4"
	refuseIPv6   = "ipv6"
	refuseARP    = "arp"
	refuseND     = "nd"
	refuseDHCP   = "dhcp"
	refuseRouter = "router"
	refuseOther  = "other"
)

// counters lists the fields of r by their counters' names.
func (r *Refusals) counters() map[string]*uint64 {
	return map[string]*uint64{
		refuseMAC: &r.MAC, refuseIPv4: &r.IPv4, refuseIPv6: &r.IPv6, refuseARP: &r.ARP,
		refuseND: &r.ND, refuseDHCP: &r.DHCP, refuseRouter: &r.Router, refuseOther: &r.Other,
	}
}

// Where fields are. An IPv4 header has ip4Header bytes without options.
const (
	etherSource = 6
	etherType   = 12
	etherLength = 14
	vlanLength  = 4

	ip4Fragment = 6
	ip4Protocol = 9
	ip4Source   = 12
	ip4Header   = 20

	ip6PayloadLength = 4
	ip6NextHeader    = 6
	ip6Source        = 8
	ip6Header        = 40
	ip6ExtHeader     = 8 // of the extension headers that are read
)

// pinRules collects the rules of one child.
type pinRules struct {
	conn   *nftables.Conn
	table  *nftables.Table
	mac    net.HardwareAddr
	addrs4 [][]byte
	addrs6 [][]byte
	sets   uint32 // made so far
	err    error
}

// addPinRules adds to conn's transaction what c.Pin asks for.
func addPinRules(conn *nftables.Conn, table *nftables.Table, c Child) error {
	p := &pinRules{conn: conn, table: table, mac: c.MAC}
	for _, a := range append(slices.Clone(c.Addresses), linkLocal(c.MAC)) {
		if a = a.Unmap(); a.Is4() {
			p.addrs4 = append(p.addrs4, a.AsSlice())
		} else {
			p.addrs6 = append(p.addrs6, a.AsSlice())
		}
	}
	p.base(c.Name)
	switch c.Pin {
	case configs.PinMAC:
		p.pinMAC()
	case configs.PinAll:
		p.pinAll()
	default:
		return fmt.Errorf("unknown pin %q", c.Pin)
	}
	return p.err
}

// linkLocal is the link-local address that is made of a MAC (RFC 4291, 2.5.6
// and appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// base adds the counters and the chain on the device. Its policy is drop, for
// the moment between the chain's first appearance and that of its rules.
func (p *pinRules) base(device string) {
	for name := range new(Refusals).counters() {
		p.conn.AddObj(&nftables.CounterObj{Table: p.table, Name: name})
	}
	policy := nftables.ChainPolicyDrop
	p.conn.AddChain(&nftables.Chain{
		Table: p.table, Name: "egress", Device: device, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookEgress, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
	p.chains("own")
	p.add("egress", ether(etherSource, p.mac...), goTo("own"))
	p.add("egress", drop(refuseMAC))
}

// pinMAC lets through all but ARP with a foreign sender, behind VLAN tags too:
// those of a priority alone are no boundary (IEEE 802.1Q, 6.9.1), and nobody
// uses more than two.
func (p *pinRules) pinMAC() {
	chains := []string{"own", "tag", "tags"}
	p.chains(chains...)
	for n, name := range chains {
		typeAt := uint32(etherType + n*vlanLength)
		tag := p.in(ether(typeAt), u16(unix.ETH_P_8021Q), u16(unix.ETH_P_8021AD))
		p.add(name, p.in(ether(typeAt), u16(unix.ETH_P_ARP), u16(unix.ETH_P_RARP)),
			not(ether(typeAt+2+8, p.mac...)), drop(refuseARP))
		if n == len(chains)-1 {
			p.add(name, tag, drop(refuseOther))
		} else {
			p.add(name, tag, goTo(chains[n+1]))
		}
		p.add(name, accept())
	}
}

func (p *pinRules) pinAll() {
	p.chains("arp", "rarp", "ip4", "ip4-own", "ip4-none", "udp4", "icmp4",
		"ip6", "ip6-own", "ip6-none", "udp6", "icmp6", "ext6", "dad", "ns", "na", "rs")
	p.add("own", ether(etherType, u16(unix.ETH_P_IP)...), goTo("ip4"))
	p.add("own", ether(etherType, u16(unix.ETH_P_IPV6)...), goTo("ip6"))
	p.add("own", ether(etherType, u16(unix.ETH_P_ARP)...), goTo("arp"))
	p.add("own", ether(etherType, u16(unix.ETH_P_RARP)...), goTo("rarp"))
	p.add("own", drop(refuseOther))
	p.arp()
	p.ip4()
	p.udp4()
	p.ip6()
	p.icmp6()
	p.ext6()
}

// arp lets through what the guest says of itself (RFC 826), and probes without a
// sender's address (RFC 5227). By RARP it may ask for its own address
// (RFC 903), which is how QEMU tells switches where a guest has moved
// (net/announce.c).
func (p *pinRules) arp() {
	const sender, address, target = etherLength + 8, etherLength + 14, etherLength + 18
	header := func(op byte) match { return ether(etherLength, 0, 1, 8, 0, 6, 4, 0, op) }
	const request, reply, reverseRequest = 1, 2, 3
	own := ether(sender, p.mac...)
	for _, op := range []byte{request, reply} {
		p.add("arp", header(op), own, p.in(ether(address), p.addrs4...), accept())
	}
	p.add("arp", header(request), own, ether(address, 0, 0, 0, 0), accept())
	p.add("arp", drop(refuseARP))
	p.add("rarp", header(reverseRequest), own, ether(address, 0, 0, 0, 0), ether(target, p.mac...), accept())
	p.add("rarp", drop(refuseARP))
}

// ip4 looks at the source. Without an address a guest may be a DHCP client and
// report its groups.
func (p *pinRules) ip4() {
	p.add("ip4", not(masked(ip(0, 0x40), 0xf0)), drop(refuseIPv4))
	p.add("ip4", p.in(ip(ip4Source), p.addrs4...), goTo("ip4-own"))
	p.add("ip4", ip(ip4Source, 0, 0, 0, 0), goTo("ip4-none"))
	p.add("ip4", drop(refuseIPv4))

	p.add("ip4-own", ip(ip4Protocol, unix.IPPROTO_TCP), accept())
	p.add("ip4-own", not(masked(ip(ip4Fragment, 0, 0), 0x1f, 0xff)), accept()) // the first fragment was looked at
	p.add("ip4-own", ip(ip4Protocol, unix.IPPROTO_UDP), goTo("udp4"))
	p.add("ip4-own", ip(ip4Protocol, unix.IPPROTO_ICMP), goTo("icmp4"))
	p.add("ip4-own", accept())

	const redirect, routerAdvertisement = 5, 9 // RFC 792, RFC 1256
	p.add("icmp4", not(ip(0, 0x45)), drop(refuseOther))
	p.add("icmp4", p.notIn(ip(ip4Header), []byte{redirect}, []byte{routerAdvertisement}), accept())
	p.add("icmp4", drop(refuseRouter))

	const routerAlert = 4 // bytes of options in front of most of IGMP
	for _, options := range []byte{0, routerAlert} {
		p.add("ip4-none", ip(0, 0x45+options/4), whole4(), ip(ip4Protocol, unix.IPPROTO_IGMP),
			p.in(ip(ip4Header+uint32(options)), []byte{0x12}, []byte{0x16}, []byte{0x17}, []byte{0x22}), accept())
	}
	p.add("ip4-none", ip(0, 0x45), ip(ip4Protocol, unix.IPPROTO_UDP),
		ip(ip4Header, 0, 68, 0, 67), p.bootRequest(), accept())
	p.add("ip4-none", ip(ip4Protocol, unix.IPPROTO_UDP), drop(refuseDHCP))
	p.add("ip4-none", drop(refuseIPv4))
}

// udp4 knows a DHCP server by either port: clients look at the one that they
// are spoken to. To a server a guest names its own hardware address.
func (p *pinRules) udp4() {
	const server, client = 67, 68 // RFC 2131, 4.1
	const source, destination = ip4Header, ip4Header + 2
	p.add("udp4", not(ip(0, 0x45)), drop(refuseOther))
	p.add("udp4", ip(source, u16(server)...), drop(refuseDHCP))
	p.add("udp4", p.notIn(ip(destination), u16(server), u16(client)), accept())
	p.add("udp4", ip(destination, u16(server)...), p.bootRequest(), accept())
	p.add("udp4", drop(refuseDHCP))
}

// bootRequest matches a client's message with the guest's own hardware address
// (RFC 951, op, htype, hlen and chaddr), which in a fragment could be replaced.
func (p *pinRules) bootRequest() match {
	const message = ip4Header + 8
	return slices.Concat(whole4(), ip(message, 1, 1, 6), ip(message+28, p.mac...))
}

// whole4 matches what is no fragment.
func whole4() match { return masked(ip(ip4Fragment, 0, 0), 0x3f, 0xff) }

// ip6 looks at the source. Without an address a guest may detect duplicates of
// its own addresses, solicit routers without naming its MAC (RFC 4861, 4.1 and
// 4.3), and report its groups (RFC 3590, RFC 3810).
func (p *pinRules) ip6() {
	p.add("ip6", not(masked(ip(0, 0x60), 0xf0)), drop(refuseIPv6))
	p.add("ip6", p.in(ip(ip6Source), p.addrs6...), goTo("ip6-own"))
	p.add("ip6", ip(ip6Source, make([]byte, 16)...), goTo("ip6-none"))
	p.add("ip6", drop(refuseIPv6))

	p.add("ip6-own", ip(ip6NextHeader, unix.IPPROTO_TCP), accept())
	p.add("ip6-own", ip(ip6NextHeader, unix.IPPROTO_UDP), goTo("udp6"))
	p.add("ip6-own", ip(ip6NextHeader, unix.IPPROTO_ICMPV6), goTo("icmp6"))
	p.add("ip6-own", p.in(ip(ip6NextHeader), readHeaders()...), goTo("ext6"))
	p.add("ip6-own", p.in(ip(ip6NextHeader), hiddenHeaders()...), drop(refuseOther))
	p.add("ip6-own", accept())

	p.add("udp6", clientPorts6(ip6Header), accept())
	p.add("udp6", drop(refuseDHCP))

	icmp := ip(ip6NextHeader, unix.IPPROTO_ICMPV6)
	p.add("ip6-none", icmp, ip(ip6Header, typeNS), p.in(ip(ip6Header+8), p.addrs6...), goTo("dad"))
	p.add("ip6-none", icmp, ip(ip6Header, typeRS), payload6(8), accept())
	p.add("ip6-none", ip(ip6NextHeader, unix.IPPROTO_HOPOPTS), ip(ip6Header, unix.IPPROTO_ICMPV6, 0),
		p.in(ip(ip6Header+ip6ExtHeader), []byte{131}, []byte{132}, []byte{143}), accept())
	p.add("ip6-none", icmp, drop(refuseND))
	p.add("ip6-none", drop(refuseIPv6))

	const nonce = 14 // RFC 7527
	p.add("dad", payload6(24), accept())
	p.add("dad", payload6(32), ip(ip6Header+24, nonce, 1), accept())
	p.add("dad", drop(refuseND))
}

// clientPorts6 matches UDP that no DHCPv6 server sends (RFC 8415, 7.2).
func clientPorts6(at uint32) match {
	const client, server = 546, 547
	return slices.Concat(not(ip(at, u16(server)...)), not(ip(at+2, u16(client)...)))
}

// ICMPv6 types (RFC 4861).
const (
	typeRS = 133
	typeNS = 135
	typeNA = 136
)

// hostTypes are the ICMPv6 types that any host may send and that claim nothing:
// errors, echo and MLD up to 132, node information, and MLDv2 reports.
func (p *pinRules) hostTypes(at uint32) []match {
	return []match{ipAtMost(at, 132), p.in(ip(at), []byte{139}, []byte{140}, []byte{143})}
}

// icmp6 lets neighbour discovery through when the address and the MAC that it
// claims are the guest's, and the MAC is its only option.
func (p *pinRules) icmp6() {
	for _, m := range p.hostTypes(ip6Header) {
		p.add("icmp6", m, accept())
	}
	p.add("icmp6", ip(ip6Header, typeNS), goTo("ns"))
	p.add("icmp6", ip(ip6Header, typeNA), p.in(ip(ip6Header+8), p.addrs6...), goTo("na"))
	p.add("icmp6", ip(ip6Header, typeNA), drop(refuseND))
	p.add("icmp6", ip(ip6Header, typeRS), goTo("rs"))
	p.add("icmp6", drop(refuseRouter))

	const sourceOption, targetOption = 1, 2
	p.ownOption("ns", 24, sourceOption)
	p.ownOption("na", 24, targetOption)
	p.ownOption("rs", 8, sourceOption)
}

// ownOption lets a neighbour discovery message of length bytes through with no
// option, or with one that has the guest's MAC (RFC 4861, 4.6.1).
func (p *pinRules) ownOption(chain string, length uint16, option byte) {
	own := append([]byte{option, 1}, p.mac...)
	p.add(chain, payload6(length), accept())
	p.add(chain, payload6(length+8), ip(ip6Header+uint32(length), own...), accept())
	p.add(chain, drop(refuseND))
}

// ext6 reads behind one extension header, or into the first fragment, as far as
// the header has 8 bytes; a message could hide behind two, or a longer one (RFC
// 7113). No neighbour discovery is fragmented or has such headers (RFC 6980).
func (p *pinRules) ext6() {
	const next, behind = ip6Header, ip6Header + ip6ExtHeader
	fragment := ip(ip6NextHeader, unix.IPPROTO_FRAGMENT)
	icmp := ip(next, unix.IPPROTO_ICMPV6, 0)
	udp := ip(next, unix.IPPROTO_UDP, 0)

	p.add("ext6", fragment, not(masked(ip(next+2, 0, 0), 0xff, 0xf8)), accept()) // the first fragment was looked at
	for _, m := range p.hostTypes(behind) {
		p.add("ext6", icmp, m, accept())
	}
	p.add("ext6", icmp, p.in(ip(behind), []byte{typeRS},
		[]byte{typeNS}, []byte{typeNA}), drop(refuseND))
	p.add("ext6", icmp, drop(refuseRouter))
	p.add("ext6", udp, clientPorts6(behind), accept())
	p.add("ext6", udp, drop(refuseDHCP))
	p.add("ext6", p.notIn(ip(next), slices.Concat(readHeaders(), hiddenHeaders(),
		[][]byte{{unix.IPPROTO_ICMPV6}, {unix.IPPROTO_UDP}})...), accept())
	p.add("ext6", drop(refuseOther))
}

// readHeaders are the extension headers that ext6 reads.
func readHeaders() [][]byte {
	return [][]byte{{unix.IPPROTO_HOPOPTS}, {unix.IPPROTO_ROUTING}, {unix.IPPROTO_FRAGMENT}, {unix.IPPROTO_DSTOPTS}}
}

// hiddenHeaders are the others that can have one behind them: authentication,
// mobility, HIP, shim6 and two for experiments (IANA, IPv6 Extension Header
// Types). What ESP has inside is for those who share its key.
func hiddenHeaders() [][]byte {
	return [][]byte{{unix.IPPROTO_AH}, {unix.IPPROTO_MH}, {139}, {140}, {253}, {254}}
}
