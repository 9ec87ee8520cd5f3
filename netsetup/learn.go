package netsetup

import (
	"net"
	"net/netip"
	"time"
)

// The limits of what is learned, and for how long.
const (
	maxAddresses = 64               // of one NIC
	maxAge       = 24 * time.Hour   // without a sign, and without a lease
	leaseGrace   = time.Minute      // after a lease's end: clocks differ, and servers wait too
	conflictAge  = 5 * time.Minute  // after the other's last claim
	defendTime   = 10 * time.Second // an announcement this soon after a claim is the defence (RFC 5227, 2.4)
	dadTime      = 3 * time.Second  // for an objection to a tentative address (RFC 4862, 5.4)
)

// An address is gone when it was asked for this often, over this long, and the
// guest had this long to answer the last question. Questions further apart than
// askMemory say nothing together.
const (
	askCount   = 3
	askSpan    = 2 * time.Second
	answerTime = time.Second
	askMemory  = time.Minute
)

// table holds a NIC's addresses and the rules by which they come and go. It is
// pure: frames and the time go in, and touched tells that it changed.
type table struct {
	mac      hwaddr
	entries  map[netip.Addr]*entry
	requests requests
	paused   bool
	heard    time.Time // the guest's silence counts from here on
	touched  bool      // the addresses, their sources, leases or conflicts changed; whoever asks resets it
}

type hwaddr [6]byte

func (h hwaddr) String() string { return net.HardwareAddr(h[:]).String() }

type entry struct {
	Address
	tentative time.Time // when the guest began to ask whether it may have it
	claimed   time.Time // when another machine last did
	asked     int       // questions since the guest's last sign
	first     time.Time // the first of them
	last      time.Time
	doomed    time.Time // until then the guest can still answer; zero: no need
}

// newTable starts with what was known before. Only what a table learns itself
// is taken over.
func newTable(now time.Time, mac hwaddr, seed []Address) *table {
	t := &table{mac: mac, entries: make(map[netip.Addr]*entry), heard: now}
	for _, a := range seed {
		if a.Source != SourceARP && a.Source != SourceDHCP && a.Source != SourceND {
			continue
		}
		if a.IP = a.IP.WithZone(""); !Learnable(a.IP) {
			continue
		}
		t.makeRoom()
		t.entries[a.IP] = &entry{Address: a, claimed: now}
	}
	return t
}

// addresses lists what is known, sorted.
func (t *table) addresses() []Address {
	list := make([]Address, 0, len(t.entries))
	for _, e := range t.entries {
		list = append(list, e.Address)
	}
	sortAddresses(list)
	return list
}

// sign notes that the guest uses ip. It returns nil for what is no address.
func (t *table) sign(now time.Time, ip netip.Addr, source Source) *entry {
	e := t.entries[ip]
	if e == nil {
		if !Learnable(ip) {
			return nil
		}
		t.makeRoom()
		e = &entry{Address: Address{IP: ip, Source: source, Since: now}}
		t.entries[ip] = e
		t.touched = true
	}
	e.Seen = now
	e.tentative = time.Time{}
	e.unask()
	return e
}

// announce notes that the guest told everybody that ip is its own. That ends a
// conflict, unless it is the defence in it.
func (t *table) announce(now time.Time, ip netip.Addr, source Source) *entry {
	e := t.sign(now, ip, source)
	if e != nil && e.Conflict != "" && now.Sub(e.claimed) >= defendTime {
		e.Conflict = ""
		t.touched = true
	}
	return e
}

// try notes that the guest asks whether it may have ip. Failure is rare, so it
// is listed at once, and taken back by object.
func (t *table) try(now time.Time, ip netip.Addr) {
	if e := t.announce(now, ip, SourceND); e != nil {
		e.tentative = now
	}
}

// object takes a tentative address back. It reports false for any other.
func (t *table) object(now time.Time, e *entry) bool {
	if e.tentative.IsZero() || now.Sub(e.tentative) >= dadTime {
		return false
	}
	t.forget(e.IP)
	return true
}

// lease notes that a server gave ip to the guest, for ever when valid is 0.
func (t *table) lease(now time.Time, ip netip.Addr, valid time.Duration) {
	e := t.sign(now, ip, SourceDHCP)
	if e == nil {
		return
	}
	e.Source, e.Expires = SourceDHCP, time.Time{}
	if valid > 0 {
		e.Expires = now.Add(valid)
	}
	t.touched = true
}

// claim notes that another machine uses an address of the guest.
func (t *table) claim(now time.Time, e *entry, other hwaddr) {
	if other == t.mac {
		return // what the guest itself said, brought back by another
	}
	e.claimed = now
	if mac := other.String(); e.Conflict != mac {
		e.Conflict = mac
		t.touched = true
	}
}

// ask notes that another machine asks for an address of the guest. A paused
// guest cannot answer.
func (t *table) ask(now time.Time, e *entry) {
	if t.paused {
		return
	}
	if e.asked == 0 || now.Sub(e.last) > askMemory {
		e.unask()
		e.first = now
	}
	e.asked++
	e.last = now
	if e.doomed.IsZero() && e.asked >= askCount && now.Sub(e.first) >= askSpan {
		e.doomed = now.Add(answerTime)
	}
}

func (e *entry) unask() { e.asked, e.doomed = 0, time.Time{} }

// unaskAll forgets the questions, because answers to them may have gone unseen.
func (t *table) unaskAll() {
	for _, e := range t.entries {
		e.unask()
	}
}

// pause tells whether the guest stands still.
func (t *table) pause(now time.Time, paused bool) {
	if t.paused && !paused {
		t.heard = now
	}
	t.paused = paused
	t.unaskAll()
}

func (t *table) forget(ip netip.Addr) {
	if _, ok := t.entries[ip]; ok {
		delete(t.entries, ip)
		t.touched = true
	}
}

func (t *table) forgetAll() {
	t.touched = t.touched || len(t.entries) > 0
	clear(t.entries)
	t.requests = requests{}
}

// makeRoom forgets the address that was not seen for the longest time when
// there is no room for one more.
func (t *table) makeRoom() {
	if len(t.entries) < maxAddresses {
		return
	}
	var oldest *entry
	for _, e := range t.entries {
		if oldest == nil || e.Seen.Before(oldest.Seen) {
			oldest = e
		}
	}
	t.forget(oldest.IP)
}

// sweep forgets what is over by now. It returns when to call it next if no frame
// comes; zero is never.
func (t *table) sweep(now time.Time) (next time.Time) {
	for ip, e := range t.entries {
		end := t.end(e)
		if over(now, end) {
			t.forget(ip)
			continue
		}
		next = earlier(next, end)
		if e.Conflict == "" {
			continue
		}
		if settled := e.claimed.Add(conflictAge); over(now, settled) {
			e.Conflict = ""
			t.touched = true
		} else {
			next = earlier(next, settled)
		}
	}
	return next
}

// end is when an address is forgotten unless there is another sign of it; zero
// is never. A guest keeps its link-local address while its link is up, and need
// not say a word about it.
func (t *table) end(e *entry) time.Time {
	switch {
	case !e.Expires.IsZero():
		return earlier(e.doomed, e.Expires.Add(leaseGrace))
	case t.paused || e.IP.Is6() && e.IP.IsLinkLocalUnicast():
		return e.doomed
	}
	silent := e.Seen
	if silent.Before(t.heard) {
		silent = t.heard
	}
	return earlier(e.doomed, silent.Add(maxAge))
}

func over(now, end time.Time) bool { return !end.IsZero() && !now.Before(end) }

// earlier returns the earlier of two times of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
