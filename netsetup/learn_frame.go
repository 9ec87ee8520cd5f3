package netsetup

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// EtherTypes and protocols (IANA).
const (
	typeIPv4  = 0x0800
	typeARP   = 0x0806
	typeIPv6  = 0x86dd
	protoUDP  = 17
	protoICMP = 58 // ICMPv6
)

// Where the headers are in a frame.
const (
	ethernetLength = 14
	ipv4Length     = 20 // without options
	ipv6Length     = 40
	udpLength      = 8
)

// frame learns from one Ethernet frame and tells whether anything changed.
// Outgoing ones are the guest's, as far as they bear its MAC. Checksums are not
// looked at: those of outgoing frames may still be partial. Tagged frames belong
// to another network than the NIC's own.
func (t *table) frame(now time.Time, outgoing bool, frame []byte) (changed bool) {
	if len(frame) < ethernetLength {
		return false
	}
	f := message{now: now, outgoing: outgoing, from: hwaddr(frame[6:12])}
	// What comes in with the guest's MAC was reflected, or is a sibling's that
	// shares it.
	if outgoing != (f.from == t.mac) {
		return false
	}
	before := t.touched
	t.touched = false
	switch payload := frame[ethernetLength:]; binary.BigEndian.Uint16(frame[12:]) {
	case typeARP:
		t.arp(f, payload)
	case typeIPv4:
		t.ipv4(f, payload)
	case typeIPv6:
		t.ipv6(f, payload)
	}
	changed = t.touched
	t.touched = t.touched || before
	return changed
}

// message is what is known of a frame while its layers are taken off.
type message struct {
	now      time.Time
	outgoing bool
	from     hwaddr
	source   netip.Addr // of the IP packet
}

// arp learns from a packet of RFC 826. One with sender 0.0.0.0 is only a try
// (RFC 5227, 2.1).
func (t *table) arp(f message, p []byte) {
	const ethernetIPv4 = "\x00\x01\x08\x00\x06\x04"
	if len(p) < 28 || string(p[:6]) != ethernetIPv4 {
		return
	}
	request := p[6] == 0 && p[7] == 1
	sender, senderIP := hwaddr(p[8:14]), netip.AddrFrom4([4]byte(p[14:18]))
	targetIP := netip.AddrFrom4([4]byte(p[24:28]))
	switch {
	case f.outgoing && sender != t.mac:
	case f.outgoing && senderIP == targetIP:
		t.announce(f.now, senderIP, SourceARP)
	case f.outgoing:
		t.sign(f.now, senderIP, SourceARP)
	case t.entries[senderIP] != nil:
		t.claim(f.now, t.entries[senderIP], sender)
	case request && t.entries[targetIP] != nil:
		t.ask(f.now, t.entries[targetIP])
	}
}

// ipv4 finds the DHCP message in an IPv4 packet.
func (t *table) ipv4(f message, p []byte) {
	if len(p) < ipv4Length || p[0]>>4 != 4 || p[9] != protoUDP || binary.BigEndian.Uint16(p[6:])&0x1fff != 0 {
		return
	}
	header, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
	if header < ipv4Length || total < header+udpLength || total > len(p) {
		return
	}
	f.source = netip.AddrFrom4([4]byte(p[12:16]))
	udp := p[header:total]
	from, to := binary.BigEndian.Uint16(udp), binary.BigEndian.Uint16(udp[2:])
	switch {
	case f.outgoing && to == dhcp4Server:
		t.dhcp4Sent(f, udp[udpLength:])
	case !f.outgoing && from == dhcp4Server:
		t.dhcp4Received(f, udp[udpLength:])
	}
}

// ipv6 finds the DHCP or neighbour discovery message in an IPv6 packet. Neither
// comes behind extension headers (RFC 6980 for fragments).
func (t *table) ipv6(f message, p []byte) {
	if len(p) < ipv6Length || p[0]>>4 != 6 {
		return
	}
	length := int(binary.BigEndian.Uint16(p[4:]))
	if length < udpLength || length > len(p)-ipv6Length {
		return
	}
	f.source = netip.AddrFrom16([16]byte(p[8:24]))
	body := p[ipv6Length : ipv6Length+length]
	switch {
	case p[6] == protoICMP && p[7] == 255: // not routed here (RFC 4861, 7.1)
		t.discovery(f, body)
	case p[6] == protoUDP && f.outgoing && binary.BigEndian.Uint16(body[2:]) == dhcp6Server:
		t.dhcp6Sent(f, body[udpLength:])
	case p[6] == protoUDP && !f.outgoing && binary.BigEndian.Uint16(body[2:]) == dhcp6Client:
		t.dhcp6Received(f, body[udpLength:])
	}
}

// Types and options of RFC 4861, 4.
const (
	routerSolicitation     = 133
	routerAdvertisement    = 134
	neighbourSolicitation  = 135
	neighbourAdvertisement = 136

	sourceLinkLayer = 1
	targetLinkLayer = 2

	flagSolicited = 0x40
	flagOverride  = 0x20
)

// discovery learns from a message of RFC 4861: from its source, and from the
// target where it has one.
func (t *table) discovery(f message, p []byte) {
	kind := p[0]
	if kind < routerSolicitation || kind > neighbourAdvertisement || p[1] != 0 {
		return
	}
	if f.outgoing {
		t.sign(f.now, f.source, SourceND)
	} else if e := t.entries[f.source]; e != nil {
		t.rival(f, e, p, true)
		return
	}
	if kind < neighbourSolicitation || len(p) < 24 {
		return
	}
	target := netip.AddrFrom16([16]byte(p[8:24]))
	switch {
	case kind == neighbourSolicitation && f.outgoing:
		if f.source.IsUnspecified() {
			t.try(f.now, target)
		}
	case kind == neighbourSolicitation:
		t.solicited(f, t.entries[target])
	case f.outgoing:
		t.advertise(f, target, p[4])
	case t.entries[target] != nil:
		t.rival(f, t.entries[target], p, p[4]&flagOverride != 0)
	}
}

// solicited is another machine's solicitation for e: a question, or its own
// attempt to have a tentative address, which then neither may (RFC 4862, 5.4.3).
func (t *table) solicited(f message, e *entry) {
	if e == nil || f.source.IsUnspecified() && t.object(f.now, e) {
		return
	}
	t.ask(f.now, e)
}

// advertise is the guest's advertisement. One without the override flag may
// speak for another machine (RFC 4861, 7.2.8), and so tells nothing new.
func (t *table) advertise(f message, target netip.Addr, flags byte) {
	switch {
	case flags&flagOverride == 0 && t.entries[target] == nil:
	case flags&flagSolicited == 0:
		t.announce(f.now, target, SourceND)
	default:
		t.sign(f.now, target, SourceND)
	}
}

// rival is another machine that uses or advertises e. If it is not sure to have
// it, it may be a proxy, which objects to a tentative address only.
func (t *table) rival(f message, e *entry, p []byte, sure bool) {
	other := linkLayer(p, f.from)
	if other == t.mac || t.object(f.now, e) || !sure {
		return
	}
	t.claim(f.now, e, other)
}

// linkLayer returns its sender's link-layer address as the message's options
// have it, or else the one given.
func linkLayer(p []byte, or hwaddr) hwaddr {
	start := 24
	switch p[0] {
	case routerSolicitation:
		start = 8
	case routerAdvertisement:
		start = 16
	}
	for len(p) >= start+8 && p[start+1] != 0 {
		if p[start] == sourceLinkLayer || p[start] == targetLinkLayer {
			return hwaddr(p[start+2 : start+8])
		}
		start += int(p[start+1]) * 8
	}
	return or
}
