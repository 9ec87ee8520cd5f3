package netsetup

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// UDP ports (RFC 2131, 4.1; RFC 8415, 7.2).
const (
	dhcp4Server = 67
	dhcp6Client = 546
	dhcp6Server = 547
)

// forEver is a lease without end (RFC 2131, 3.3; RFC 8415, 7.7).
const forEver = 1<<32 - 1

// request is what the guest asked a DHCP server for. An answer counts only when
// it has the number of a request: a MAC alone does not tell guests apart that
// share their parent's.
type request struct {
	version int // 4 or 6; 0: none
	id      uint32
	ip      netip.Addr // the one it would like, in version 4
	at      time.Time
}

// requestAge is how long a server may take to answer.
const requestAge = time.Minute

// requests are the last few, the newest first.
type requests [8]request

func (r *requests) add(q request) {
	i := 0
	for i < len(r)-1 && (r[i].version != q.version || r[i].id != q.id) {
		i++
	}
	copy(r[1:i+1], r[:i])
	r[0] = q
}

func (r *requests) find(now time.Time, version int, id uint32) (request, bool) {
	for _, q := range r {
		if q.version == version && q.id == id && now.Sub(q.at) < requestAge {
			return q, true
		}
	}
	return request{}, false
}

// Message types and options of RFC 2132.
const (
	dhcp4Discover = 1
	dhcp4Request  = 3
	dhcp4Decline  = 4
	dhcp4ACK      = 5
	dhcp4NAK      = 6
	dhcp4Release  = 7
	dhcp4Inform   = 8

	optionRequestedIP = 50
	optionLeaseTime   = 51
	optionMessageType = 53
)

// dhcp4 is what matters of a message of RFC 2131.
type dhcp4 struct {
	id        uint32
	kind      byte
	client    netip.Addr    // ciaddr
	yours     netip.Addr    // yiaddr
	requested netip.Addr    // invalid without the option
	lease     time.Duration // 0: for ever, or not told
	leased    bool          // the lease time was told
}

// parseDHCP4 reads a message with the operation (1 from a client, 2 from a
// server) about the client. Options that continue in the fields file and sname
// are not read.
func parseDHCP4(p []byte, op byte, client hwaddr) (m dhcp4, ok bool) {
	const fixed, cookie = 236, "\x63\x82\x53\x63"
	if len(p) < fixed+4 || p[0] != op || p[1] != 1 || p[2] != 6 || hwaddr(p[28:34]) != client || string(p[fixed:fixed+4]) != cookie {
		return m, false
	}
	m.id = binary.BigEndian.Uint32(p[4:])
	m.client = netip.AddrFrom4([4]byte(p[12:16]))
	m.yours = netip.AddrFrom4([4]byte(p[16:20]))
	for p = p[fixed+4:]; len(p) > 0 && p[0] != 255; {
		if p[0] == 0 { // padding
			p = p[1:]
			continue
		}
		if len(p) < 2 || len(p) < 2+int(p[1]) {
			break
		}
		m.option(p[0], p[2:2+int(p[1])])
		p = p[2+int(p[1]):]
	}
	return m, m.kind != 0
}

func (m *dhcp4) option(code byte, value []byte) {
	switch {
	case code == optionMessageType && len(value) == 1:
		m.kind = value[0]
	case code == optionRequestedIP && len(value) == 4:
		m.requested = netip.AddrFrom4([4]byte(value))
	case code == optionLeaseTime && len(value) == 4:
		m.leased = true
		if n := binary.BigEndian.Uint32(value); n != forEver {
			m.lease = max(1, time.Duration(n)) * time.Second
		}
	}
}

// dhcp4Sent learns from the guest's message.
func (t *table) dhcp4Sent(f message, p []byte) {
	m, ok := parseDHCP4(p, 1, t.mac)
	if !ok {
		return
	}
	switch m.kind {
	case dhcp4Release:
		t.forget(m.client)
		return
	case dhcp4Decline:
		t.forget(m.requested)
		return
	case dhcp4Discover, dhcp4Request: // the former for rapid commit, RFC 4039
		wish := m.requested
		if !wish.IsValid() {
			wish = m.client
		}
		t.requests.add(request{version: 4, id: m.id, ip: wish, at: f.now})
	case dhcp4Inform:
	default:
		return
	}
	// It may claim to have an address; it does when it speaks from it.
	if m.client == f.source {
		t.sign(f.now, m.client, SourceDHCP)
	}
}

// dhcp4Received learns from a server's answer to the guest.
func (t *table) dhcp4Received(f message, p []byte) {
	m, ok := parseDHCP4(p, 2, t.mac)
	if !ok {
		return
	}
	q, ok := t.requests.find(f.now, 4, m.id)
	switch {
	case !ok:
	case m.kind == dhcp4NAK:
		t.forget(q.ip)
	case m.kind != dhcp4ACK:
	case !m.yours.IsUnspecified():
		t.lease(f.now, m.yours, m.lease)
	case m.leased:
		t.lease(f.now, m.client, m.lease)
	}
}

// Message types and options of RFC 8415, 7.3 and 21.
const (
	dhcp6Solicit = 1
	dhcp6Request = 3
	dhcp6Renew   = 5
	dhcp6Rebind  = 6
	dhcp6Reply   = 7
	dhcp6Release = 8
	dhcp6Decline = 9

	option6IANA   = 3
	option6IATA   = 4
	option6IAAddr = 5
	option6Status = 13
)

// options6 calls fn for each option of RFC 8415, 21.1, as far as they are whole.
func options6(p []byte, fn func(code uint16, value []byte)) {
	for len(p) >= 4 {
		code, n := binary.BigEndian.Uint16(p), int(binary.BigEndian.Uint16(p[2:]))
		if len(p) < 4+n {
			return
		}
		fn(code, p[4:4+n])
		p = p[4+n:]
	}
}

// leases6 calls fn for each address in the options of a message, but not for
// those that a status code refuses. A lifetime of 0 s is an address given up.
func leases6(p []byte, fn func(ip netip.Addr, lifetime uint32)) {
	options6(p, func(code uint16, value []byte) {
		header := map[uint16]int{option6IANA: 12, option6IATA: 4}[code]
		if header == 0 || len(value) < header {
			return
		}
		options6(value[header:], func(code uint16, value []byte) {
			if code != option6IAAddr || len(value) < 24 || refused(value[24:]) {
				return
			}
			fn(netip.AddrFrom16([16]byte(value)), binary.BigEndian.Uint32(value[20:]))
		})
	})
}

func refused(options []byte) (yes bool) {
	options6(options, func(code uint16, value []byte) {
		yes = yes || code == option6Status && len(value) >= 2 && binary.BigEndian.Uint16(value) != 0
	})
	return yes
}

// number6 is a message's transaction.
func number6(p []byte) uint32 { return binary.BigEndian.Uint32(p) & 0xffffff }

// dhcp6Sent learns from the guest's message.
func (t *table) dhcp6Sent(f message, p []byte) {
	if len(p) < 4 {
		return
	}
	// Others may be routed through the guest.
	if f.source.IsLinkLocalUnicast() {
		t.sign(f.now, f.source, SourceDHCP)
	}
	switch p[0] {
	case dhcp6Solicit, dhcp6Request, dhcp6Renew, dhcp6Rebind:
		t.requests.add(request{version: 6, id: number6(p), at: f.now})
	case dhcp6Release, dhcp6Decline:
		leases6(p[4:], func(ip netip.Addr, _ uint32) { t.forget(ip) })
	}
}

// dhcp6Received learns from a server's answer. It names no MAC, and goes to the
// guest alone.
func (t *table) dhcp6Received(f message, p []byte) {
	if len(p) < 4 || p[0] != dhcp6Reply {
		return
	}
	if _, ok := t.requests.find(f.now, 6, number6(p)); !ok {
		return
	}
	leases6(p[4:], func(ip netip.Addr, lifetime uint32) {
		switch lifetime {
		case 0:
			t.forget(ip)
		case forEver:
			t.lease(f.now, ip, 0)
		default:
			t.lease(f.now, ip, time.Duration(lifetime)*time.Second)
		}
	})
}
