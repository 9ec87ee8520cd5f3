package wire

import (
	"bytes"
	"encoding/binary"
	"net"
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

// hasTag reports whether frame's payload contains tag.
func hasTag(frame []byte, tag string) bool {
	return len(frame) >= headerLength && bytes.Contains(frame[headerLength:], []byte(tag))
}
