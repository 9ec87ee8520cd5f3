package launcher

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

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
	return m.plug(c)
}

// plug adds a NIC, for whoever holds the lock.
func (m *nics) plug(c netsetup.Child) (NICStatus, error) {
	n := newCard(m.life, c)
	m.add(n) // so that it hears of its card
	err := n.make(m.ctx, attaching(n))
	if err != nil && !n.isKept() { // as it is where the record of it could not be taken back
		return NICStatus{}, errors.Join(err, m.discard(n))
	}
	m.tend(n)
	n.event("attached", "attached to %s", c.Lower())
	return n.status(), err
}

// attaching are the changes that add a NIC to a guest that runs.
func attaching(n *card) []change {
	return slices.Concat(
		[]change{{"mark", n.loosen, nil}},
		n.plugging(),
		[]change{
			{"listen", func(context.Context) error { return n.listen() }, nil},
			{"record", n.keep, n.loosen},
		})
}

// loosen notes that the NIC is not to be kept, for whoever looks after the guest then.
func (n *card) loosen(context.Context) error {
	return n.life.update(func(r *record) {
		r.Children, r.Loose = without(r.Children, n.child), append(without(r.Loose, n.child), n.child)
	})
}

// keep notes that it is.
func (n *card) keep(context.Context) error {
	return n.life.update(func(r *record) {
		r.Children, r.Loose = inOrder(append(without(r.Children, n.child), n.child)), without(r.Loose, n.child)
	})
}

func (n *card) isLoose() bool { return holds(n.life.snapshot().Loose, n.child) }
func (n *card) isKept() bool  { return holds(n.life.snapshot().Children, n.child) }

func holds(list []netsetup.Child, c netsetup.Child) bool {
	return slices.ContainsFunc(list, func(o netsetup.Child) bool { return o.Name == c.Name })
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
	return func() { <-m.change }, nil
}

// newChild resolves and checks a NIC to be, in the first place that is free.
func (m *nics) newChild(words []string, force bool) (netsetup.Child, error) {
	rec := m.life.snapshot()
	n, err := configs.NICFromWords(rec.Guest.CPUs, words)
	if err != nil {
		return netsetup.Child{}, err
	}
	i := 0
	for rec.takes(i) {
		i++
	}
	return m.childAt(i, n, force)
}

// takes reports whether a NIC has that number.
func (r *record) takes(i int) bool {
	return slices.ContainsFunc(slices.Concat(r.Children, r.Loose), func(c netsetup.Child) bool { return number(c) == i })
}

// childAt checks a NIC to be, with its number.
func (m *nics) childAt(i int, n configs.NIC, force bool) (netsetup.Child, error) {
	l := m.life
	rec := l.snapshot()
	facts := Facts{Slot: rec.Slot}
	if err := facts.gatherNetwork(rec.Guest, filepath.Dir(string(l.dir)), n); err != nil {
		return netsetup.Child{}, err
	}
	there := slices.Concat(rec.Children, rec.Loose)
	if limit := rec.slots(); i >= limit {
		return netsetup.Child{}, qmp.Errorf("the guest has no slot left for a NIC, of %d: detach one, or restart it with the NIC in its spec", limit)
	}
	c := newChild(rec.Guest, i, n, facts)
	all := append(there, c)
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
	return m.pull(name)
}

// pull removes a NIC, for whoever holds the lock.
func (m *nics) pull(name string) error {
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
		if m.find(n.name) == n && !n.isLoose() {
			_ = m.host.Do(func() error { return m.takeOut(n) }) // likewise
		}
	})
	return errors.New("the guest has given the card up: the NIC is being detached")
}

// takeOut removes a NIC from the guest.
func (m *nics) takeOut(n *card) error {
	n.halt() // nobody shall mend what is taken apart
	err := n.make(m.ctx, []change{{"mark", n.loosen, n.keep}, {"unplug", n.unplug, nil}})
	switch {
	case err == nil:
		err = m.discard(n)
		n.event("detached", "detached from %s", n.child.Lower())
	case n.isLoose(): // that could not be taken back
		m.discardLater(n)
	default: // the card is still there, and so is the rest
		m.tend(n)
	}
	return err
}

// discard removes all that there is of a loose NIC, at once or, with an error,
// when the guest lets go of it.
func (m *nics) discard(n *card) error {
	err := m.tryDiscard(n)
	if err != nil {
		n.complain(fmt.Errorf("still being removed: %w", err))
		m.discardLater(n)
	}
	return err
}

// discardLater removes a loose NIC when that can be done. Until then others can
// be changed.
func (m *nics) discardLater(n *card) {
	m.running.Go(func() {
		for failures := 0; ; failures++ {
			select {
			case <-m.ctx.Done():
				return
			case <-n.unplugged:
			case <-n.wake:
			case <-time.After(min(time.Duration(failures)*time.Second, unplugTimeout)):
			}
			err := m.host.Do(func() error { return n.carryOut(m.ctx, n.removing()[0]) })
			if err == nil {
				err = m.discardNow(n)
			}
			if err == nil || m.ctx.Err() != nil {
				return
			}
			n.complain(fmt.Errorf("still being removed: %w", err))
		}
	})
}

func (m *nics) discardNow(n *card) error {
	unlock, err := m.lock(m.ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return m.host.Do(func() error { return m.tryDiscard(n) })
}

// tryDiscard carries out what there is to do, as far as it can be done. That is
// noted last: whatever was left is then found by whoever tries again.
func (m *nics) tryDiscard(n *card) error {
	changes := m.discarding(n)
	first, last := changes[0], changes[len(changes)-1]
	if err := n.carryOut(m.ctx, first); err != nil {
		return err
	}
	var errs []error
	for _, c := range changes[1 : len(changes)-1] {
		errs = append(errs, n.carryOut(m.ctx, c))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.remove(n)
	return n.carryOut(m.ctx, last)
}

// discarding are the changes that remove a loose NIC.
func (m *nics) discarding(n *card) []change {
	c, l := n.child, m.life
	changes := n.removing()
	if c.HostAccess {
		changes = append(changes, change{"access", func(ctx context.Context) error { return m.settleAccess(ctx, c.Lower()) }, nil})
	}
	if c.VLAN != 0 {
		changes = append(changes, change{"release", func(context.Context) error { return releaseUnused(c, l.snapshot().Children) }, nil})
	}
	return append(changes, change{"forget", func(context.Context) error {
		return l.update(func(r *record) {
			r.Loose = without(r.Loose, c)
			r.regain(c.Name)
			r.setAddresses(c.Name, nil) // the next NIC of the name is another
		})
	}, nil})
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
	n := m.find(name)
	if n != nil && n.isLoose() {
		return nil, qmp.Errorf("%s is still being removed: the guest does not let go of it", name)
	}
	if n != nil {
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
