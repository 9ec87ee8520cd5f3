package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"vmrun/configs"
)

// deviceTimeout is how long systemd waits for a NIC's device before it starts the
// guest all the same (systemd-system.conf(5), DefaultDeviceTimeoutSec=).
const deviceTimeout = 90 * time.Second

// UnitStarts reports whether a guest is systemd's to start: its unit is there, and
// nobody else has to do with the guest.
func UnitStarts(ctx context.Context, base string, g *configs.Guest) bool {
	if !hasSystemd() || base != DefaultRunDir || os.Geteuid() != 0 {
		return false
	}
	dir := guestDir(base, g.Name)
	if _, supervised := dir.supervisor(); supervised {
		return false
	}
	if rec, err := dir.readRecord(); err == nil && rec.Ended == nil && rec.alive() && unitAround(rec.QEMU.PID) != UnitOf(g.Name) {
		return false // it runs without a supervisor, and not in the unit
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return false
	}
	defer conn.Close()
	loaded, err := conn.GetUnitPropertyContext(ctx, UnitOf(g.Name), "LoadState")
	return err == nil && loaded.Value.Value() == "loaded"
}

// StartUnit has systemd start a guest and waits until it is ready. When that takes
// long, tell, if it is not nil, is called with what the supervisor says of it.
// Cancelling ctx takes the start back. The error is a *UnitError when the unit
// failed.
func StartUnit(ctx context.Context, g *configs.Guest, tell func(status string)) error {
	unit := UnitOf(g.Name)
	if bound := StartBound(g); bound != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, bound+deviceTimeout)
		defer cancel()
	}
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("systemd: %w", err)
	}
	defer conn.Close()
	if err := reloadFor(ctx, conn, unit, g.Path); err != nil {
		return fmt.Errorf("systemd: reload for %s: %w", unit, err)
	}
	// Somebody's wish begins the count of StartLimitBurst= anew, which is for a guest
	// that systemd itself starts again and again. Of a unit that it has not loaded
	// there is none.
	_ = conn.ResetFailedUnitContext(ctx, unit)
	done := make(chan string, 1)
	if _, err := conn.StartUnitContext(ctx, unit, "replace", done); err != nil {
		return fmt.Errorf("systemd: start %s: %w", unit, err)
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for status := string(StateStarting); ; {
		select {
		case result := <-done:
			if result == "done" {
				return nil
			}
			return unitError(conn, unit, result)
		case <-look.C:
			p, err := conn.GetUnitTypePropertyContext(ctx, unit, "Service", "StatusText")
			if err != nil && !conn.Connected() { // and so nobody tells how it goes on
				return fmt.Errorf("start %s: systemd has ended the connection: systemctl status %[1]s", unit)
			}
			if err != nil || p.Value.Value() == status {
				continue
			}
			if status, _ = p.Value.Value().(string); tell != nil {
				tell(status)
			}
		case <-ctx.Done():
			late, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandTimeout)
			defer cancel()
			_, err := conn.StopUnitContext(late, unit, "replace", nil)
			return errors.Join(fmt.Errorf("the start of %s was taken back: %w", unit, ctx.Err()), err)
		}
	}
}

// lookEvery is how often a start that takes long is looked at.
const lookEvery = 3 * time.Second

// reloadFor has systemd make its units anew where the guest's was made of an older
// spec, or is only the template. Systemd itself (NeedDaemonReload) does not notice
// when it had forgotten the unit meanwhile.
func reloadFor(ctx context.Context, conn *dbus.Conn, unit, spec string) error {
	p, err := conn.GetUnitPropertyContext(ctx, unit, "DropInPaths")
	if err != nil {
		return err
	}
	parts, _ := p.Value.Value().([]string)
	i := slices.IndexFunc(parts, func(path string) bool { return filepath.Base(path) == UnitDropIn })
	if i >= 0 && !isNewer(spec, parts[i]) {
		return nil
	}
	return conn.ReloadContext(ctx)
}

// isNewer reports whether a file was changed after another was.
func isNewer(path, other string) bool {
	a, errA := os.Stat(path)
	b, errB := os.Stat(other)
	return errA == nil && errB == nil && a.ModTime().After(b.ModTime())
}

// unitError asks systemd how a unit has failed, and the journal what it said.
func unitError(conn *dbus.Conn, unit, result string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*commandTimeout)
	defer cancel()
	e := &UnitError{Unit: unit, Result: result}
	p, err := conn.GetAllPropertiesContext(ctx, unit)
	if err != nil {
		return e
	}
	if code, _ := p["ExecMainCode"].(int32); code == 1 { // CLD_EXITED of waitid(2)
		status, _ := p["ExecMainStatus"].(int32)
		e.Status = int(status)
	}
	id, _ := p["InvocationID"].([]byte)
	e.Log = lastWordsOf(ctx, fmt.Sprintf("%x", id))
	return e
}

// InvocationField is the journal's field for the run of a unit that an entry is of, as
// the one who logs knows it. The journal notes that too, unless the process has ended
// before it could look (systemd.journal-fields(7), _SYSTEMD_INVOCATION_ID).
const InvocationField = "VMRUN_INVOCATION_ID"

// lastWordsOf is the end of what the processes of a unit's run have logged.
func lastWordsOf(ctx context.Context, invocation string) []string {
	_ = exec.CommandContext(ctx, "journalctl", "--sync").Run() // or what is there has to do
	out, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=10",
		"_SYSTEMD_INVOCATION_ID="+invocation, "+", InvocationField+"="+invocation).Output()
	text := strings.TrimSpace(string(out))
	if err != nil || text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}
