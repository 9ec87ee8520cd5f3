package wire

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
)

// EtherType of the frames that Tagged builds: IEEE 802's local experimental
// type 1, which no stack answers.
const EtherType = 0x88b5

const (
	headerLength  = 14 // destination, source, type
	minimumLength = 60 // IEEE 802.3's 64 without the check sequence
)

// Broadcast is the destination of a frame for everybody.
var Broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Tagged returns an Ethernet frame whose payload is tag, padded to the shortest
// length that a NIC sends.
func Tagged(dst, src net.HardwareAddr, tag string) []byte {
	frame := make([]byte, 0, minimumLength)
	frame = append(frame, dst...)
	frame = append(frame, src...)
	frame = binary.BigEndian.AppendUint16(frame, EtherType)
	frame = append(frame, tag...)
	if pad := minimumLength - len(frame); pad > 0 {
		frame = append(frame, make([]byte, pad)...)
	}
	return frame
}

// Announcement returns the frame by which a machine tells everybody, unasked,
// that addr is at mac: an ARP announcement (RFC 5227, 1.1) or a neighbour
// advertisement (RFC 4861, 7.2.6) that overrides what was known. Machines obey
// that know addr already.
func Announcement(addr netip.Addr, mac net.HardwareAddr) []byte {
	frame := make([]byte, 0, minimumLength)
	if addr = addr.Unmap(); addr.Is4() {
		frame = append(append(frame, Broadcast...), mac...)
		frame = append(frame, 0x08, 0x06, // ARP
			0, 1, 0x08, 0x00, 6, 4, 0, 1) // Ethernet, IPv4, their lengths, request
		for _, target := range [][]byte{mac, make([]byte, 6)} {
			frame = append(append(frame, target...), addr.AsSlice()...)
		}
		return append(frame, make([]byte, minimumLength-len(frame))...)
	}
	allNodes := netip.IPv6LinkLocalAllNodes()
	frame = append(append(frame, 0x33, 0x33, 0, 0, 0, 1), mac...)
	frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, advertisementLength, protocolICMPv6, 255)
	frame = append(append(frame, addr.AsSlice()...), allNodes.AsSlice()...)
	msg := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, addr.AsSlice()...) // override
	msg = append(append(msg, 2, 1), mac...)                               // target's link-layer address
	pseudo := append(append(addr.AsSlice(), allNodes.AsSlice()...), 0, 0, 0, advertisementLength, 0, 0, 0, protocolICMPv6)
	binary.BigEndian.PutUint16(msg[2:], checksum(append(pseudo, msg...)))
	return append(frame, msg...)
}

const (
	advertisementLength = 4 + 4 + 16 + 8 // ICMPv6 header, flags, target, option
	protocolICMPv6      = 58
)

// hasTag reports whether frame's payload contains tag.
func hasTag(frame []byte, tag string) bool {
	return len(frame) >= headerLength && bytes.Contains(frame[headerLength:], []byte(tag))
}
