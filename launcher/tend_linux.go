package launcher

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

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
	n.see(func(v *view) { v.untold = true }) // which has QEMU asked whether it has the card
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
	before := n.seen()
	if state == before.link && !before.untold {
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
	n.see(func(v *view) { v.link, v.untold = state, false })
	if state == before.link || before.link == "" && state == LinkUp {
		return nil // no news, or as one expects of a NIC that has just been made
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
	if want != 0 && cond.ParentMTU > want && *note == "" && n.followsParent() {
		*note = fmt.Sprintf("%s has an MTU of %d by now, and the guest was told %d: vmrun restart makes it the new one", n.child.Lower(), cond.ParentMTU, want)
	}
	return nil
}

// followsParent reports whether the child's MTU was to be the parent's.
func (n *card) followsParent() bool {
	nics := n.life.guest().NICs
	i := number(n.child)
	return i < len(nics) && nics[i].MTU == 0
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
	n.see(func(v *view) { v.filter, v.refused = filter, refused })
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
