package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

// unplugTimeout is how long a guest may take to let go of a card.
const unplugTimeout = 10 * time.Second

// change is one act on a NIC of a running guest.
type change struct {
	name string
	do   func(context.Context) error
	undo func(context.Context) error // of one that was done, or begun; nil: whoever asked sees to that
}

// make carries out changes in order. When one fails, it and those before it are
// taken back, newest first, and the error says which it was.
func (n *card) make(ctx context.Context, changes []change) error {
	for i, c := range changes {
		name := n.name + " " + c.name
		err := n.life.opts.hook("before", name)
		if err == nil {
			err = c.do(ctx)
		}
		if err == nil {
			err = n.life.opts.hook("after", name)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", name, err), takeBack(changes[:i+1]))
		}
	}
	return nil
}

func takeBack(changes []change) error {
	ctx, cancel := context.WithTimeout(context.Background(), unplugTimeout+commandTimeout)
	defer cancel()
	var errs []error
	for _, c := range slices.Backward(changes) {
		if c.undo != nil {
			errs = append(errs, c.undo(ctx))
		}
	}
	return errors.Join(errs...)
}

// plugging are the changes that make the child and plug it into the guest;
// remove takes back as much of it as there is.
func (n *card) plugging() []change {
	c, ns := n.child, n.life.ns
	var files map[string]*os.File
	var changes []change
	add := func(name string, do func(context.Context) error) {
		changes = append(changes, change{name, do, nil})
	}
	if c.VLAN != 0 {
		add("vlan", func(ctx context.Context) error {
			_, err := netsetup.AcquireVLAN(ctx, owner(c), c.Parent, c.VLAN)
			return err
		})
	}
	add("create", func(ctx context.Context) error {
		return explainCreate(c, retryAddress(ctx, func() error { return ns.Create(c) }))
	})
	changes = append(changes, change{"open", func(context.Context) (err error) {
		files, err = openNIC(ns, c)
		return err
	}, func(context.Context) error { closeFiles(files); return nil }})
	if c.Pin != configs.PinNone {
		add("pin", func(context.Context) error { return ns.Pin(c) })
	}
	if c.Bandwidth != (configs.Bandwidth{}) {
		add("shape", func(context.Context) error { return ns.Shape(c, c.Bandwidth) })
	}
	add("filter", func(context.Context) error { return ns.SetFilter(c, firstFilter(c)) })
	add("up", func(ctx context.Context) error {
		return explainCreate(c, retryAddress(ctx, func() error { return ns.Up(c) }))
	})
	add("pass", func(ctx context.Context) error { return n.pass(ctx, files) })
	add("netdev add", func(ctx context.Context) error {
		return n.qemu(ctx, func(mon *qmp.Client, ctx context.Context) error {
			return mon.NetdevAdd(ctx, backend(c, namesOf(c, tapName), n.vhosts()).object())
		})
	})
	add("device add", func(ctx context.Context) error {
		return n.qemu(ctx, func(mon *qmp.Client, ctx context.Context) error {
			return mon.DeviceAdd(ctx, device(c, n.life.snapshot().Ports > 0).object())
		})
	})
	add("done", func(context.Context) error { closeFiles(files); return nil })
	return changes
}

// namesOf are the names of a child's descriptors.
func namesOf(c netsetup.Child, name func(netsetup.Child, int) string) []string {
	var names []string
	for q := range c.Queues {
		names = append(names, strings.ReplaceAll(name(c, q), " ", "-"))
	}
	return names
}

func (n *card) vhosts() []string {
	if n.child.Vhost != configs.VhostOn {
		return nil
	}
	return namesOf(n.child, vhostName)
}

// pass hands QEMU the files for one netdev_add to come.
func (n *card) pass(ctx context.Context, files map[string]*os.File) error {
	for name, f := range files {
		err := n.qemu(ctx, func(mon *qmp.Client, ctx context.Context) error {
			return mon.GetFD(ctx, strings.ReplaceAll(name, " ", "-"), f)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// takeFiles takes back those that no netdev_add has taken.
func (n *card) takeFiles(ctx context.Context) error {
	for _, name := range append(namesOf(n.child, tapName), n.vhosts()...) {
		err := n.qemu(ctx, func(mon *qmp.Client, ctx context.Context) error { return mon.CloseFD(ctx, name) })
		if err := unlessRefused(err); err != nil {
			return err
		}
	}
	return nil
}

// unlessRefused is err, unless QEMU only said no: what was to go is not there.
func unlessRefused(err error) error {
	if errors.As(err, new(*qmp.Error)) {
		return nil
	}
	return err
}

func (n *card) removeBackend(ctx context.Context) error {
	return unlessRefused(n.qemu(ctx, func(mon *qmp.Client, ctx context.Context) error {
		return mon.NetdevDel(ctx, n.name)
	}))
}

// unplug has the guest let go of the card, and waits until it has. A card that
// is not there is no error.
func (n *card) unplug(ctx context.Context) error {
	select {
	case <-n.unplugged: // of an earlier one
	default:
	}
	err := n.qemu(ctx, func(mon *qmp.Client, ctx context.Context) error { return mon.DeviceDel(ctx, n.device()) })
	if errors.Is(err, qmp.ErrDeviceNotFound) {
		return nil
	}
	if err := unlessRefused(err); err != nil { // QEMU refuses while the guest was asked already
		return err
	}
	select {
	case <-n.unplugged:
		return nil
	case <-time.After(unplugTimeout):
		return fmt.Errorf("the guest has not let go of the card within %v: it may be paused, still booting, or without PCI hot plug", unplugTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// remove takes the card out of the guest and the child out of the kernel.
func (n *card) remove(ctx context.Context) error {
	if err := n.unplug(ctx); err != nil {
		return err
	}
	return errors.Join(n.removeBackend(ctx), n.takeFiles(ctx), n.life.ns.Delete(n.child))
}

// replug makes the child anew on the parent that is there now, and a card for
// it in the slot of the old one.
func (n *card) replug(ctx context.Context) error {
	if err := n.lose(); err != nil {
		return err
	}
	if err := n.remove(ctx); err != nil {
		return err
	}
	if err := n.make(ctx, n.plugging()); err != nil {
		return err
	}
	if err := errors.Join(n.deafen(), n.listen()); err != nil { // the old ear was on the old child
		return err
	}
	n.see(func(v *view) { v.link, v.mac = "", nil })
	n.filterChanged.Store(true)
	if err := n.regain(); err != nil {
		return err
	}
	n.event("replugged", "%s is there again: the NIC was plugged into it", n.child.Lower())
	return nil
}

// attach adds a NIC to the guest. The error is a configs.Errors when the words
// make no NIC that the guest can have.
func (m *nics) attach(ctx context.Context, words []string, force bool) (NICStatus, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return NICStatus{}, err
	}
	defer unlock()
	c, err := m.newChild(words, force)
	if err != nil {
		return NICStatus{}, err
	}
	l := m.life
	if err := l.update(func(r *record) { r.Plugging = &c }); err != nil {
		return NICStatus{}, err
	}
	n := newCard(l, c)
	m.add(n) // so that it hears of its card
	if err := n.make(m.ctx, attaching(n)); err != nil {
		return NICStatus{}, errors.Join(err, m.discard(n))
	}
	m.tend(n)
	n.event("attached", "attached to %s", c.Lower())
	return n.status(), nil
}

// attaching are the changes that add a NIC to a guest that runs.
func attaching(n *card) []change {
	return append(n.plugging(),
		change{"listen", func(context.Context) error { return n.listen() }, nil},
		change{"record", func(context.Context) error {
			return n.life.update(func(r *record) { r.Children, r.Plugging = inOrder(append(slices.Clone(r.Children), n.child)), nil })
		}, func(context.Context) error {
			return n.life.update(func(r *record) { r.Children, r.Plugging = without(r.Children, n.child), &n.child })
		}})
}

// lock keeps others from changing NICs, when it is the turn of whoever wants to.
// The change that follows is carried out whole, whether or not its client waits
// for it, and so with the context of m.
func (m *nics) lock(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(m.ctx, func() { cancel(errGone) })()
	select {
	case <-m.started:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case m.change <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if c := m.life.snapshot().Plugging; c != nil {
		<-m.change
		return nil, qmp.Errorf("%s is still being removed: the guest does not let go of it", c.Name)
	}
	return func() { <-m.change }, nil
}

// newChild resolves and checks a NIC to be.
func (m *nics) newChild(words []string, force bool) (netsetup.Child, error) {
	l := m.life
	rec := l.snapshot()
	n, err := configs.NICFromWords(rec.Guest.CPUs, words)
	if err != nil {
		return netsetup.Child{}, err
	}
	facts := Facts{Slot: rec.Slot}
	if err := facts.gatherNetwork(rec.Guest, filepath.Dir(string(l.dir)), n); err != nil {
		return netsetup.Child{}, err
	}
	i := 0
	for slices.ContainsFunc(rec.Children, func(c netsetup.Child) bool { return number(c) == i }) {
		i++
	}
	if limit := rec.slots(); i >= limit {
		return netsetup.Child{}, qmp.Errorf("the guest has no slot left for a NIC, of %d: detach one, or restart it with the NIC in its spec", limit)
	}
	c := newChild(rec.Guest, i, n, facts)
	all := append(slices.Clone(rec.Children), c)
	nicsOf := make([]configs.NIC, len(all))
	for i, c := range all {
		nicsOf[i] = c.NIC
	}
	if err := configs.CheckNICs(nicsOf); err != nil {
		return netsetup.Child{}, err
	}
	var errs configs.Errors
	for _, p := range netsetup.Check(all, facts.Net, facts.Others) {
		if p.Child == len(all)-1 && !p.Warning && !(p.Force && force) {
			errs = append(errs, &configs.Error{Key: p.Key, Msg: p.Msg})
		}
	}
	if err := facts.vhostFor(c); err != nil {
		errs = append(errs, &configs.Error{Key: "vhost", Msg: err.Error()})
	}
	if len(errs) > 0 {
		return netsetup.Child{}, errs
	}
	return c, nil
}

// slots is how many NICs the guest has room for.
func (r *record) slots() int {
	if r.Ports > 0 {
		return r.Ports
	}
	return maxNICs
}

// detach removes a NIC from the guest.
func (m *nics) detach(ctx context.Context, name string) error {
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	n, err := m.named(name)
	if err != nil {
		return err
	}
	return m.takeOut(n)
}

// ejected is called when QEMU does not have the card of a NIC any more: the
// guest has given it up by itself, or long after it was asked to.
func (m *nics) ejected(n *card) error {
	m.running.Go(func() {
		unlock, err := m.lock(m.ctx)
		if err != nil {
			return // the NIC's goroutine comes back to it
		}
		defer unlock()
		if m.find(n.name) == n {
			_ = m.host.Do(func() error { return m.takeOut(n) }) // likewise
		}
	})
	return errors.New("the guest has given the card up: the NIC is being detached")
}

// takeOut removes a NIC from the guest.
func (m *nics) takeOut(n *card) error {
	n.halt() // nobody shall mend what is taken apart
	c := n.child
	l := m.life
	err := n.make(m.ctx, []change{
		{"mark", func(context.Context) error {
			return l.update(func(r *record) { r.Children, r.Plugging = without(r.Children, c), &c })
		}, func(context.Context) error {
			return l.update(func(r *record) { r.Children, r.Plugging = inOrder(append(without(r.Children, c), c)), nil })
		}},
		{"unplug", n.unplug, nil},
	})
	if err != nil { // the card is still there, and so is the rest
		m.tend(n)
		return err
	}
	err = m.discard(n)
	n.event("detached", "detached from %s", c.Lower())
	return err
}

// discard removes all that there is of the NIC that is in Plugging, at once or,
// with an error, when the guest lets go of it.
func (m *nics) discard(n *card) error {
	err := m.tryDiscard(n)
	if err != nil {
		m.discardLater(n)
	}
	return err
}

func (m *nics) discardLater(n *card) {
	m.running.Go(func() {
		for {
			err := m.host.Do(func() error { return m.tryDiscard(n) })
			if err == nil || m.ctx.Err() != nil {
				return
			}
			n.complain(fmt.Errorf("still being removed: %w", err))
			select {
			case <-m.ctx.Done():
				return
			case <-n.unplugged:
			case <-time.After(unplugTimeout):
			}
		}
	})
}

func (m *nics) tryDiscard(n *card) error {
	if err := errors.Join(n.deafen(), n.remove(m.ctx)); err != nil {
		return err
	}
	m.remove(n)
	c, l := n.child, m.life
	var access error
	if c.HostAccess {
		access = m.settleAccess(m.ctx, c.Lower())
	}
	return errors.Join(access, releaseUnused(c, l.snapshot().Children), l.update(func(r *record) {
		r.Plugging = nil
		r.regain(c.Name)
		r.setAddresses(c.Name, nil) // the next NIC of the name is another
	}))
}

// releaseUnused gives the VLAN of a NIC up, unless another of the guest is on it.
func releaseUnused(c netsetup.Child, others []netsetup.Child) error {
	if slices.ContainsFunc(others, func(o netsetup.Child) bool { return o.Lower() == c.Lower() }) {
		return nil
	}
	return releaseVLAN(c)
}

func without(list []netsetup.Child, c netsetup.Child) []netsetup.Child {
	return slices.DeleteFunc(slices.Clone(list), func(o netsetup.Child) bool { return o.Name == c.Name })
}

func inOrder(list []netsetup.Child) []netsetup.Child {
	slices.SortFunc(list, func(a, b netsetup.Child) int { return a.Index - b.Index })
	return list
}

// named finds a NIC by the name that status shows.
func (m *nics) named(name string) (*card, error) {
	if n := m.find(name); n != nil {
		return n, nil
	}
	var names []string
	for _, n := range m.all() {
		names = append(names, n.name)
	}
	if len(names) == 0 {
		names = []string{"none"}
	}
	return nil, qmp.Errorf("the guest has no NIC %q: it has %s", name, strings.Join(names, ", "))
}

// change changes a NIC: keys of the spec that can be changed live, and link.
func (m *nics) set(ctx context.Context, name string, words []string) (NICStatus, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return NICStatus{}, err
	}
	defer unlock()
	n, err := m.named(name)
	if err != nil {
		return NICStatus{}, err
	}
	after, err := changed(n.current(), words)
	if err != nil {
		return NICStatus{}, err
	}
	err = n.do(m.ctx, func() error {
		defer n.touch()
		if n.isLost() {
			return qmp.Errorf("%s is gone, and %s with it: it can be changed when %s is there again", after.Lower(), n.name, after.Lower())
		}
		return m.host.Do(func() error { return n.make(m.ctx, n.setting(n.child, after)) })
	})
	return n.status(), err
}

// changed is a child with the words' changes.
func changed(c netsetup.Child, words []string) (netsetup.Child, error) {
	after := c
	var rest []string
	for _, w := range words {
		switch w {
		case "link=up", "link=down":
			after.LinkDown = w == "link=down"
		default:
			rest = append(rest, w)
		}
	}
	var err error
	if after.NIC, err = configs.ChangeNIC(c.NIC, rest); err != nil {
		return c, err
	}
	fixed := after
	fixed.NIC = c.NIC
	fixed.Mode, fixed.Multicast, fixed.Trust, fixed.Pin = after.Mode, after.Multicast, after.Trust, after.Pin
	fixed.Addresses, fixed.Bandwidth, fixed.HostAccess = after.Addresses, after.Bandwidth, after.HostAccess
	if !reflect.DeepEqual(fixed, after) {
		return c, qmp.Errorf("of a NIC that is plugged in only mode, multicast, trust, pin, addresses, bandwidth, host_access and link can be changed: for the rest, detach and attach it")
	}
	if isSole(c.Mode) != isSole(after.Mode) || c.Mode == configs.ModeSource != (after.Mode == configs.ModeSource) {
		return c, qmp.Errorf("mode can be changed among bridge, vepa and private only: for another, detach and attach the NIC")
	}
	return after, nil
}

func isSole(m configs.Mode) bool { return m == configs.ModePassthru }

// setting are the changes that turn a plugged NIC from one description to another.
func (n *card) setting(before, after netsetup.Child) []change {
	ns := n.life.ns
	var changes []change
	both := func(name string, differ bool, act func(context.Context, netsetup.Child) error) {
		if !differ {
			return
		}
		become := func(c netsetup.Child) func(context.Context) error {
			return func(ctx context.Context) error {
				n.set(c)
				return act(ctx, c)
			}
		}
		changes = append(changes, change{name, become(after), become(before)})
	}
	both("mode", before.Mode != after.Mode, func(_ context.Context, c netsetup.Child) error { return ns.SetMode(c) })
	both("pin", before.Pin != after.Pin || after.Pin == configs.PinAll && !slices.Equal(before.Addresses, after.Addresses),
		func(_ context.Context, c netsetup.Child) error { return ns.Pin(c) })
	both("shape", before.Bandwidth != after.Bandwidth,
		func(_ context.Context, c netsetup.Child) error { return ns.Shape(c, c.Bandwidth) })
	both("filter", before.Multicast != after.Multicast || before.Trust != after.Trust,
		func(ctx context.Context, _ netsetup.Child) error { return n.askFilter(ctx) })
	both("access", before.HostAccess != after.HostAccess,
		func(ctx context.Context, c netsetup.Child) error { return n.life.nics.settleAccess(ctx, c.Lower()) })
	both("link", before.LinkDown != after.LinkDown, func(ctx context.Context, c netsetup.Child) error {
		cond, err := ns.Look(c)
		if err != nil {
			return err
		}
		return n.mirrorLink(ctx, cond, nil)
	})
	both("record", true, func(_ context.Context, c netsetup.Child) error {
		return n.life.update(func(r *record) { r.Children = inOrder(append(without(r.Children, c), c)) })
	})
	return changes
}
