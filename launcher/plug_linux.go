package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
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
		if err := n.carryOut(ctx, c); err != nil {
			return errors.Join(err, n.takeBack(changes[:i+1]))
		}
	}
	return nil
}

func (n *card) carryOut(ctx context.Context, c change) error {
	name := n.name + " " + c.name
	if err := n.life.opts.do(name, func() error { return c.do(ctx) }); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (n *card) takeBack(changes []change) error {
	ctx, cancel := context.WithTimeout(context.Background(), unplugTimeout+commandTimeout)
	defer cancel()
	undos := undoStack{step: n.life.opts.do}
	for _, c := range changes {
		if c.undo != nil {
			undos.push(n.name+" "+c.name, func() error { return c.undo(ctx) })
		}
	}
	return undos.run()
}

// plugging are the changes that make the child and plug it into the guest;
// removing takes back as much of it as there is.
func (n *card) plugging() []change {
	c, ns := n.child, n.life.ns
	uefi := settled(n.life.guest(), archOf(runtime.GOARCH)).Firmware == configs.FirmwareUEFI
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
			return mon.DeviceAdd(ctx, device(c, n.life.snapshot().Ports > 0, uefi).object())
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

// removing are the changes that take the card out of the guest and the child out
// of the kernel. Of each nothing may be left to do, so all can be begun anew; but
// for the first, whose end the others wait for, none needs another.
func (n *card) removing() []change {
	return []change{
		{"unplug", n.unplug, nil},
		{"deafen", func(context.Context) error { return n.deafen() }, nil},
		{"netdev del", n.removeBackend, nil},
		{"take", n.takeFiles, nil},
		{"delete", func(context.Context) error { return n.life.ns.Delete(n.child) }, nil},
	}
}

// replugging are the changes that make the child anew on the parent that is there
// now, and a card for it in the slot of the old one.
func (n *card) replugging() []change {
	return slices.Concat(
		[]change{{"lose", func(context.Context) error { return n.lose() }, nil}},
		n.removing(),
		n.plugging(),
		[]change{
			{"listen", func(context.Context) error { return n.listen() }, nil}, // the old ear was on the old child
			{"regain", func(context.Context) error {
				n.see(func(v *view) { v.link, v.mac = "", nil })
				n.filterChanged.Store(true)
				return n.regain()
			}, nil},
		})
}

func (n *card) replug(ctx context.Context) error {
	if err := n.make(ctx, n.replugging()); err != nil {
		return err
	}
	n.event("replugged", "%s is there again: the NIC was plugged into it", n.child.Lower())
	return nil
}
