package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/qmp"
)

const sigKill = unix.SIGKILL

// Commands of vmrun's own on the control socket, beside QEMU's.
const (
	CommandStatus = "vmrun-status" // returns a Status
	CommandStop   = "vmrun-stop"   // arguments: StopArguments; returns the Outcome when the guest has ended
	CommandKill   = "vmrun-kill"   // returns the Outcome
	CommandStats  = "vmrun-stats"  // returns Stats

	CommandScreenshot = "vmrun-screenshot" // returns a Screenshot

	CommandExec   = "vmrun-exec"   // arguments: ExecArguments; returns an ExecResult when the command has ended
	CommandReload = "vmrun-reload" // reads the spec again; returns a Reload
	CommandReexec = "vmrun-reexec" // arguments: ReexecArguments; the connection ends, or it failed

	CommandSuspend = "vmrun-suspend" // returns the Outcome when the guest is on disk and has ended

	CommandLiveSnapshot = "vmrun-snapshot"   // arguments: LiveArguments; returns a LiveResult
	CommandRollback     = "vmrun-rollback"   // likewise
	CommandLiveForget   = "vmrun-unsnapshot" // likewise

	CommandAttach = "vmrun-nic-attach" // arguments: NICArguments without a name; returns the NICStatus
	CommandDetach = "vmrun-nic-detach" // arguments: NICArguments with a name alone
	CommandSet    = "vmrun-nic-set"    // arguments: NICArguments; returns the NICStatus
)

// Classes of errors of vmrun's own on the control socket.
const (
	ClassUnresponsive = "VmrunUnresponsive" // QEMU did not answer in time
	ClassSpec         = "VmrunSpec"         // the words make no NIC
	ClassRefused      = "VmrunRefused"      // the agent in the guest does not do it
	ClassTimeout      = "VmrunTimeout"      // it took longer than the client wants to wait
	ClassDenied       = "VmrunDenied"       // for root only, or not for this user
)

// StopArguments are those of vmrun-stop.
type StopArguments struct {
	Wait bool `json:"wait"` // answer when the guest has ended, not at once
}

// NICArguments are those of the commands that change a guest's NICs.
type NICArguments struct {
	Name  string   `json:"name,omitempty"`  // of the NIC: "net0"
	Words []string `json:"words,omitempty"` // keys of a spec's [[nic]] with their values, "parent=eth0"; link=up and link=down too
	Force bool     `json:"force,omitempty"` // override the rules that may be overridden
}

// control is the supervisor's own QMP server.
type control struct {
	server *qmp.Server
	wg     sync.WaitGroup
}

// drainTimeout bounds the wait for clients to take their last answers.
const drainTimeout = 2 * time.Second

// serveControl listens on control.sock, or takes over from an earlier life. The
// server outlives the undo, which only takes the socket's name away: who waits
// for the guest's end is answered when everything is gone.
func (l *life) serveControl(context.Context) error {
	l.present.Store(l)
	if l.control.Load() != nil {
		return l.admitGroup() // to what is new
	}
	path := l.dir.path(fileControl)
	listener, err := listenUnix(path)
	if err != nil {
		return err
	}
	l.supervisor.undo.push(fileControl, func() error { return l.removeOwn(fileControl) })
	c := &control{server: qmp.NewServer(l.snapshot().QEMUVersion, guarded(l.answer), &qmp.ServerOptions{Logger: l.log, Admit: l.dir.admits})}
	c.wg.Go(func() {
		if err := c.server.Serve(context.Background(), listener); err != nil {
			l.log.Error("control socket", "error", err)
		}
	})
	l.control.Store(c)
	return l.admitGroup()
}

func (c *control) close() error {
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	c.server.Shutdown(ctx) // a client that does not take its answer loses it
	c.wg.Wait()
	return nil
}

// serve answers one request on the control socket.
func (l *life) serve(ctx context.Context, req qmp.Request) (any, error) {
	switch req.Command {
	case CommandStatus:
		return l.freshStatus(ctx).present(), nil
	case CommandStop:
		return l.serveStop(ctx, req.Arguments)
	case CommandScreenshot:
		return l.screenshot(ctx)
	case CommandReload:
		return l.serveReload(ctx)
	case CommandReexec:
		return l.serveReexec(ctx, req.Arguments)
	case CommandSuspend:
		return l.serveSuspend(ctx)
	case CommandExec:
		return l.serveExec(ctx, req.Arguments)
	case CommandKill:
		if err := l.askToEnd(ctx, evKill); err != nil {
			return nil, err
		}
		return l.awaitEnd(ctx)
	}
	if serve, ok := nicCommands[req.Command]; ok {
		return l.serveNIC(ctx, req, serve)
	}
	if req.Command == CommandDisks {
		return l.serveDisks(ctx)
	}
	if serve, ok := diskCommands[req.Command]; ok {
		return l.serveDisk(ctx, req, serve)
	}
	if do, ok := liveCommands[req.Command]; ok {
		return l.serveLive(ctx, req, do)
	}
	limit, ok := passOnLimit(req.Command)
	if !ok {
		return nil, qmp.Errorf("%s", refusal(req.Command))
	}
	if !asks(req.Command) && !l.snapshot().Committed {
		return nil, qmp.Errorf("the guest is still starting")
	}
	if !asks(req.Command) && l.snapshot().Situation.Suspend.isUnderWay() {
		return nil, qmp.Errorf("the guest is being suspended, or a snapshot taken of it")
	}
	if req.Command == "cont" {
		if err := l.spendMemory(); err != nil {
			return nil, err
		}
	}
	if req.Command == "stop" && l.snapshot().Situation.Rung != RungNone {
		return nil, qmp.Errorf("the guest is stopping, for which its CPUs have to run")
	}
	if req.Command == "stop" { // of a guest that stands still already QEMU says nothing
		if err := l.request(ctx, func(w *watcher) { w.handle(event{kind: evHold}) }); err != nil {
			return nil, err
		}
	}
	return l.passOn(ctx, req, limit)
}

// nicCommands are vmrun's own that are about NICs, among other things.
var nicCommands = map[string]func(*nics, context.Context, NICArguments) (any, error){
	CommandStats: func(m *nics, ctx context.Context, _ NICArguments) (any, error) { return m.life.stats(ctx) },
	CommandAttach: func(m *nics, ctx context.Context, args NICArguments) (any, error) {
		return m.attach(ctx, args.Words, args.Force)
	},
	CommandDetach: func(m *nics, ctx context.Context, args NICArguments) (any, error) {
		return nil, m.detach(ctx, args.Name)
	},
	CommandSet: func(m *nics, ctx context.Context, args NICArguments) (any, error) {
		return m.set(ctx, args.Name, args.Words)
	},
}

// serveNIC answers a request about NICs.
func (l *life) serveNIC(ctx context.Context, req qmp.Request, serve func(*nics, context.Context, NICArguments) (any, error)) (any, error) {
	var args NICArguments
	if err := decodeArguments(req.Arguments, &args); err != nil {
		return nil, err
	}
	var result any
	err := l.change(func() (err error) {
		result, err = serve(l.nics, ctx, args)
		return err
	})
	var errs configs.Errors
	if errors.As(err, &errs) {
		return nil, &qmp.Error{Class: ClassSpec, Desc: err.Error()}
	}
	return result, unresponsive(err)
}

// change carries out what changes a guest that has come so far, in the host's
// network namespace.
func (l *life) change(do func() error) error {
	rec := l.snapshot()
	if !rec.Committed || rec.Situation.Rung != RungNone || rec.Situation.Suspend.isUnderWay() || rec.Ended != nil {
		return qmp.Errorf("the guest is starting, stopping or being suspended")
	}
	return l.nics.host.Do(do)
}

// decodeArguments puts a request's arguments, if it has any, into what into points
// to. A name that is none of its is refused, as QEMU does.
func decodeArguments(arguments json.RawMessage, into any) error {
	if len(arguments) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(arguments))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return qmp.Errorf("arguments: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// passOn runs one of QEMU's own commands.
func (l *life) passOn(ctx context.Context, req qmp.Request, limit time.Duration) (any, error) {
	dial, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	mon, err := l.reach(dial)
	if err != nil {
		return nil, unresponsive(err)
	}
	ctx, cancel = context.WithTimeout(ctx, limit)
	defer cancel()
	result, err := qmp.Forward(mon)(ctx, req)
	return result, unresponsive(err)
}

// inWords is a client's view of that: what was refused in its own words alone, and
// ErrUnresponsive for that class.
func inWords(err error) error {
	var refused *qmp.Error
	switch {
	case !errors.As(err, &refused):
		return err
	case refused.Class == ClassUnresponsive:
		return fmt.Errorf("%w: %s", ErrUnresponsive, refused.Desc)
	}
	return refused
}

// unresponsive gives an expired deadline its class; other errors stay.
func unresponsive(err error) error {
	// EAGAIN is a socket whose backlog is full of connections not accepted.
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, unix.EAGAIN) {
		return &qmp.Error{Class: ClassUnresponsive, Desc: "QEMU does not answer"}
	}
	return err
}

// serveStop starts the ladder of a guest whose QEMU answers.
func (l *life) serveStop(ctx context.Context, arguments json.RawMessage) (any, error) {
	var args StopArguments
	if err := decodeArguments(arguments, &args); err != nil {
		return nil, err
	}
	if status := l.liveStatus(ctx); status.State == StateUnresponsive {
		return nil, &qmp.Error{Class: ClassUnresponsive, Desc: "QEMU does not answer"}
	}
	if err := l.askToEnd(ctx, evStop); err != nil {
		return nil, err
	}
	if !args.Wait {
		return nil, nil
	}
	return l.awaitEnd(ctx)
}

// askToEnd ends the guest. One that has just ended by itself stays ended.
func (l *life) askToEnd(ctx context.Context, kind eventKind) error {
	err := l.request(ctx, func(w *watcher) { w.handle(event{kind: kind}) })
	if errors.Is(err, errGone) {
		l.giveUp()
		return nil
	}
	return err
}

func (s *supervisor) awaitEnd(ctx context.Context) (any, error) {
	stop := s.guest().Stop
	select {
	case <-s.gone:
		return s.outcome, nil
	case <-time.After(stop.Timeout + stop.QuitTimeout + killTimeout):
		return nil, &qmp.Error{Class: ClassUnresponsive, Desc: "QEMU does not even end on SIGKILL: it hangs in the kernel"}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// freshStatus is liveStatus with addresses that the guest's agent was asked for
// lately, if it answers in time.
func (l *life) freshStatus(ctx context.Context) Status {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	status := l.liveStatus(ctx)
	if status.State == StateRunning && l.nics.agent.refresh(ctx) {
		status.NICs = l.nics.statuses()
	}
	return status
}

// liveStatus is the guest's status, after QEMU was asked whether it is there.
func (l *life) liveStatus(ctx context.Context) Status {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var run qmp.Status
	var stalled string
	mon, err := l.reach(ctx)
	if err == nil {
		run, stalled, err = queryRun(ctx, mon, l.guest())
	}
	rec := l.snapshot()
	status := l.recorded(&rec)
	if err == nil && !run.Running && (status.State == StateRunning || status.State == StatePaused) {
		status.halted(run, stalled) // by itself perhaps: a full disk, an incoming migration
	}
	status.doubt(silentQEMU, err, err == nil || rec.alive())
	return status
}

// recorded is what the record says of the guest, and its NICs.
func (l *life) recorded(rec *record) Status {
	status := rec.status(os.Getpid())
	if list := l.nics.statuses(); len(list) > 0 && rec.Ended == nil {
		status.NICs = list
	}
	return status
}

// askTimeout is how long QEMU gets to answer a question, short of the 2 s that
// a verb which only asks may take in all.
const askTimeout = time.Second
