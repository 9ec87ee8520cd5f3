package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
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
	logged  map[string]*hour // by kind
}

// view is what is known of a NIC beside what it is to be.
type view struct {
	link     LinkState
	mac      net.HardwareAddr // the child's, where the guest was trusted to change it
	mtu      int              // the child's
	refused  string           // what the guest wanted of its NIC and did not get
	note     string           // what else the owner should know
	filter   netsetup.Filter
	filtered bool // by the guest's wish; false: it cannot say
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
		wake: make(chan struct{}, 1), jobs: make(chan func()), unplugged: make(chan struct{}, 1), logged: map[string]*hour{},
	}
}

func (n *card) device() string { return nicID(number(n.child)) }

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
func (n *card) touch() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// doubt has the NIC's whole state looked at soon.
func (n *card) doubt() {
	n.doubtful.Store(true)
	n.touch()
}

func (n *card) noteUnplugged() {
	select {
	case n.unplugged <- struct{}{}:
	default:
	}
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

// hour counts what was logged in one.
type hour struct {
	began time.Time
	lines int
}

// hourly is how much of a kind is logged: a guest can make news for ever.
const hourly = 20

// log writes of the NIC into the log, unless there was much of the kind lately.
func (n *card) log(level slog.Level, kind, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.logged[kind]
	if h == nil || time.Since(h.began) >= time.Hour {
		h = &hour{began: time.Now()}
		n.logged[kind] = h
	}
	if h.lines++; h.lines > hourly {
		return
	}
	args := []any{"nic", n.name, "change", kind}
	if h.lines == hourly {
		args = append(args, "then", "no more of this kind within the hour")
	}
	n.life.log.Log(context.Background(), level, text, args...)
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

// tend makes everything right once.
func (n *card) tend(ctx context.Context) error {
	cond, err := n.life.ns.Look(n.child)
	if err != nil {
		return err
	}
	switch {
	case !cond.Parent:
		return n.parentGone(ctx, cond)
	case !cond.Attached || n.isLost():
		if err := n.replug(ctx); err != nil {
			return err
		}
		if cond, err = n.life.ns.Look(n.child); err != nil {
			return err
		}
	}
	note := ""
	var errs []error // of one that fails, a QEMU that does not answer say, the others do not suffer
	for _, act := range []func(context.Context, netsetup.Condition, *string) error{
		n.restore, n.mirrorLink, n.keepMAC, n.keepMTU, n.keepUp, n.followFilter, n.keepAccess,
	} {
		errs = append(errs, act(ctx, cond, &note))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	n.see(func(v *view) { v.note = note })
	return nil
}

// parentGone says so to the guest, by its link, and to whoever listens. A VLAN
// device goes with its own parent, and does not come back by itself.
func (n *card) parentGone(ctx context.Context, cond netsetup.Condition) error {
	if !cond.Child {
		if err := n.lose(); err != nil {
			return err
		}
	}
	if err := n.setLink(ctx, LinkParentGone); err != nil || n.child.VLAN == 0 {
		return err
	}
	bare := n.child
	bare.VLAN = 0
	if cond, err := n.life.ns.Look(bare); err != nil || !cond.Parent {
		return err
	}
	_, err := netsetup.AcquireVLAN(ctx, n.life.owner(), n.child.Parent, n.child.VLAN) // which wakes the NIC
	return err
}

// restore gives the child again all that the other acts do not look at: a
// predecessor may have been killed before it wrote down what it did.
func (n *card) restore(ctx context.Context, cond netsetup.Condition, _ *string) error {
	if !n.doubtful.Swap(false) {
		return nil
	}
	n.see(func(v *view) { v.link = "" }) // which has QEMU asked whether it has the card
	n.filterChanged.Store(true)
	c, ns := n.child, n.life.ns
	var mode error
	if cond.Mode != c.Mode && c.Kind != configs.KindIPvtap {
		mode = ns.SetMode(c)
	}
	pin := ns.Pin(c)
	if c.Pin == configs.PinNone && (errors.Is(pin, unix.EOPNOTSUPP) || errors.Is(pin, unix.EPROTONOSUPPORT)) {
		pin = nil // a kernel that cannot pin has nothing to take away
	}
	err := errors.Join(mode, pin, ns.Shape(c, c.Bandwidth), n.life.nics.settleAccess(ctx, c.Lower()))
	if c.Trust != configs.TrustNone {
		err = errors.Join(err, n.askFilter(ctx)) // or keepMAC would take the guest's MAC for one that was forged
	}
	if err != nil {
		n.doubtful.Store(true)
	}
	return err
}

// keepAccess keeps the host's way to the NIC.
func (n *card) keepAccess(ctx context.Context, _ netsetup.Condition, _ *string) error {
	if !n.child.HostAccess {
		return nil
	}
	return n.life.nics.reach(ctx, n.child.Lower())
}

// mirrorLink gives the guest's link the state of the parent's.
func (n *card) mirrorLink(ctx context.Context, cond netsetup.Condition, _ *string) error {
	state := LinkUp
	switch {
	case n.child.LinkDown:
		state = LinkDown
	case !cond.Carrier:
		state = LinkNoCarrier
	}
	return n.setLink(ctx, state)
}

// setLink tells the guest's card about its link, when that is news.
func (n *card) setLink(ctx context.Context, state LinkState) error {
	before := n.seen().link
	if state == before {
		return nil
	}
	err := n.qemu(ctx, func(mon *qmp.Client, ctx context.Context) error {
		return mon.SetLink(ctx, n.device(), state == LinkUp)
	})
	switch {
	case errors.Is(err, qmp.ErrDeviceNotFound) && !n.isLost():
		return n.life.nics.ejected(n)
	case err != nil && !errors.Is(err, qmp.ErrDeviceNotFound): // a card that is out has no link
		return err
	}
	n.see(func(v *view) { v.link = state })
	if before == "" && state == LinkUp {
		return nil // as one expects of a NIC that has just been made
	}
	switch state {
	case LinkUp:
		n.event("link-up", "%s has its link again", n.child.Lower())
	case LinkNoCarrier:
		n.event("link-down", "%s has no carrier", n.child.Lower())
	case LinkParentGone:
		n.event("parent-gone", "%s is gone: when a link of that name is there again, the NIC is plugged into it", n.child.Lower())
	case LinkDown:
		n.event("link-down", "the link was set down")
	}
	return nil
}

// qemu runs a command on QEMU's monitor, with the time of one that QEMU answers
// at once.
func (n *card) qemu(ctx context.Context, command func(*qmp.Client, context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	mon, err := n.life.reach(ctx)
	if err != nil {
		return err
	}
	return command(mon, ctx)
}

// keepMAC gives the child its address back. Whoever has the tap can change it,
// and that of the parent in passthru (drivers/net/tap.c, SIOCSIFHWADDR).
func (n *card) keepMAC(_ context.Context, cond netsetup.Condition, _ *string) error {
	want := n.child
	want.MAC = n.mac()
	if want.Kind == configs.KindIPvtap || slices.Equal(cond.MAC, want.MAC) {
		return nil
	}
	if err := n.life.ns.SetMAC(want); err != nil {
		return err
	}
	n.event("mac-restored", "the link's MAC was changed to %s from behind, by QEMU for example: it is %s again", cond.MAC, want.MAC)
	return nil
}

// keepMTU gives the child its MTU back after its parent's was lowered and
// raised again.
func (n *card) keepMTU(_ context.Context, cond netsetup.Condition, note *string) error {
	n.see(func(v *view) { v.mtu = cond.MTU })
	want := n.child.MTU
	switch {
	case want == 0 || cond.MTU == want:
	case cond.ParentMTU >= want:
		if err := n.life.ns.SetMTU(n.child); err != nil {
			return err
		}
		n.see(func(v *view) { v.mtu = want })
	default:
		*note = fmt.Sprintf("the guest was told an MTU of %d, and %s has %d by now: larger packets are lost: lower it in the guest, or type: ip link set %s mtu %d",
			want, n.child.Lower(), cond.ParentMTU, n.child.Lower(), want)
	}
	if want != 0 && cond.ParentMTU > want && *note == "" && n.grown(cond.ParentMTU) {
		*note = fmt.Sprintf("%s has an MTU of %d by now, and the guest was told %d: vmrun restart makes it the new one", n.child.Lower(), cond.ParentMTU, want)
	}
	return nil
}

// grown reports whether the parent's MTU has outgrown that of a child whose MTU
// was to be the parent's.
func (n *card) grown(parent int) bool {
	nics := n.life.guest.NICs
	i := number(n.child)
	return i < len(nics) && nics[i].MTU == 0 && parent > n.child.MTU
}

func (n *card) keepUp(_ context.Context, cond netsetup.Condition, _ *string) error {
	if cond.Up {
		return nil
	}
	return n.life.ns.Up(n.child)
}

// followFilter asks QEMU what the guest's driver wants to receive, and has the
// child let in as much of it as the guest may have.
func (n *card) followFilter(ctx context.Context, _ netsetup.Condition, _ *string) error {
	if !n.filterChanged.Swap(false) {
		return nil
	}
	err := n.askFilter(ctx)
	if err != nil {
		n.filterChanged.Store(true)
	}
	return err
}

func (n *card) askFilter(ctx context.Context) error {
	var wish *qmp.RxFilter
	if isVirtio(n.child.Model) {
		var rx qmp.RxFilter
		err := n.qemu(ctx, func(mon *qmp.Client, ctx context.Context) (err error) {
			rx, err = mon.QueryRxFilter(ctx, n.device())
			return err
		})
		var refused *qmp.Error
		switch {
		case err == nil:
			wish = &rx
		case !errors.As(err, &refused):
			return err
		}
	}
	filter, mac, refused := permit(n.child, wish)
	if err := n.takeMAC(mac, &refused); err != nil {
		return err
	}
	if err := n.life.ns.SetFilter(n.child, filter); err != nil {
		return err
	}
	before := n.seen()
	n.see(func(v *view) { v.filter, v.filtered, v.refused = filter, wish != nil, refused })
	if refused != "" && refused != before.refused {
		n.event("refused", "%s", refused)
	}
	return nil
}

// takeMAC gives the child the address that its guest has been allowed to take.
func (n *card) takeMAC(mac net.HardwareAddr, refused *string) error {
	if slices.Equal(mac, n.mac()) {
		return nil
	}
	c := n.child
	c.MAC = mac
	err := n.life.ns.SetMAC(c)
	if errors.Is(err, unix.EADDRINUSE) {
		*refused = fmt.Sprintf("the guest set its MAC to %s, which another on %s has", mac, c.Lower())
		return nil
	}
	if err != nil {
		return err
	}
	if ear := n.ear(); ear != nil {
		ear.SetMAC(mac)
	}
	n.see(func(v *view) {
		v.mac = nil
		if !slices.Equal(mac, n.child.MAC) {
			v.mac = mac
		}
	})
	n.event("mac-changed", "the guest set its MAC to %s", mac)
	return nil
}

// isLost reports whether QEMU's card has no part in the child any more.
func (n *card) isLost() bool { return slices.Contains(n.life.snapshot().Lost, n.name) }

// lose notes that the child is gone, or about to be made anew, for whoever
// looks after the guest then.
func (n *card) lose() error {
	if n.isLost() {
		return nil
	}
	if ear := n.ear(); ear != nil {
		ear.Forget()
	}
	return n.life.update(func(r *record) {
		r.Lost = append(slices.Clone(r.Lost), n.name)
		r.setAddresses(n.name, nil)
	})
}

func (n *card) regain() error {
	return n.life.update(func(r *record) { r.regain(n.name) })
}

func (r *record) regain(name string) {
	r.Lost = slices.DeleteFunc(slices.Clone(r.Lost), func(lost string) bool { return lost == name })
}

// setAddresses notes what was learned of a child. Others who read the record
// have the old map.
func (r *record) setAddresses(name string, list []netsetup.Address) {
	changed := maps.Clone(r.Addresses)
	delete(changed, name)
	if len(list) > 0 {
		if changed == nil {
			changed = map[string][]netsetup.Address{}
		}
		changed[name] = list
	}
	r.Addresses = changed
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
