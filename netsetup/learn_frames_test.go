package netsetup

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// The frames by which machines tell their addresses. Checksums are left out, as
// those of outgoing frames can be. An empty address is the unspecified one.

func ethernet(to, from net.HardwareAddr, kind uint16, payload ...[]byte) []byte {
	frame := binary.BigEndian.AppendUint16(slices.Concat(to, from), kind)
	frame = append(frame, slices.Concat(payload...)...)
	return append(frame, make([]byte, max(0, 60-len(frame)))...) // IEEE 802.3's shortest
}

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func addr4(s string) []byte { return addr(s, netip.IPv4Unspecified()) }
func addr6(s string) []byte { return addr(s, netip.IPv6Unspecified()) }

func addr(s string, or netip.Addr) []byte {
	if s == "" {
		return or.AsSlice()
	}
	return netip.MustParseAddr(s).AsSlice()
}

// ARPFrame is RFC 826's: op 1 asks, 2 answers.
func ARPFrame(from net.HardwareAddr, op byte, sender, target string) []byte {
	return ethernet(everybody, from, typeARP, []byte{0, 1, 8, 0, 6, 4, 0, op},
		from, addr4(sender), make([]byte, 6), addr4(target))
}

func udp4(from net.HardwareAddr, source, target string, ports [2]uint16, payload []byte) []byte {
	header := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protoUDP, 0, 0}
	binary.BigEndian.PutUint16(header[2:], uint16(ipv4Length+udpLength+len(payload)))
	return ethernet(everybody, from, typeIPv4, header, addr4(source), addr4(target), udp(ports, payload))
}

func udp(ports [2]uint16, payload []byte) []byte {
	header := binary.BigEndian.AppendUint16(nil, ports[0])
	header = binary.BigEndian.AppendUint16(header, ports[1])
	header = binary.BigEndian.AppendUint16(header, uint16(udpLength+len(payload)))
	return slices.Concat(header, []byte{0, 0}, payload)
}

// DHCP4 is a message of RFC 2131.
type DHCP4 struct {
	ID              uint32
	Kind            byte
	Client          net.HardwareAddr
	Source          string // of the packet
	CIAddr, YIAddr  string
	Requested       string
	Lease           uint32 // 0: no option
	OtherOperations bool   // a request in a reply's clothes, and the reverse
}

// Frame is the message, from a client when that is its sender.
func (m DHCP4) Frame(from net.HardwareAddr) []byte {
	op, ports := byte(2), [2]uint16{67, 68}
	if m.Client.String() == from.String() {
		op, ports = 1, [2]uint16{68, 67}
	}
	if m.OtherOperations {
		op = 3 - op
	}
	p := binary.BigEndian.AppendUint32([]byte{op, 1, 6, 0}, m.ID)
	p = slices.Concat(p, make([]byte, 4), addr4(m.CIAddr), addr4(m.YIAddr), make([]byte, 8), m.Client, make([]byte, 10+64+128))
	p = append(p, 0x63, 0x82, 0x53, 0x63, 0, 0 /* padding */, optionMessageType, 1, m.Kind)
	if m.Requested != "" {
		p = append(append(p, optionRequestedIP, 4), addr4(m.Requested)...)
	}
	if m.Lease != 0 {
		p = binary.BigEndian.AppendUint32(append(p, optionLeaseTime, 4), m.Lease)
	}
	return udp4(from, m.Source, "255.255.255.255", ports, append(p, 255))
}

func packet6(from net.HardwareAddr, source string, next, hops byte, payload []byte) []byte {
	header := []byte{0x60, 0, 0, 0, 0, 0, next, hops}
	binary.BigEndian.PutUint16(header[4:], uint16(len(payload)))
	return ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, from, typeIPv6, header, addr6(source), addr6("ff02::1"), payload)
}

// NDFrame is a message of RFC 4861: a solicitation (135) or an advertisement
// (136), which gives its sender's MAC, or a router solicitation (133).
func NDFrame(from net.HardwareAddr, kind, flags byte, source, target string) []byte {
	p := []byte{kind, 0, 0, 0, flags, 0, 0, 0}
	switch kind {
	case neighbourSolicitation:
		p = append(p, addr6(target)...)
		if source != "" {
			p = append(append(p, sourceLinkLayer, 1), from...)
		}
	case neighbourAdvertisement:
		p = append(append(append(p, addr6(target)...), targetLinkLayer, 1), from...)
	}
	return packet6(from, source, protoICMP, 255, p)
}

// DHCP6 is a message of RFC 8415 with one IA_NA.
type DHCP6 struct {
	ID        uint32
	Kind      byte
	Source    string
	Addresses map[string]uint32 // and how many seconds they are valid
	Status    uint16            // of each address
}

// Frame is the message: a server's when it is a reply.
func (m DHCP6) Frame(from net.HardwareAddr) []byte {
	ports := [2]uint16{546, 547}
	if m.Kind == dhcp6Reply {
		ports = [2]uint16{547, 546}
	}
	ia := make([]byte, 12)
	for ip, valid := range m.Addresses {
		a := binary.BigEndian.AppendUint32(append(addr6(ip), 0, 0, 0, 0), valid)
		if m.Status != 0 {
			a = append(a, option6(option6Status, binary.BigEndian.AppendUint16(nil, m.Status))...)
		}
		ia = append(ia, option6(option6IAAddr, a)...)
	}
	p := binary.BigEndian.AppendUint32(nil, uint32(m.Kind)<<24|m.ID)
	p = slices.Concat(p, option6(1, []byte{0, 3, 0, 1}), option6(option6IANA, ia))
	return packet6(from, m.Source, protoUDP, 64, udp(ports, p))
}

func option6(code uint16, value []byte) []byte {
	head := binary.BigEndian.AppendUint16(nil, code)
	return append(binary.BigEndian.AppendUint16(head, uint16(len(value))), value...)
}
