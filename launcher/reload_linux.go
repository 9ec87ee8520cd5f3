package launcher

import (
	"context"
	"errors"
	"os"
	"slices"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

// serveReload reads the guest's spec again and makes what has changed in it hold,
// as far as that can be done under a guest that runs. With a spec that is wrong
// nothing is changed.
func (l *life) serveReload(ctx context.Context) (any, error) {
	if l.opts.Reloading != nil {
		l.opts.Reloading(true)
		defer l.opts.Reloading(false)
	}
	result, err := l.reread(ctx)
	if err != nil && KindOf(err) == KindSpec {
		return nil, &qmp.Error{Class: ClassSpec, Desc: err.Error()}
	}
	return result, unresponsive(err)
}

// reread does so for one caller at a time, or an older spec could come after a newer
// one. The file is read before others are kept from changing NICs: the guest's end
// waits for these, and not for a file system that hangs.
func (l *life) reread(ctx context.Context) (result Reload, err error) {
	select {
	case l.reloads <- struct{}{}:
		defer func() { <-l.reloads }()
	case <-ctx.Done():
		return result, ctx.Err()
	}
	after, err := rereadSpec(l.guest())
	if err != nil {
		return result, err
	}
	err = l.change(func() error {
		unlock, err := l.nics.lock(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		return l.reload(after, &result)
	})
	return result, err
}

// rereadSpec reads the spec of a guest as it is now.
func rereadSpec(g *configs.Guest) (*configs.Guest, error) {
	fleet, err := configs.LoadFleet(g.Path)
	var file *os.PathError
	if errors.As(err, &file) {
		return nil, &configs.Error{File: g.Path, Msg: file.Err.Error()}
	}
	if err != nil {
		return nil, err
	}
	if after := fleet.Guest(g.Name); after != nil {
		return after, nil
	}
	return nil, &configs.Error{File: g.Path, Msg: "no guest in it is called " + g.Name + " any more"}
}

// reload makes the guest what its spec says by now. What of it holds is then what
// the guest is; the rest stays a difference, for the next reload to tell of again.
func (l *life) reload(after *configs.Guest, result *Reload) error {
	before := l.guest()
	changes := sortDifferences(configs.Differences(before, after))
	children, err := l.checkNew(before, after)
	if err != nil {
		return err
	}
	now := *before
	now.NICs = slices.Clone(before.NICs)
	for i := range min(len(before.NICs), len(after.NICs)) {
		l.reloadNIC(i, &now.NICs[i], after.NICs[i], changes.nics[i], result)
	}
	l.reloadCount(&now, after, children, changes.nics, result)
	for _, take := range liveSettings {
		take(&now, after)
	}
	result.Changed = append(result.Changed, changes.settings...)
	result.later("", changes.fixed...)
	l.spec.Store(&now)
	err = l.update(func(r *record) { r.Guest = &now })
	l.adjust()
	l.log.Info("the spec was read again", "changed", len(result.Changed), "take a restart", len(result.Later), "failed", len(result.Failed))
	return err
}

// adjust has those take over the settings who keep them.
func (l *life) adjust() {
	l.mu.Lock()
	if l.console != nil {
		l.console.logSize.Store(int64(l.rec.Guest.Console.LogSize))
	}
	l.mu.Unlock()
	l.checkReady()
}

// checkNew checks the NICs that the spec has more than before.
func (l *life) checkNew(before, after *configs.Guest) (map[int]netsetup.Child, error) {
	children := map[int]netsetup.Child{}
	rec := l.snapshot()
	for i := len(before.NICs); i < len(after.NICs); i++ {
		if rec.takes(i) {
			break // which is no mistake in the spec
		}
		c, err := l.nics.childAt(i, after.NICs[i], rec.Forced)
		var errs configs.Errors
		if errors.As(err, &errs) {
			for j, e := range errs {
				errs[j] = after.Errorf(nicKeyOf(i, e.Key), "%s", e.Msg)
			}
			return nil, errs
		}
		if err != nil {
			return nil, err
		}
		children[i] = c
	}
	return children, nil
}

// reloadNIC changes a NIC that the spec had before.
func (l *life) reloadNIC(i int, now *configs.NIC, after configs.NIC, changes []configs.Difference, result *Reload) {
	var live []configs.Difference
	for _, d := range changes {
		_, key, _ := splitNIC(d.Key)
		if liveKeys[key] == nil {
			result.later("", d)
			continue
		}
		live = append(live, d)
	}
	if len(live) == 0 {
		return
	}
	n := l.nics.find(nicName(i))
	if n == nil {
		result.later(nicName(i)+" was detached", live...)
		return
	}
	take := func(into *configs.NIC) {
		for _, d := range live {
			_, key, _ := splitNIC(d.Key)
			liveKeys[key](into, after)
		}
	}
	describe := func(c netsetup.Child) (netsetup.Child, error) {
		changed := c
		take(&changed.NIC)
		var err error
		if changed.NIC, err = configs.ChangeNIC(changed.NIC, nil); err != nil { // with what was changed by hand
			return c, err
		}
		return changed, mayBecome(c, changed)
	}
	if _, err := describe(n.current()); err != nil {
		result.later(err.Error(), live...)
		return
	}
	_, err := l.nics.become(n.name, describe)
	if result.settle(err, live...); err == nil {
		take(now)
	}
}

// reloadCount adds and removes NICs at the end of the list: a NIC is known by its
// place in it.
func (l *life) reloadCount(now, after *configs.Guest, children map[int]netsetup.Child, changes map[int][]configs.Difference, result *Reload) {
	for i := len(now.NICs) - 1; i >= len(after.NICs); i-- {
		var err error
		if l.nics.find(nicName(i)) != nil {
			err = l.nics.pull(nicName(i))
		}
		if result.settle(err, changes[i]...); err != nil {
			return
		}
		now.NICs = now.NICs[:i]
	}
	for i := len(now.NICs); i < len(after.NICs); i++ {
		c, ok := children[i]
		if !ok {
			result.later(nicName(i)+" was attached by hand: detach it and reload", changes[i]...)
			return
		}
		_, err := l.nics.plug(c)
		if result.settle(err, changes[i]...); err != nil {
			return
		}
		now.NICs = append(now.NICs, after.NICs[i])
	}
}
