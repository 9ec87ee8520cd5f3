package netsetup

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	guestMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 0x10}
	otherMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 0x99}
	strangers = " against 02:00:00:00:00:99"
	epoch     = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// moment is what happens to a table at a time, and what it shows then.
type moment struct {
	at   time.Duration
	out  []byte       // the guest sends
	in   []byte       // the guest is sent
	do   func(*table) // something else
	want string
}

// show lists what a table knows, each address with its source, lease and conflict.
func show(t *table) string {
	var list []string
	for _, a := range t.addresses() {
		s := fmt.Sprintf("%s %s", a.IP, a.Source)
		if !a.Expires.IsZero() {
			s += " until " + a.Expires.Sub(epoch).String()
		}
		if a.Conflict != "" {
			s += " against " + a.Conflict
		}
		list = append(list, s)
	}
	return strings.Join(list, ", ")
}

func arpOut(op byte, sender, target string) []byte { return ARPFrame(guestMAC, op, sender, target) }
func arpIn(op byte, sender, target string) []byte  { return ARPFrame(otherMAC, op, sender, target) }

func ndOut(kind, flags byte, source, target string) []byte {
	return NDFrame(guestMAC, kind, flags, source, target)
}

func ndIn(kind, flags byte, source, target string) []byte {
	return NDFrame(otherMAC, kind, flags, source, target)
}

// dhcpOut and dhcpIn are messages about the guest.
func dhcpOut(m DHCP4) []byte {
	m.Client = guestMAC
	return m.Frame(guestMAC)
}

func dhcpIn(m DHCP4) []byte {
	m.Client, m.Source = guestMAC, "192.0.2.1"
	return m.Frame(otherMAC)
}

func edit(frame []byte, offset int, value ...byte) []byte {
	frame = slices.Clone(frame)
	copy(frame[offset:], value)
	return frame
}

const (
	own4, near4 = "192.0.2.10", "192.0.2.1"
	own6, near6 = "2001:db8::10", "2001:db8::1"
	local6      = "fe80::10"

	rs, ns, na          = routerSolicitation, neighbourSolicitation, neighbourAdvertisement
	solicited, override = flagSolicited, flagOverride
)

var learnTests = []struct {
	name  string
	seed  []Address
	steps []moment
}{
	{name: "ARP request", steps: []moment{{out: arpOut(1, own4, near4), want: own4 + " arp"}}},
	{name: "ARP reply", steps: []moment{{out: arpOut(2, own4, near4), want: own4 + " arp"}}},
	{name: "gratuitous ARP", steps: []moment{{out: arpOut(1, own4, own4), want: own4 + " arp"}}},
	{name: "ARP probe, then announcement", steps: []moment{
		{out: arpOut(1, "", own4)},
		{at: 2 * time.Second, out: arpOut(1, own4, own4), want: own4 + " arp"},
	}},
	{name: "no address", steps: []moment{
		{out: arpOut(1, "255.255.255.255", near4)}, {out: arpOut(1, "127.0.0.1", near4)},
		{out: arpOut(1, "224.0.0.5", near4)}, {out: arpOut(1, "0.1.2.3", near4)},
		{out: ndOut(na, override, "ff02::1", "::ffff:192.0.2.10")}, {out: ndOut(ns, 0, "", "::1")},
		{out: ndOut(na, override, "", "")},
	}},
	{name: "another's MAC", steps: []moment{
		{out: ARPFrame(otherMAC, 1, own4, near4)},
		{out: edit(arpOut(1, own4, near4), 22, otherMAC...)}, // as sender in ARP only
		{out: NDFrame(otherMAC, ns, 0, own6, near6)},
		{out: DHCP4{Kind: dhcp4Request, Client: otherMAC, Source: own4, CIAddr: own4}.Frame(otherMAC)},
	}},
	{name: "what comes in is not the guest's", steps: []moment{
		{in: arpIn(1, near4, own4)}, {in: ndIn(ns, 0, near6, own6)}, {in: ndIn(na, override, near6, near6)},
	}},
	{name: "reflected by the switch", steps: []moment{
		{out: arpOut(1, own4, own4), want: own4 + " arp"}, {in: arpOut(1, own4, own4), want: own4 + " arp"},
		{out: ndOut(ns, 0, "", own6), want: own4 + " arp, " + own6 + " nd"},
		{in: ndOut(ns, 0, "", own6), want: own4 + " arp, " + own6 + " nd"},
		{in: edit(arpOut(1, own4, own4), 6, otherMAC...), want: own4 + " arp, " + own6 + " nd"}, // by a proxy
	}},
	{name: "odd ARP", steps: []moment{
		{out: arpOut(1, own4, near4)[:41]}, {out: edit(arpOut(1, own4, near4), 18, 8)}, {out: edit(arpOut(1, own4, near4), 16, 0x86, 0xdd)},
		{out: edit(arpOut(1, own4, near4), 12, 0x81, 0)},
	}},

	{name: "a duplicate", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{at: time.Minute, in: arpIn(1, own4, own4), want: own4 + " arp" + strangers},
		{at: time.Minute + time.Second, out: arpOut(1, own4, own4), want: own4 + " arp" + strangers}, // the defence
		{at: 2 * time.Minute, out: arpOut(1, own4, near4), want: own4 + " arp" + strangers},
		{at: 2 * time.Minute, out: arpOut(1, own4, own4), want: own4 + " arp"},
		{at: 3 * time.Minute, in: arpIn(2, own4, near4), want: own4 + " arp" + strangers},
		{at: 7 * time.Minute, in: arpIn(2, own4, near4), want: own4 + " arp" + strangers},
		{at: 12*time.Minute - 1, want: own4 + " arp" + strangers},
		{at: 12 * time.Minute, want: own4 + " arp"},
	}},
	{name: "nobody answers", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{at: time.Minute, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: time.Minute + time.Second, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: time.Minute + 2*time.Second, in: arpIn(1, "", own4), want: own4 + " arp"},
		{at: time.Minute + 3*time.Second, want: ""},
		{at: time.Minute + 4*time.Second, out: arpOut(2, own4, near4), want: own4 + " arp"},
	}},
	{name: "answers late", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{at: 1 * time.Second, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 2 * time.Second, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 3 * time.Second, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 3900 * time.Millisecond, out: arpOut(2, own4, near4), want: own4 + " arp"},
		{at: time.Minute, want: own4 + " arp"},
	}},
	{name: "many questions at once", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{in: arpIn(1, near4, own4), want: own4 + " arp"}, {in: arpIn(1, near4, own4), want: own4 + " arp"},
		{in: arpIn(1, near4, own4), want: own4 + " arp"}, {at: time.Minute, want: own4 + " arp"},
	}},
	{name: "questions far apart", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{at: 2 * time.Minute, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 4 * time.Minute, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 6 * time.Minute, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 7 * time.Minute, want: own4 + " arp"},
	}},
	{name: "others' answers are no questions", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{at: 1 * time.Second, in: arpIn(2, near4, own4), want: own4 + " arp"},
		{at: 2 * time.Second, in: arpIn(2, near4, own4), want: own4 + " arp"},
		{at: 4 * time.Second, in: arpIn(2, near4, own4), want: own4 + " arp"},
		{at: 9 * time.Second, want: own4 + " arp"},
	}},
	{name: "a paused guest cannot answer", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{do: func(t *table) { t.pause(epoch, true) }, want: own4 + " arp"},
		{at: 1 * time.Second, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 2 * time.Second, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 4 * time.Second, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 100 * time.Hour, want: own4 + " arp"},
		{at: 100 * time.Hour, do: func(t *table) { t.pause(epoch.Add(100*time.Hour), false) }, want: own4 + " arp"},
		{at: 124*time.Hour - 1, want: own4 + " arp"},
		{at: 124 * time.Hour},
	}},
	{name: "answers unseen", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{at: 1 * time.Second, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 2 * time.Second, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 4 * time.Second, in: arpIn(1, near4, own4), want: own4 + " arp"},
		{at: 4 * time.Second, do: (*table).unaskAll, want: own4 + " arp"},
		{at: 9 * time.Second, want: own4 + " arp"},
	}},
	{name: "silence", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{at: 20 * time.Hour, out: ndOut(ns, 0, own6, near6), want: own4 + " arp, " + own6 + " nd"},
		{at: 20 * time.Hour, out: ndOut(rs, 0, local6, ""), want: own4 + " arp, " + own6 + " nd, " + local6 + " nd"},
		{at: 24 * time.Hour, want: own6 + " nd, " + local6 + " nd"},
		{at: 44 * time.Hour, want: local6 + " nd"},
		{at: 1000 * time.Hour, want: local6 + " nd"},
		{at: 1000 * time.Hour, do: (*table).forgetAll, want: ""},
	}},
	{name: "another MAC", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{do: func(t *table) { t.mac = hwaddr(otherMAC) }, want: own4 + " arp"},
		{out: arpOut(1, "192.0.2.11", near4), want: own4 + " arp"},
		{out: ARPFrame(otherMAC, 1, "192.0.2.12", near4), want: own4 + " arp, 192.0.2.12 arp"},
	}},

	{name: "IPv6 neighbour's source", steps: []moment{{out: ndOut(ns, 0, own6, near6), want: own6 + " nd"}}},
	{name: "router solicitation", steps: []moment{{out: ndOut(rs, 0, "", "")}, {out: ndOut(rs, 0, local6, ""), want: local6 + " nd"}}},
	{name: "advertisement", steps: []moment{
		{out: ndOut(na, solicited|override, own6, own6), want: own6 + " nd"},
		// A proxy's (RFC 4861, 7.2.8): only the sender is the guest's.
		{out: ndOut(na, solicited, local6, "2001:db8::77"), want: own6 + " nd, " + local6 + " nd"},
	}},
	{name: "routed, not of this link", steps: []moment{{out: edit(ndOut(ns, 0, own6, near6), 21, 254)}}},
	{name: "DAD that succeeds", steps: []moment{
		{out: ndOut(ns, 0, "", own6), want: own6 + " nd"},
		{at: 4 * time.Second, in: ndIn(na, override, near6, own6), want: own6 + " nd" + strangers},
		{at: 15 * time.Second, out: ndOut(na, override, own6, own6), want: own6 + " nd"},
	}},
	{name: "DAD that fails", steps: []moment{
		{out: ndOut(ns, 0, "", own6), want: own6 + " nd"},
		{at: 10 * time.Millisecond, in: ndIn(na, 0, near6, own6), want: ""},
		{at: time.Minute, out: ndOut(ns, 0, "", own6), want: own6 + " nd"},
		{at: time.Minute, in: ndIn(na, override, own6, own6), want: ""}, // as Linux answers
	}},
	{name: "DAD of two at once", steps: []moment{
		{out: ndOut(ns, 0, "", own6), want: own6 + " nd"},
		{at: 10 * time.Millisecond, in: ndIn(ns, 0, "", own6), want: ""},
	}},
	{name: "DAD of another", steps: []moment{
		{out: ndOut(ns, 0, own6, near6), want: own6 + " nd"},
		{at: 1 * time.Second, in: ndIn(ns, 0, "", own6), want: own6 + " nd"},
		{at: 1 * time.Second, out: ndOut(na, override, own6, own6), want: own6 + " nd"},
	}},
	{name: "nobody answers in IPv6", steps: []moment{
		{out: ndOut(ns, 0, own6, near6), want: own6 + " nd"},
		{at: 1 * time.Second, in: ndIn(ns, 0, near6, own6), want: own6 + " nd"},
		{at: 2 * time.Second, in: ndIn(ns, 0, near6, own6), want: own6 + " nd"},
		{at: 3 * time.Second, in: ndIn(ns, 0, near6, own6), want: own6 + " nd"},
		{at: 4 * time.Second},
	}},
	{name: "a duplicate in IPv6", steps: []moment{
		{out: ndOut(ns, 0, own6, near6), want: own6 + " nd"},
		{in: ndIn(na, 0, near6, own6), want: own6 + " nd"}, // a proxy's
		{in: edit(ndIn(na, override, near6, own6), 6, otherMAC...), want: own6 + " nd" + strangers},
		{at: 5 * time.Minute, want: own6 + " nd"},
		{at: 6 * time.Minute, in: ndIn(ns, 0, own6, near6), want: own6 + " nd" + strangers},
	}},
	{name: "another speaks for the guest's MAC", steps: []moment{
		{out: ndOut(ns, 0, own6, near6), want: own6 + " nd"},
		{in: edit(ndOut(na, override, own6, own6), 6, otherMAC...), want: own6 + " nd"},
	}},

	{name: "DHCP", steps: []moment{
		{out: dhcpOut(DHCP4{ID: 1, Kind: dhcp4Discover})},
		{out: dhcpOut(DHCP4{ID: 1, Kind: dhcp4Request, Requested: own4})},
		{in: dhcpIn(DHCP4{ID: 1, Kind: dhcp4ACK, YIAddr: own4, Lease: 600}), want: own4 + " dhcp until 10m0s"},
		{at: time.Second, out: arpOut(1, own4, own4), want: own4 + " dhcp until 10m0s"},
		{at: 5 * time.Minute, out: dhcpOut(DHCP4{ID: 2, Kind: dhcp4Request, CIAddr: own4, Source: own4}), want: own4 + " dhcp until 10m0s"},
		{at: 5 * time.Minute, in: dhcpIn(DHCP4{ID: 2, Kind: dhcp4ACK, CIAddr: own4, Lease: 600}), want: own4 + " dhcp until 15m0s"},
		{at: 16*time.Minute - 1, want: own4 + " dhcp until 15m0s"},
		{at: 16 * time.Minute},
		{at: 17 * time.Minute, out: arpOut(1, own4, near4), want: own4 + " arp"}, // whatever became of the lease
	}},
	{name: "DHCP for ever", steps: []moment{
		{out: dhcpOut(DHCP4{ID: 1, Kind: dhcp4Request, Requested: own4})},
		{in: dhcpIn(DHCP4{ID: 1, Kind: dhcp4ACK, YIAddr: own4, Lease: forEver}), want: own4 + " dhcp"},
	}},
	{name: "DHCP of an address seen before", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{out: dhcpOut(DHCP4{ID: 1, Kind: dhcp4Request, Requested: own4}), want: own4 + " arp"},
		{in: dhcpIn(DHCP4{ID: 1, Kind: dhcp4ACK, YIAddr: own4, Lease: 86400 * 7}), want: own4 + " dhcp until 168h0m0s"},
		{at: 160 * time.Hour, want: own4 + " dhcp until 168h0m0s"}, // silence is no end of a lease
	}},
	{name: "DHCP for another", steps: []moment{
		{in: dhcpIn(DHCP4{ID: 1, Kind: dhcp4ACK, YIAddr: own4, Lease: 600})}, // never asked for
		{out: dhcpOut(DHCP4{ID: 2, Kind: dhcp4Request, Requested: own4})},
		{in: dhcpIn(DHCP4{ID: 1, Kind: dhcp4ACK, YIAddr: own4, Lease: 600})},
		{in: DHCP4{ID: 2, Kind: dhcp4ACK, Client: net.HardwareAddr{2, 0, 0, 0, 0, 0x98}, YIAddr: own4}.Frame(otherMAC)},
		{in: dhcpIn(DHCP4{ID: 2, Kind: dhcp4ACK, YIAddr: own4, OtherOperations: true})},
		{at: 2 * time.Minute, in: dhcpIn(DHCP4{ID: 2, Kind: dhcp4ACK, YIAddr: own4, Lease: 600})}, // too late
	}},
	{name: "DHCP of a sibling of the same MAC", steps: []moment{
		{in: DHCP4{ID: 3, Kind: dhcp4ACK, Client: guestMAC, YIAddr: own4, Lease: 600, OtherOperations: true}.Frame(guestMAC)},
	}},
	{name: "DHCP release", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{out: dhcpOut(DHCP4{ID: 1, Kind: dhcp4Release, CIAddr: own4, Source: own4})},
	}},
	{name: "DHCP decline", steps: []moment{
		{out: dhcpOut(DHCP4{ID: 1, Kind: dhcp4Request, Requested: own4})},
		{in: dhcpIn(DHCP4{ID: 1, Kind: dhcp4ACK, YIAddr: own4, Lease: 600}), want: own4 + " dhcp until 10m0s"},
		{out: dhcpOut(DHCP4{ID: 1, Kind: dhcp4Decline, Requested: own4})},
	}},
	{name: "DHCP refused", steps: []moment{
		{out: arpOut(1, own4, near4), want: own4 + " arp"},
		{out: arpOut(1, "192.0.2.11", near4), want: own4 + " arp, 192.0.2.11 arp"},
		{out: dhcpOut(DHCP4{ID: 1, Kind: dhcp4Request, CIAddr: own4, Source: own4}), want: own4 + " arp, 192.0.2.11 arp"},
		{in: dhcpIn(DHCP4{ID: 9, Kind: dhcp4NAK}), want: own4 + " arp, 192.0.2.11 arp"},
		{in: dhcpIn(DHCP4{ID: 1, Kind: dhcp4NAK}), want: "192.0.2.11 arp"},
	}},
	{name: "DHCP inform", steps: []moment{
		{out: dhcpOut(DHCP4{ID: 1, Kind: dhcp4Inform, CIAddr: own4, Source: own4}), want: own4 + " dhcp"},
		{in: dhcpIn(DHCP4{ID: 1, Kind: dhcp4ACK, CIAddr: own4}), want: own4 + " dhcp"},
	}},
	{name: "DHCP claim from elsewhere", steps: []moment{
		{out: dhcpOut(DHCP4{ID: 1, Kind: dhcp4Request, CIAddr: own4, Source: "192.0.2.11"})},
	}},

	{name: "DHCPv6", steps: []moment{
		{out: DHCP6{ID: 1, Kind: dhcp6Solicit, Source: local6}.Frame(guestMAC), want: local6 + " dhcp"},
		{out: DHCP6{ID: 2, Kind: dhcp6Request, Source: local6}.Frame(guestMAC), want: local6 + " dhcp"},
		{in: DHCP6{ID: 2, Kind: dhcp6Reply, Addresses: map[string]uint32{own6: 600}}.Frame(otherMAC), want: own6 + " dhcp until 10m0s, " + local6 + " dhcp"},
		{at: 5 * time.Minute, out: DHCP6{ID: 3, Kind: dhcp6Renew, Source: local6}.Frame(guestMAC), want: own6 + " dhcp until 10m0s, " + local6 + " dhcp"},
		{at: 5 * time.Minute, in: DHCP6{ID: 3, Kind: dhcp6Reply, Addresses: map[string]uint32{own6: 600}}.Frame(otherMAC), want: own6 + " dhcp until 15m0s, " + local6 + " dhcp"},
		{at: 16 * time.Minute, want: local6 + " dhcp"},
	}},
	{name: "DHCPv6 for ever, and no more", steps: []moment{
		{out: DHCP6{ID: 2, Kind: dhcp6Rebind}.Frame(guestMAC)},
		{in: DHCP6{ID: 2, Kind: dhcp6Reply, Addresses: map[string]uint32{own6: forEver}}.Frame(otherMAC), want: own6 + " dhcp"},
		{in: DHCP6{ID: 2, Kind: dhcp6Reply, Addresses: map[string]uint32{own6: 0}}.Frame(otherMAC)},
	}},
	{name: "DHCPv6 refused or never asked for", steps: []moment{
		{out: DHCP6{ID: 2, Kind: dhcp6Request}.Frame(guestMAC)},
		{in: DHCP6{ID: 2, Kind: dhcp6Reply, Addresses: map[string]uint32{own6: 600}, Status: 4}.Frame(otherMAC)},
		{in: DHCP6{ID: 3, Kind: dhcp6Reply, Addresses: map[string]uint32{own6: 600}}.Frame(otherMAC)},
	}},
	{name: "DHCPv6 release", steps: []moment{
		{out: ndOut(ns, 0, own6, near6), want: own6 + " nd"},
		{out: DHCP6{ID: 2, Kind: dhcp6Release, Addresses: map[string]uint32{own6: 0}}.Frame(guestMAC)},
	}},
	{name: "DHCPv6 routed through the guest", steps: []moment{
		{out: DHCP6{ID: 2, Kind: dhcp6Renew, Source: "2001:db8:1::5"}.Frame(guestMAC)},
	}},

	{name: "known before", seed: []Address{
		{IP: netip.MustParseAddr(own4), Source: SourceDHCP, Expires: epoch.Add(time.Hour), Seen: epoch.Add(-48 * time.Hour)},
		{IP: netip.MustParseAddr("192.0.2.11"), Source: SourceARP, Seen: epoch.Add(-48 * time.Hour), Conflict: otherMAC.String()},
		{IP: netip.MustParseAddr("192.0.2.12"), Source: "agent"}, {IP: netip.MustParseAddr("224.0.0.1"), Source: SourceARP},
		{IP: netip.MustParseAddr("192.0.2.13"), Source: SourceDHCP, Expires: epoch.Add(-time.Hour)}, {},
	}, steps: []moment{
		{want: own4 + " dhcp until 1h0m0s, 192.0.2.11 arp" + strangers},
		{at: 5 * time.Minute, want: own4 + " dhcp until 1h0m0s, 192.0.2.11 arp"},
		{at: 2 * time.Hour, want: "192.0.2.11 arp"},
		{at: 24 * time.Hour},
	}},
}

func TestTable(t *testing.T) {
	for _, tt := range learnTests {
		t.Run(tt.name, func(t *testing.T) {
			table := newTable(epoch, hwaddr(guestMAC), tt.seed)
			for i, s := range tt.steps {
				now := epoch.Add(s.at)
				before := show(table)
				table.touched = false
				if s.out != nil {
					table.frame(now, true, s.out)
				}
				if s.in != nil {
					table.frame(now, false, s.in)
				}
				if s.do != nil {
					s.do(table)
				}
				next := table.sweep(now)
				if got := show(table); got != s.want {
					t.Fatalf("step %d: %q, want %q", i, got, s.want)
				}
				if changed := before != s.want; changed != table.touched {
					t.Errorf("step %d: from %q to %q, touched %t", i, before, s.want, table.touched)
				}
				if !next.IsZero() && !next.After(now) {
					t.Errorf("step %d: the next sweep is at %v", i, next.Sub(epoch))
				}
			}
		})
	}
}

// A sweep at the time that the last one named finds something to do.
func TestSweepNamesItsNext(t *testing.T) {
	table := newTable(epoch, hwaddr(guestMAC), nil)
	table.frame(epoch, true, arpOut(1, own4, near4))
	table.frame(epoch, false, arpIn(1, own4, own4))
	var seen []string
	for now := epoch; !now.IsZero() && len(seen) < 9; now = table.sweep(now) {
		seen = append(seen, fmt.Sprintf("%v %s", now.Sub(epoch), show(table)))
	}
	want := []string{"0s " + own4 + " arp" + strangers, "5m0s " + own4 + " arp" + strangers, "24h0m0s " + own4 + " arp"}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSeenAndSince(t *testing.T) {
	table := newTable(epoch, hwaddr(guestMAC), nil)
	for i := range 3 {
		table.frame(epoch.Add(time.Duration(i)*time.Minute), true, arpOut(1, own4, near4))
	}
	table.frame(epoch.Add(time.Hour), false, arpIn(1, near4, own4))
	want := []Address{{IP: netip.MustParseAddr(own4), Source: SourceARP, Since: epoch, Seen: epoch.Add(2 * time.Minute)}}
	if diff := cmp.Diff(want, table.addresses(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAddressJSON(t *testing.T) {
	a := Address{IP: netip.MustParseAddr(own4), Source: SourceARP, Since: epoch, Seen: epoch}
	got, err := json.Marshal(a)
	want := `{"ip":"192.0.2.10","source":"arp","since":"2026-01-01T00:00:00Z","seen":"2026-01-01T00:00:00Z"}`
	if err != nil || string(got) != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
	a.Expires, a.Conflict = epoch, otherMAC.String()
	got, err = json.Marshal(a)
	want = strings.TrimSuffix(want, "}") + `,"expires":"2026-01-01T00:00:00Z","conflict":"02:00:00:00:00:99"}`
	if err != nil || string(got) != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}

// A guest that claims any number of addresses keeps the last of them.
func TestTableIsBounded(t *testing.T) {
	table := newTable(epoch, hwaddr(guestMAC), nil)
	for i := range 1000 {
		ip := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String()
		table.frame(epoch.Add(time.Duration(i)*time.Second), true, arpOut(1, ip, near4))
		table.frame(epoch, true, dhcpOut(DHCP4{ID: uint32(i), Kind: dhcp4Request}))
	}
	list := table.addresses()
	if len(list) != maxAddresses || list[0].IP.String() != "10.0.3.168" || list[maxAddresses-1].IP.String() != "10.0.3.231" {
		t.Errorf("%d addresses, from %v to %v", len(list), list[0].IP, list[len(list)-1].IP)
	}
}

func TestRequests(t *testing.T) {
	var r requests
	for i := range 20 {
		r.add(request{version: 4, id: uint32(i), at: epoch})
		r.add(request{version: 4, id: 0, at: epoch}) // once more, and so always there
	}
	for id, want := range map[uint32]bool{0: true, 19: true, 13: true, 12: false, 1: false} {
		if _, ok := r.find(epoch, 4, id); ok != want {
			t.Errorf("request %d: %t", id, ok)
		}
	}
	if _, ok := r.find(epoch, 6, 19); ok {
		t.Error("found in the other version")
	}
}

// records splits a fuzzer's bytes into frames: each has two bytes of length, of
// which one bit says that it goes out.
func records(data []byte, fn func(outgoing bool, frame []byte)) {
	for len(data) >= 2 {
		head := binary.BigEndian.Uint16(data)
		n := min(int(head&0x7ff), len(data)-2)
		fn(head&0x8000 != 0, data[2:2+n])
		data = data[2+n:]
	}
}

func FuzzFrame(f *testing.F) {
	for _, tt := range learnTests {
		var data []byte
		for _, s := range tt.steps {
			for i, frame := range [][]byte{s.in, s.out} {
				if frame != nil {
					data = binary.BigEndian.AppendUint16(data, uint16(i<<15|len(frame)))
					data = append(data, frame...)
				}
			}
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		table := newTable(epoch, hwaddr(guestMAC), nil)
		now := epoch
		records(data, func(outgoing bool, frame []byte) {
			now = now.Add(300 * time.Millisecond)
			before := show(table)
			changed := table.frame(now, outgoing, frame)
			// A lease that is renewed for the same time, and one address that was
			// forgotten and learned by the same frame, are changes too.
			if after := show(table); after != before && !changed {
				t.Fatalf("from %q to %q unsaid", before, after)
			}
			if len(table.entries) > maxAddresses {
				t.Fatalf("%d addresses", len(table.entries))
			}
			for ip, e := range table.entries {
				if !Learnable(ip) || ip != e.IP || e.Source == "" || e.Seen != now && e.Seen.After(now) || e.Conflict == guestMAC.String() {
					t.Fatalf("learned %+v", e)
				}
			}
			if next := table.sweep(now); !next.IsZero() && !next.After(now) {
				t.Fatalf("the next sweep is %v ago", now.Sub(next))
			}
		})
	})
}

func BenchmarkFrame(b *testing.B) {
	for _, bb := range []struct {
		name     string
		outgoing bool
		frame    []byte
	}{
		{"guest's ARP", true, arpOut(1, own4, near4)},
		{"others' ARP", false, arpIn(1, near4, "192.0.2.77")},
		{"guest's solicitation", true, ndOut(ns, 0, own6, near6)},
		{"server's ACK", false, dhcpIn(DHCP4{ID: 1, Kind: dhcp4ACK, YIAddr: own4, Lease: 600})},
	} {
		b.Run(bb.name, func(b *testing.B) {
			table := newTable(epoch, hwaddr(guestMAC), nil)
			table.frame(epoch, true, dhcpOut(DHCP4{ID: 1, Kind: dhcp4Request}))
			b.ReportAllocs()
			for b.Loop() {
				table.frame(epoch, bb.outgoing, bb.frame)
			}
		})
	}
}
