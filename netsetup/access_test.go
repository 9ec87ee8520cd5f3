package netsetup

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	a, p := netip.MustParseAddr, netip.MustParsePrefix
	s := surroundings{
		parent: "eth0",
		index:  2,
		own:    map[netip.Addr]bool{a("192.0.2.2"): true, a("198.51.100.1"): true},
		subnets: []subnet{
			{p("192.0.2.128/26"), a("192.0.2.130")},
			{p("192.0.2.0/24"), a("192.0.2.2")},
			{p("203.0.113.8/31"), a("203.0.113.8")},
			{p("2001:db8::/64"), a("2001:db8::2")},
		},
		routes: []hostRoute{
			{to: p("0.0.0.0/0"), link: 2, gateways: []netip.Addr{a("192.0.2.1")}},
			{to: p("192.0.2.0/24"), link: 2},
			{to: p("192.0.2.0/24"), link: 3},
			{to: p("192.0.2.64/28"), link: 2},
			{to: p("192.0.2.80/28"), link: 5},
			{to: p("192.0.2.96/28"), link: 2, gateways: []netip.Addr{a("2001:db8::66")}},
			{to: p("192.0.2.112/30"), local: true, link: 1},
		},
		asked: map[netip.Addr]bool{a("192.0.2.53"): true, a("2001:db8::53"): true},
		taken: map[netip.Addr]int{a("192.0.2.20"): 1900000007},
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, tt := range []struct {
		name, addr, source, refusal string
	}{
		{"in the subnet", "192.0.2.10", "192.0.2.2", ""},
		{"in the narrower of two", "192.0.2.140", "192.0.2.130", ""},
		{"IPv6", "2001:db8::10", "2001:db8::2", ""},
		{"of two addresses", "203.0.113.9", "203.0.113.8", ""},
		{"behind an on-link route", "192.0.2.70", "192.0.2.2", ""},
		{"the host's", "192.0.2.2", "", "own"},
		{"the host's on another link", "198.51.100.1", "", "own"},
		{"the host's by a local route", "192.0.2.113", "", "own"},
		{"default gateway", "192.0.2.1", "", "gateway"},
		{"gateway of another family", "2001:db8::66", "", "gateway"},
		{"resolver", "192.0.2.53", "", "resolver"},
		{"IPv6 resolver", "2001:db8::53", "", "resolver"},
		{"elsewhere", "198.51.100.9", "", "no subnet"},
		{"IPv6 elsewhere", "2001:db8:1::1", "", "no subnet"},
		{"network", "192.0.2.0", "", "network"},
		{"broadcast", "192.0.2.255", "", "broadcast"},
		{"broadcast of the narrower subnet", "192.0.2.191", "", "broadcast"},
		{"anycast", "2001:db8::", "", "anycast"},
		{"routed elsewhere", "192.0.2.81", "", "192.0.2.80/28"},
		{"routed by a gateway", "192.0.2.97", "", "192.0.2.96/28"},
		{"another guest's", "192.0.2.20", "", "1900000007"},
		{"link-local", "fe80::1", "", "link-local"},
		{"IPv4 link-local", "169.254.1.1", "", "link-local"},
		{"loopback", "127.0.0.1", "", "no machine's"},
		{"multicast", "ff02::1", "", "no machine's"},
		{"unspecified", "::", "", "no machine's"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			source, refusal := s.judge(a(tt.addr), mac)
			if tt.refusal == "" && (refusal != "" || source != a(tt.source)) {
				t.Errorf("source %s, refused: %q", source, refusal)
			}
			if tt.refusal != "" && !strings.Contains(refusal, tt.refusal) {
				t.Errorf("source %s, refused: %q, want %q", source, refusal, tt.refusal)
			}
		})
	}
	if _, refusal := s.judge(a("192.0.2.10"), nil); refusal == "" {
		t.Error("routed without a MAC")
	}
	s.deaf = "arp_ignore"
	if _, refusal := s.judge(a("192.0.2.10"), mac); refusal != "arp_ignore" {
		t.Errorf("refused: %q", refusal)
	}
	if _, refusal := s.judge(a("2001:db8::10"), mac); refusal != "" {
		t.Errorf("ARP kept IPv6 away: %q", refusal)
	}
}
