package launcher

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
)

// card is one NIC of a running guest. Its goroutine alone changes it; others
// wake that, or give it a job.
type card struct {
	life *life
	name string // the child's: "net0"

	wake          chan struct{} // holds one: something may have changed
	jobs          chan func()
	unplugged     chan struct{} // holds one: QEMU has said that the card is gone
	filterChanged atomic.Bool
	doubtful      atomic.Bool // what the kernel and QEMU have of it may not be what was recorded
	halt          func()      // ends the goroutine, and waits for that; set by tend

	telling sync.Mutex // held while the addresses are told of

	mu      sync.Mutex // guards what follows against those who ask for the status
	child   netsetup.Child
	learner *netsetup.Learner
	view    view
}

// view is what is known of a NIC beside what it is to be.
type view struct {
	link    LinkState
	untold  bool             // QEMU may not know the link's state
	mac     net.HardwareAddr // the child's, where the guest was trusted to change it
	mtu     int              // the child's
	refused string           // what the guest wanted of its NIC and did not get
	note    string           // what else the owner should know
	filter  netsetup.Filter
}

// LinkState says why a guest's link is up or down.
type LinkState string

// The states of a link.
const (
	LinkUp         LinkState = "up"
	LinkDown       LinkState = "down"        // the owner has pulled the guest's cable
	LinkNoCarrier  LinkState = "no carrier"  // the parent's cable is out, or the parent down
	LinkParentGone LinkState = "parent gone" // there is no such parent now
)

func newCard(l *life, c netsetup.Child) *card {
	return &card{
		life: l, name: c.Name, child: c,
		wake: make(chan struct{}, 1), jobs: make(chan func()), unplugged: make(chan struct{}, 1),
	}
}

// device is the card's id in QEMU.
func (n *card) device() string { return nicID(numberOf(n.name)) }

// current is the child as it is to be.
func (n *card) current() netsetup.Child {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.child
}

func (n *card) set(c netsetup.Child) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.child = c
}

func (n *card) see(change func(*view)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(&n.view)
}

func (n *card) seen() view {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view
}

// mac is the address that the child is to have.
func (n *card) mac() net.HardwareAddr {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.view.mac != nil {
		return n.view.mac
	}
	return n.child.MAC
}

// touch has the NIC looked at soon.
func (n *card) touch() { nudge(n.wake) }

// doubt has the NIC's whole state looked at soon.
func (n *card) doubt() {
	n.doubtful.Store(true)
	n.touch()
}

// listen opens the NIC's ear for the guest's addresses. A child that is not
// there has none.
func (n *card) listen() error {
	n.mu.Lock() // before the ear is in its place nobody asks it
	defer n.mu.Unlock()
	rec := n.life.snapshot()
	learner, err := n.life.ns.Learn(n.child, rec.Addresses[n.name], n.addressesHeard)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	learner.SetPaused(rec.Situation.Paused)
	n.learner = learner
	return nil
}

// ear is what listens, or nil.
func (n *card) ear() *netsetup.Learner {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.learner
}

func (n *card) deafen() error {
	ear := n.ear()
	if ear == nil {
		return nil
	}
	n.mu.Lock()
	n.learner = nil
	n.mu.Unlock()
	return ear.Close()
}

// addressesHeard is called when the guest's frames have told of its addresses.
func (n *card) addressesHeard() {
	n.tellAddresses()
	n.life.nics.agent.touch()
	n.touch()
}

// tellAddresses notes what is known of the NIC's addresses by now, and tells
// everybody on the control socket.
func (n *card) tellAddresses() {
	n.telling.Lock()
	defer n.telling.Unlock()
	addresses := n.addresses()
	err := n.life.update(func(r *record) { r.setAddresses(n.name, addresses) })
	if err != nil {
		n.life.log.Error("the state file is out of date", "error", err)
	}
	n.life.announce(newEvent(EventAddresses, map[string]any{"nic": n.name, "addresses": addresses}))
	n.life.checkReady()
}

// reachable are the addresses by which the host may reach the guest: those of
// the spec, or those that its frames have borne out. Link-local ones are nobody's
// but the wire's.
func (n *card) reachable() []netip.Addr {
	c := n.current()
	if len(c.Addresses) > 0 {
		return c.Addresses
	}
	var list []netip.Addr
	for _, a := range n.learned() {
		if a.Conflict == "" && !a.IP.IsLinkLocalUnicast() {
			list = append(list, a.IP)
		}
	}
	return list
}

// addresses are those that the guest's frames and its agent have told. ipvtaps
// share a MAC, by which the agent cannot tell them apart.
func (n *card) addresses() []netsetup.Address {
	if n.current().Kind == configs.KindIPvtap {
		return n.learned()
	}
	return n.life.nics.agent.word().over(n.learned(), n.mac())
}

// learned are the addresses that the guest's frames have told.
func (n *card) learned() []netsetup.Address {
	if ear := n.ear(); ear != nil {
		return ear.Addresses()
	}
	return nil
}

// run looks after the NIC until ctx ends.
func (n *card) run(ctx context.Context) {
	var again <-chan time.Time
	wake := n.wake
	pause := time.NewTimer(0)
	defer pause.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case job := <-n.jobs:
			job() // which sees to its namespace itself
		case <-pause.C:
			wake = n.wake
		case <-again:
			n.touch()
		case <-wake:
			again = nil
			if err := n.life.nics.host.Do(func() error { return n.tend(ctx) }); err != nil && ctx.Err() == nil {
				n.complain(err)
				failures++
				again = time.After(min(time.Duration(failures)*time.Second, 10*time.Second))
			} else {
				failures = 0
			}
			wake = nil // not before settle is over
			pause.Reset(settle)
		}
	}
}

func (n *card) complain(err error) {
	if text := err.Error(); text != n.seen().note {
		n.log(slog.LevelWarn, "error", text)
		n.see(func(v *view) { v.note = text })
	}
}

// log writes of the NIC into the log, which takes so much of each kind.
func (n *card) log(level slog.Level, kind, text string) {
	n.life.log.Log(context.Background(), level, text, "nic", n.name, "change", kind)
}

// do has the NIC's goroutine run fn, and waits for it.
func (n *card) do(ctx context.Context, fn func() error) error {
	result := make(chan error, 1)
	select {
	case n.jobs <- func() { result <- fn() }:
		return <-result
	case <-ctx.Done():
		return ctx.Err()
	}
}

// status is everything that can be said of the NIC now.
func (n *card) status() NICStatus {
	c, v := n.current(), n.seen()
	s := nicStatus(c, n.addresses())
	s.Link, s.Refused, s.Note = v.link, v.refused, v.note
	s.AllGroups = v.filter.AllMulticast
	for _, group := range v.filter.Multicast {
		s.Groups = append(s.Groups, group.String())
	}
	s.MAC = n.mac().String()
	if v.mtu != 0 {
		s.MTU = v.mtu
	}
	if c.Pin != configs.PinNone {
		if refusals, ok, err := n.life.ns.Pinned(c); err == nil && ok {
			s.Dropped = &refusals
		}
	}
	if c.HostAccess {
		s.Unrouted = n.life.nics.unreached(c.Lower(), n.reachable())
	}
	return s
}
