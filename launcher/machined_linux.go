package launcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// systemd-machined knows the virtual machines of a host, of all that tell it
// (org.freedesktop.machine1(5)), and machinectl shows them. It ends one by
// stopping the unit that its leader is in, and so through the stop ladder.
const (
	machinedName = "org.freedesktop.machine1"
	machinedPath = "/org/freedesktop/machine1"

	// machineService is who has registered a guest, as machined is told.
	machineService = "vmrun"

	// machinedTimeout bounds a talk with machined, which may have to be started.
	machinedTimeout = 5 * time.Second
	// leaveTimeout bounds what a guest's end waits for it: machined drops by itself
	// who is in a unit that is over.
	leaveTimeout = 500 * time.Millisecond
)

// membership is a guest's with machined. The guest runs all the same where that is
// not there, does not answer, or takes no name like that, one with a "_" for
// example; so nobody waits for it.
type membership struct {
	name string
	pid  uint32
	id   []byte

	cancel  context.CancelFunc
	settled chan struct{} // closed when machined has been told
	known   bool          // perhaps; valid after settled
}

// join tells machined of the guest, beside what the caller does. It returns nil
// where there is no systemd, and for a guest in a unit that was not handed over to
// vmrun: to terminate it would end a whole login, for example.
func (l *life) join() *membership {
	if !hasSystemd() || !isDelegated(unitDir(l.qemu.id.PID)) {
		return nil
	}
	id := l.snapshot().UUID
	m := &membership{name: l.guest().Name, pid: uint32(l.qemu.id.PID), id: id[:], settled: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), machinedTimeout)
	m.cancel = cancel
	go func() {
		defer close(m.settled)
		err := withBus(ctx, m.register)
		m.known = err == nil || ctx.Err() != nil
		if err != nil {
			l.log.Debug("systemd-machined does not know the guest", "error", err)
		}
	}()
	return m
}

// leave has machined forget the guest. What it returns is closed when that is
// done, or has taken too long.
func (m *membership) leave() <-chan struct{} {
	done := make(chan struct{})
	if m == nil {
		close(done)
		return done
	}
	m.cancel()
	go func() {
		defer close(done)
		if <-m.settled; !m.known {
			return // and machined need not be started for it
		}
		ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
		defer cancel()
		_ = withBus(ctx, m.unregister) // machined drops it with its unit otherwise
	}()
	return done
}

func withBus(ctx context.Context, talk func(context.Context, *godbus.Conn) error) error {
	conn, err := dialBus(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return talk(ctx, conn)
}

// register enters the guest. Its entry by a supervisor that died is made anew
// where it names a unit that QEMU has left since.
func (m *membership) register(ctx context.Context, conn *godbus.Conn) error {
	machined := conn.Object(machinedName, machinedPath)
	enter := func() error {
		return machined.CallWithContext(ctx, machinedName+".Manager.RegisterMachine", 0,
			m.name, m.id, machineService, "vm", m.pid, "").Err
	}
	err := enter()
	var refused godbus.Error
	if !errors.As(err, &refused) || refused.Name != machinedName+".MachineExists" {
		return err
	}
	there, err := m.entry(ctx, conn)
	switch {
	case err != nil:
		return err
	case there.leader == m.pid && there.unit == unitAround(int(m.pid)):
		return nil
	case there.leader != m.pid && (there.service != machineService || processAlive(there.leader)):
		return fmt.Errorf("%s has registered another machine of that name", there.service)
	}
	if err := machined.CallWithContext(ctx, machinedName+".Manager.UnregisterMachine", 0, m.name).Err; err != nil {
		return err
	}
	return enter()
}

// unregister removes the guest's entry, and nobody else's of its name.
func (m *membership) unregister(ctx context.Context, conn *godbus.Conn) error {
	there, err := m.entry(ctx, conn)
	if err != nil || there.leader != m.pid {
		return err
	}
	return conn.Object(machinedName, machinedPath).CallWithContext(ctx, machinedName+".Manager.UnregisterMachine", 0, m.name).Err
}

// machine is what machined knows of one.
type machine struct {
	service, unit string
	leader        uint32
}

// entry asks machined for the machine of the guest's name.
func (m *membership) entry(ctx context.Context, conn *godbus.Conn) (there machine, err error) {
	var path godbus.ObjectPath
	err = conn.Object(machinedName, machinedPath).CallWithContext(ctx, machinedName+".Manager.GetMachine", 0, m.name).Store(&path)
	if err != nil {
		return machine{}, err
	}
	var all map[string]godbus.Variant
	err = conn.Object(machinedName, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", 0, machinedName+".Machine").Store(&all)
	if err != nil {
		return machine{}, err
	}
	there.service, _ = all["Service"].Value().(string)
	there.unit, _ = all["Unit"].Value().(string)
	there.leader, _ = all["Leader"].Value().(uint32)
	return there, nil
}

func processAlive(pid uint32) bool {
	_, err := startTime(int(pid))
	return err == nil
}
