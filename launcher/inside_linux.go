package launcher

import (
	"context"
	"errors"
	"os"
	"os/exec"

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
// needs systemd; elsewhere there is nothing that would.
func LeaveSession(name string) error {
	if !hasSystemd() {
		return nil
	}
	return leaveByScope(name)
}

// hasSystemd is sd_booted(3).
func hasSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}
