package launcher

import (
	"context"
	"reflect"
	"slices"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

// set changes a NIC: keys of the spec that can be changed live, and link.
func (m *nics) set(ctx context.Context, name string, words []string) (NICStatus, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return NICStatus{}, err
	}
	defer unlock()
	return m.become(name, func(c netsetup.Child) (netsetup.Child, error) { return changed(c, words) })
}

// become makes of a NIC what describe says, for whoever holds the lock.
func (m *nics) become(name string, describe func(netsetup.Child) (netsetup.Child, error)) (NICStatus, error) {
	n, err := m.named(name)
	if err != nil {
		return NICStatus{}, err
	}
	after, err := describe(n.current())
	if err != nil {
		return NICStatus{}, err
	}
	err = n.do(m.ctx, func() error {
		defer n.touch()
		if n.isLost() {
			return qmp.Errorf("%s is gone, and %s with it: it can be changed when %s is there again", after.Lower(), n.name, after.Lower())
		}
		err := m.host.Do(func() error { return n.make(m.ctx, n.setting(n.child, after)) })
		if err != nil { // of what was taken back, something may have failed too
			n.recall()
		}
		return err
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
	if err := mayBecome(c, after); err != nil {
		return c, err
	}
	return after, nil
}

// mayBecome says what of a NIC that is plugged in cannot change.
func mayBecome(c, after netsetup.Child) error {
	fixed := after
	fixed.NIC = c.NIC
	for _, take := range liveKeys {
		take(&fixed.NIC, after.NIC)
	}
	if !reflect.DeepEqual(fixed, after) {
		return qmp.Errorf("of a NIC that is plugged in only mode, multicast, trust, pin, addresses, bandwidth, host_access and link can be changed: for the rest, detach and attach it")
	}
	if isSole(c.Mode) != isSole(after.Mode) || c.Mode == configs.ModeSource != (after.Mode == configs.ModeSource) {
		return qmp.Errorf("mode can be changed among bridge, vepa and private only: for another, detach and attach the NIC")
	}
	return nil
}

func isSole(m configs.Mode) bool { return m == configs.ModePassthru }

// recall has the NIC made again what the record says that it is.
func (n *card) recall() {
	for _, c := range n.life.snapshot().Children {
		if c.Name == n.name {
			n.set(c)
		}
	}
	n.doubt()
}

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
