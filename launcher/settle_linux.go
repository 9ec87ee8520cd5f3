package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/coreos/go-systemd/v22/dbus"
)

// Results of a service by which its guest is to end (systemd.exec(5),
// $SERVICE_RESULT).
const (
	resultTimeout  = "timeout"
	resultWatchdog = "watchdog"
)

// SettleUnit sees to a guest whose unit has lost its main process, for the reason
// in result, and says what it did. A guest that did not answer the watchdog, or
// whose stop was cut short, is ended. Any other is for the supervisor to adopt that
// systemd starts again, for which the way is cleared. It is to be called by a
// process of the unit, ExecStopPost= in its file.
func SettleUnit(ctx context.Context, base, name, result string) (string, error) {
	s, err := Observe(ctx, base, name)
	if errors.Is(err, ErrNotFound) || err == nil && s.State.Rests() {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if s.Supervisor != 0 {
		return "", nil // it is somebody else's
	}
	end, graceful := result == resultWatchdog || result == resultTimeout, false
	if !end {
		graceful, err = isStopping(ctx)
	}
	switch {
	case end:
		var o Outcome
		o, err = Kill(ctx, base, name)
		return fmt.Sprintf("ended after the unit's %s: %s", result, o), err
	case graceful:
		var o Outcome
		if o, err = Stop(ctx, base, name); errors.Is(err, ErrUnresponsive) {
			o, err = Kill(ctx, base, name)
		}
		return fmt.Sprintf("ended, since the unit is being stopped: %s", o), err
	}
	return "left for the next supervisor to adopt", errors.Join(err, guestDir(base, name).clearWay())
}

// isStopping asks systemd whether somebody wants the unit of this process stopped.
func isStopping(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return false, fmt.Errorf("systemd: %w", err)
	}
	defer conn.Close()
	unit, err := conn.GetUnitNameByPID(ctx, uint32(os.Getpid()))
	if err != nil {
		return false, fmt.Errorf("systemd: %w", err)
	}
	jobs, err := conn.ListJobsContext(ctx)
	if err != nil {
		return false, fmt.Errorf("systemd: %w", err)
	}
	return slices.ContainsFunc(jobs, func(j dbus.JobStatus) bool {
		return j.Unit == unit && slices.Contains([]string{"stop", "restart", "try-restart"}, j.JobType)
	}), nil
}

// clearWay takes the controllers off the cgroup of a guest that goes on: until then
// systemd can start nothing there, unless it starts supervisors in a child of it
// (DelegateSubgroup=). The guest's next supervisor puts them back.
func (d runDir) clearWay() error {
	rec, err := d.readRecord()
	if err != nil || rec.Cgroup == nil || !rec.Cgroup.Moved {
		return nil
	}
	if limits := rec.Cgroup.limits(); limits != rec.Cgroup.Limits {
		rec.Cgroup = rec.Cgroup.with(limits)
		lock, err := d.lockBriefly()
		if err != nil {
			return err
		}
		defer lock.Close()
		if err := d.writeRecord(rec); err != nil {
			return err // or the limits would be forgotten
		}
	}
	return rec.Cgroup.suspend()
}
