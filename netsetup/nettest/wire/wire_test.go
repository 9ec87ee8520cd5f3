package wire

import (
	"net"
	"testing"
)

func TestTagged(t *testing.T) {
	src := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, tt := range []struct {
		name, tag string
		length    int
	}{
		{"short", "x", 60},
		{"no padding needed", string(make([]byte, 100)), 114},
	} {
		t.Run(tt.name, func(t *testing.T) {
			frame := Tagged(Broadcast, src, tt.tag)
			if len(frame) != tt.length {
				t.Errorf("%d bytes, want %d", len(frame), tt.length)
			}
			if !hasTag(frame, tt.tag) || hasTag(frame, "another") || hasTag(frame[:10], tt.tag) {
				t.Error("the tag is not told from others")
			}
		})
	}
}

func TestChecksum(t *testing.T) {
	// RFC 1071, 3.
	if got := checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("checksum %#x", got)
	}
}
