package launcher

import (
	"context"
	"errors"
	"os"
	"os/exec"

	"vmrun/configs"
	"vmrun/netsetup"
)

// StartInside starts a program in the network namespace of a guest, which the
// program then keeps alive until it ends.
func StartInside(ctx context.Context, base, name string, cmd *exec.Cmd) error {
	if _, err := alive(ctx, base, name); err != nil {
		return err
	}
	dir := guestDir(base, name)
	rec, _ := dir.readRecord()
	qemu, err := findGuest(dir, rec)
	if err != nil {
		return named(name, errors.Join(ErrState, err))
	}
	defer qemu.pidfd.Close()
	ns, err := netsetup.NamespaceOf(qemu.id.PID)
	if err != nil {
		return named(name, err)
	}
	defer ns.Close()
	return ns.Do(cmd.Start)
}

// LeaveSession takes the calling process out of the control group that it was
// started in, a login's or a job's, so that its end does not end the guest. It
// needs systemd; elsewhere there is nothing that would. Until the process ends,
// stop is called when systemd wants the guest to end.
func LeaveSession(base string, g *configs.Guest, stop func()) error {
	if !hasSystemd() {
		return nil
	}
	var after []string
	if rec, err := guestDir(base, g.Name).readRecord(); err == nil && rec.Cgroup != nil && rec.alive() {
		after = append(after, unitAround(rec.QEMU.PID)) // where a QEMU with limits stays when it is adopted
	}
	return leaveByScope(g, after, stop)
}

// hasSystemd is sd_booted(3).
func hasSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}
