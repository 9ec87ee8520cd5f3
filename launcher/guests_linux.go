package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/qmp"
)

// observeTimeout bounds everything that only asks.
const observeTimeout = 2 * time.Second

var (
	// ErrNotFound says that there is no guest of that name.
	ErrNotFound = errors.New("no such guest")
	// ErrState says that the guest is not in the state that the command needs.
	ErrState = errors.New("not in the state needed")
	// ErrUnresponsive says that QEMU, or the supervisor, did not answer in time.
	ErrUnresponsive = errors.New("unresponsive")
)

// guestNames lists the run directories below base. A base that does not exist
// has none.
func guestNames(base string) []string {
	entries, _ := os.ReadDir(base)
	var names []string
	for _, e := range entries {
		if e.IsDir() && configs.CheckName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names
}

// List observes all guests below base at once, those that have ended included,
// sorted by name. When the caller may look at none, that is an error; when at some,
// those are all that there is for him.
func List(ctx context.Context, base string) ([]Status, error) {
	names := guestNames(base)
	for _, name := range suspendedNames(base) { // since before the host was booted, perhaps
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	all := make([]Status, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { all[i], errs[i] = Observe(ctx, base, name) })
	}
	wg.Wait()
	var list []Status
	for i, err := range errs {
		switch {
		case err == nil:
			list = append(list, all[i])
		case errors.Is(err, ErrNotFound):
			errs[i] = nil // an empty directory, or one that has just been removed
		}
	}
	if len(list) > 0 { // the caller may look at some, and the others are not for him
		errs = slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, os.ErrPermission) })
	}
	return list, errors.Join(errs...)
}

// Observe says what one guest is doing, within 2 s: its supervisor is asked, or
// QEMU itself where there is none. What does not answer is StateUnresponsive.
// The error is ErrNotFound when there is no such guest.
func Observe(ctx context.Context, base, name string) (Status, error) {
	status, err := observe(ctx, base, name)
	switch {
	case err == nil && status.State == StateEnded && isSuspended(base, name):
		if status.Ended.Reason == ReasonSuspended || os.Geteuid() == 0 {
			status.State = StateSuspended
		}
	case errors.Is(err, ErrNotFound) && isSuspended(base, name):
		m, err := readMemory(base, name)
		if err != nil {
			return Status{}, named(name, err)
		}
		status = m.status(0)
		status.State, status.PID, status.Supervisor, status.Ended = StateSuspended, 0, 0, &Outcome{Reason: ReasonSuspended, At: m.At}
		return status, nil
	}
	return status, err
}

// observe is Observe without a look at what is on disk. A supervisor that answers
// knows everything, and nothing else is read then.
func observe(ctx context.Context, base, name string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	dir := guestDir(base, name)
	var told Status
	silence := qmp.Ask(ctx, dir.path(fileControl), CommandStatus, nil, &told)
	if silence == nil {
		return told, nil
	}
	supervisor, supervised := dir.supervisor()
	rec, err := dir.readRecord()
	if errors.Is(err, os.ErrPermission) {
		return Status{}, named(name, err)
	}
	if err != nil {
		return observeUnrecorded(ctx, dir, name, supervisor, supervised)
	}
	status := rec.status(supervisor)
	switch {
	case supervised:
		status.explain(silence, rec)
	case rec.Ended != nil:
	case !rec.alive():
		if found, err := observeUnrecorded(ctx, dir, name, 0, false); err == nil {
			return found, nil
		}
		status.State, status.PID, status.Why, status.Ended = StateEnded, 0, "", rec.lost()
	default:
		askQEMU(ctx, dir, rec.Guest, &status)
	}
	return status, nil
}

// observeUnrecorded speaks of a guest without a record that is of use: one that
// is about to start, or the wreck of one.
func observeUnrecorded(ctx context.Context, dir runDir, name string, supervisor int, supervised bool) (Status, error) {
	s := Status{Name: name, State: StateStarting, Supervisor: supervisor, NICs: []NICStatus{}}
	if supervised {
		return s, nil
	}
	qemu, err := findOrphan(dir)
	if err != nil {
		return Status{}, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	defer qemu.pidfd.Close()
	s.PID = qemu.id.PID
	askQEMU(ctx, dir, &configs.Guest{Name: name}, &s)
	return s, nil
}

// explain says of a record's status what it means that its supervisor did not answer.
func (s *Status) explain(silence error, rec *record) {
	if errors.Is(silence, os.ErrNotExist) || errors.Is(silence, unix.ECONNREFUSED) {
		switch {
		case rec.Ended != nil && rec.Supervisor != s.Supervisor:
			s.State, s.Ended = StateStarting, nil // about to be started again
		case rec.Committed && !rec.alive():
			s.doubt(silentSupervisor, silence, false) // at its end; one that lives is just being adopted
		}
		return
	}
	var full *qmp.Error // it answers, if only that it has too many clients
	if !errors.As(silence, &full) {
		s.doubt(silentSupervisor, silence, rec.alive() || s.State == StateRestarting)
	}
}

// askQEMU fills in the state of a guest that has no supervisor.
func askQEMU(ctx context.Context, dir runDir, g *configs.Guest, status *Status) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	mon, err := qmp.Dial(ctx, dir.path(fileMonitor))
	if errors.Is(err, os.ErrPermission) {
		return // only root may ask; the record says how it was when its supervisor ended
	}
	if err != nil {
		status.doubt(silentQEMU, err, true)
		return
	}
	defer mon.Close()
	run, stalled, err := queryRun(ctx, mon, g)
	switch {
	case err != nil:
		status.doubt(silentQEMU, err, true)
	case status.State == StateStarting && run.Status == "prelaunch": // nobody will finish the start
	case run.Running:
		status.State, status.Why = StateRunning, ""
	default:
		status.halted(run, stalled)
	}
}

// Control connects to a guest's control socket, which speaks QMP. The error is
// ErrNotFound, ErrState when nobody is there to serve it, or ErrUnresponsive.
func Control(ctx context.Context, base, name string) (*qmp.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	dir := guestDir(base, name)
	client, err := qmp.Dial(ctx, dir.path(fileControl))
	var full *qmp.Error
	if errors.As(err, &full) && full.Class == ClassDenied {
		return nil, fmt.Errorf("%s: %s: %w", name, full.Desc, os.ErrPermission)
	}
	if err == nil || full != nil {
		return client, named(name, err)
	}
	if supervisor, alive := dir.lastingSupervisor(); alive {
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("%s: %w: its supervisor (pid %d) does not answer", name, ErrUnresponsive, supervisor)
		}
		return nil, fmt.Errorf("%s: %w: it is just starting or ending", name, ErrState)
	}
	rec, recErr := dir.readRecord()
	switch {
	case errors.Is(recErr, os.ErrPermission):
		return nil, named(name, recErr)
	case recErr != nil:
		return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	case (rec.Ended != nil || !rec.alive()) && isSuspended(base, name):
		return nil, Status{Name: name, State: StateSuspended}.AtRest()
	case rec.Ended != nil || !rec.alive():
		return nil, Status{Name: name, State: StateEnded}.AtRest()
	}
	return nil, fmt.Errorf("%s: %w: it runs without a supervisor: vmrun start %s adopts it", name, ErrState, name)
}

// Stop ends a guest through the ladder and returns when everything of it is
// gone. The error is ErrUnresponsive, and nothing has happened, when QEMU does
// not answer.
func Stop(ctx context.Context, base, name string) (Outcome, error) {
	status, err := alive(ctx, base, name)
	if err != nil {
		return Outcome{}, err
	}
	if status.State == StateUnresponsive {
		return Outcome{}, fmt.Errorf("%s: %w: %s does not answer: vmrun stop --force %s ends the guest",
			name, ErrUnresponsive, status.Silent, name)
	}
	if status.Supervisor == 0 {
		if err := needsRoot("it has lost its supervisor, and only root can adopt it"); err != nil {
			return Outcome{}, named(name, err)
		}
		return adoptToEnd(ctx, base, name, nil)
	}
	client, err := Control(ctx, base, name)
	if err != nil {
		return Outcome{}, err
	}
	defer client.Close()
	var o Outcome
	err = client.Execute(ctx, CommandStop, StopArguments{Wait: true}, &o)
	var refused *qmp.Error
	if errors.As(err, &refused) && refused.Class == ClassUnresponsive {
		err = fmt.Errorf("%w: %s: vmrun stop --force %s ends the guest", ErrUnresponsive, refused.Desc, name)
	}
	if errors.Is(err, qmp.ErrClosed) {
		err = fmt.Errorf("its supervisor has gone: vmrun start %s adopts the guest if it is still there", name)
	}
	return o, named(name, err)
}

// Kill ends a guest at once, whether or not anybody answers, and returns when
// everything of it is gone. It ends a start that is under way, too.
func Kill(ctx context.Context, base, name string) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, killTimeout+drainTimeout)
	defer cancel()
	if client, err := Control(ctx, base, name); err == nil {
		defer client.Close()
		var o Outcome
		if err := client.Execute(ctx, CommandKill, nil, &o); err == nil {
			return o, nil
		}
	}
	if denied := needsRoot("no supervisor does it, and only root can"); denied != nil {
		if _, err := alive(ctx, base, name); err != nil {
			return Outcome{}, err
		}
		return Outcome{}, named(name, denied)
	}
	dir := guestDir(base, name)
	if supervisor, supervised := dir.lastingSupervisor(); supervised {
		return killSupervised(dir, name, supervisor)
	}
	rec, recErr := dir.readRecord()
	qemu, err := findGuest(dir, rec)
	if errors.Is(err, errGone) && recErr != nil {
		return Outcome{}, named(name, ErrNotFound)
	}
	if err != nil {
		return Outcome{}, named(name, fmt.Errorf("%w: it has ended already", ErrState))
	}
	if recErr == nil && rec.Committed {
		now := make(chan struct{})
		close(now)
		if o, err := adoptToEnd(ctx, base, name, now); err == nil {
			return o, nil
		}
	}
	// It cannot be adopted. QEMU's end takes the namespace and the children along.
	if err := qemu.kill(); err != nil {
		return Outcome{}, named(name, err)
	}
	return dir.noteKilled(rec), nil
}

// killSupervised ends a guest whose supervisor is there and does not answer:
// it may be starting the guest, or hang.
func killSupervised(dir runDir, name string, pid int) (Outcome, error) {
	supervisor, err := findProcess(processID{PID: pid})
	if err != nil {
		return Outcome{}, named(name, fmt.Errorf("%w: it is just ending", ErrState))
	}
	if now, held := dir.supervisor(); !held || now != pid {
		return Outcome{}, named(name, fmt.Errorf("%w: it is just ending", ErrState))
	}
	if err := supervisor.signal(unix.SIGTERM); err != nil { // takes a start back
		return Outcome{}, named(name, err)
	}
	select {
	case <-supervisor.done:
	case <-time.After(drainTimeout):
		if err := supervisor.kill(); err != nil {
			return Outcome{}, named(name, err)
		}
	}
	rec, _ := dir.readRecord()
	if qemu, err := findGuest(dir, rec); err == nil {
		if err := qemu.kill(); err != nil {
			return Outcome{}, named(name, err)
		}
	}
	return dir.noteKilled(rec), nil
}

// noteKilled clears up after a guest that was killed without a supervisor. Where
// it cannot, on a read-only file system say, the next start does.
func (d runDir) noteKilled(rec *record) Outcome {
	o := Outcome{Reason: ReasonStopped, Rung: RungKill, At: time.Now()}
	lock, err := d.lockBriefly()
	if err != nil {
		return o
	}
	defer lock.Close()
	if rec != nil && rec.Committed && rec.Ended == nil {
		rec.Ended = &o
		_ = d.writeRecord(rec)
	}
	_ = d.clear(rec)
	return o
}

// alive observes a guest that has to be there.
func alive(ctx context.Context, base, name string) (Status, error) {
	status, err := Observe(ctx, base, name)
	switch {
	case err != nil:
	case status.State == StateSuspended:
		err = fmt.Errorf("%s: %w: it is suspended, and has ended: vmrun start --fresh %s starts it without its memory", name, ErrState, name)
	case status.State == StateEnded:
		err = fmt.Errorf("%s: %w: it has ended already", name, ErrState)
	}
	return status, err
}

// adoptToEnd is a supervisor for the time that it takes to end a guest which
// has lost its own: by the ladder, or by kill.
func adoptToEnd(ctx context.Context, base, name string, kill <-chan struct{}) (Outcome, error) {
	rec, err := guestDir(base, name).readRecord()
	if err != nil {
		return Outcome{}, named(name, err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	opts := Options{RunDir: base, Kill: kill, adoptOnly: true}
	if kill == nil {
		opts.Ready = func(Report) { stop() } // a cancelled context is the wish to stop
	}
	return Run(ctx, rec.Guest, opts)
}

// Spec returns the path of the spec that a guest was started from.
func Spec(base, name string) (string, error) {
	rec, err := guestDir(base, name).readRecord()
	if err == nil {
		return rec.Guest.Path, nil
	}
	if g := Suspended(base, name); g != nil {
		return g.Path, nil
	}
	return "", fmt.Errorf("%s: %w", name, ErrNotFound)
}

// Abandoned returns a guest that runs without a supervisor, as it was started, or
// nil when there is none of that name.
func Abandoned(base, name string) *configs.Guest {
	dir := guestDir(base, name)
	if _, supervised := dir.supervisor(); supervised {
		return nil
	}
	rec, err := dir.readRecord()
	if err != nil || !rec.Committed || rec.Ended != nil || !rec.alive() {
		return nil
	}
	return rec.Guest
}

// StartedFrom finds the guests that were started from the file at path.
func StartedFrom(base, path string) []string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	isSpec := sameSpec(abs)
	return slices.DeleteFunc(guestNames(base), func(name string) bool {
		spec, err := Spec(base, name)
		return err != nil || !isSpec(spec)
	})
}

// Logs returns the paths of a guest's logs, for OpenLog: the supervisor's,
// QEMU's, and the serial console's. They are kept after its end, until a cleanup;
// QEMU's begins anew with the next start.
func Logs(base, name string) (supervisor, qemu, console string) {
	dir := guestDir(base, name)
	return dir.path(fileSupervisorLog), dir.path(fileQEMULog), dir.path(fileConsoleLog)
}

// ConsoleSocket is the path of the socket that carries a guest's serial console.
func ConsoleSocket(base, name string) string { return guestDir(base, name).path(fileConsole) }

// DisplaySocket is the path of the socket that shows a guest's screen, by VNC.
func DisplaySocket(base, name string) string { return guestDir(base, name).path(fileVNC) }

func named(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}
