package configs

import (
	"bytes"
	"errors"
	"fmt"
	"net"
)

// ParseMAC reads a 48-bit address written as six pairs of hexadecimal digits
// with ':' or '-' between them, and checks it with CheckMAC.
func ParseMAC(text string) (net.HardwareAddr, error) {
	const want = "six pairs of hexadecimal digits, as \"52:54:00:12:34:56\""
	// net.ParseMAC takes EUI-64, InfiniBand and Cisco's dotted form as well.
	if len(text) != 17 || text[2] != ':' && text[2] != '-' {
		return nil, fmt.Errorf("%s is not a MAC address, which is %s", quote(text), want)
	}
	mac, err := net.ParseMAC(text)
	if err != nil {
		return nil, fmt.Errorf("%s is not a MAC address, which is %s", quote(text), want)
	}
	if err := CheckMAC(mac); err != nil {
		return nil, err
	}
	return mac, nil
}

// CheckMAC says why an address cannot be a network card's own: it must be 48
// bits long, unicast and not zero. It returns nil when it can.
func CheckMAC(mac net.HardwareAddr) error {
	switch {
	case len(mac) != 6:
		return fmt.Errorf("a MAC address has 6 bytes, not %d", len(mac))
	case bytes.Equal(mac, make([]byte, 6)):
		return errors.New("00:00:00:00:00:00 is no card's address")
	case bytes.Equal(mac, bytes.Repeat([]byte{0xff}, 6)):
		return errors.New("ff:ff:ff:ff:ff:ff is the broadcast address, not one card's")
	case mac[0]&1 != 0:
		return fmt.Errorf("%s is a multicast address (its first byte is odd), not one card's", mac)
	}
	return nil
}
