package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/qmp"
)

const sigKill = unix.SIGKILL

// Commands of vmrun's own on the control socket, beside QEMU's.
const (
	CommandStatus = "vmrun-status" // returns a Status
	CommandStop   = "vmrun-stop"   // arguments: StopArguments; returns the Outcome when the guest has ended
	CommandKill   = "vmrun-kill"   // returns the Outcome
)

// Classes of errors of vmrun's own on the control socket.
const ClassUnresponsive = "VmrunUnresponsive" // QEMU did not answer in time

// StopArguments are those of vmrun-stop.
type StopArguments struct {
	Wait bool `json:"wait"` // answer when the guest has ended, not at once
}

// control is the supervisor's own QMP server.
type control struct {
	server *qmp.Server
	wg     sync.WaitGroup
}

// drainTimeout bounds the wait for clients to take their last answers.
const drainTimeout = 2 * time.Second

// serveControl listens on control.sock. The server outlives the undo, which
// only takes the socket's name away: who waits for the guest's end is answered
// when everything is gone.
func (l *life) serveControl(context.Context) error {
	path := l.dir.path(fileControl)
	listener, err := listenUnix(path)
	if err != nil {
		return err
	}
	l.undo.push(func() error { return removeFile(path) })
	c := &control{server: qmp.NewServer(l.snapshot().QEMUVersion, l.serve, &qmp.ServerOptions{Logger: l.log})}
	c.wg.Go(func() {
		if err := c.server.Serve(context.Background(), listener); err != nil {
			l.log.Error("control socket", "error", err)
		}
	})
	l.control = c
	return nil
}

func (c *control) close() error {
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
		return l.liveStatus(ctx), nil
	case CommandStop:
		return l.serveStop(ctx, req.Arguments)
	case CommandKill:
		if err := l.request(ctx, func(w *watcher) { w.handle(event{kind: evKill}) }); err != nil {
			return nil, err
		}
		return l.awaitEnd(ctx)
	}
	if verb, refused := refusedCommands[req.Command]; refused {
		return nil, qmp.Errorf("%s would change what vmrun knows of the guest: %s", req.Command, verb)
	}
	return l.passOn(ctx, req)
}

// passOn runs one of QEMU's own commands.
func (l *life) passOn(ctx context.Context, req qmp.Request) (any, error) {
	dial, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	mon, err := l.reach(dial)
	if err != nil {
		return nil, unresponsive(err)
	}
	if limit, ok := quickCommands[req.Command]; ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	result, err := qmp.Forward(mon)(ctx, req)
	return result, unresponsive(err)
}

// unresponsive gives an expired deadline its class; other errors stay.
func unresponsive(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return &qmp.Error{Class: ClassUnresponsive, Desc: "QEMU does not answer"}
	}
	return err
}

// serveStop starts the ladder of a guest whose QEMU answers.
func (l *life) serveStop(ctx context.Context, arguments json.RawMessage) (any, error) {
	var args StopArguments
	if len(arguments) > 0 {
		if err := json.Unmarshal(arguments, &args); err != nil {
			return nil, err
		}
	}
	if status := l.liveStatus(ctx); status.State == StateUnresponsive {
		return nil, &qmp.Error{Class: ClassUnresponsive, Desc: "QEMU does not answer"}
	}
	if err := l.request(ctx, func(w *watcher) { w.handle(event{kind: evStop}) }); err != nil && !errors.Is(err, errGone) {
		return nil, err
	}
	if !args.Wait {
		return nil, nil
	}
	return l.awaitEnd(ctx)
}

func (l *life) awaitEnd(ctx context.Context) (any, error) {
	select {
	case <-l.gone:
		return l.outcome, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// liveStatus is the guest's status, after QEMU was asked whether it is there.
func (l *life) liveStatus(ctx context.Context) Status {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	mon, err := l.reach(ctx)
	if err == nil {
		_, err = mon.QueryStatus(ctx)
	}
	rec := l.snapshot()
	status := rec.status(os.Getpid())
	status.doubt(err, rec.alive())
	return status
}

// askTimeout is how long QEMU gets to answer a question, short of the 2 s that
// a verb which only asks may take in all.
const askTimeout = time.Second

// refusedCommands are QEMU's commands that would change what the supervisor
// believes behind its back, with what to do instead. Others that change the
// guest's state (stop, cont, system_reset, system_powerdown) send events, which
// the supervisor follows.
var refusedCommands = map[string]string{
	"quit":                  "use vmrun stop, or vmrun kill",
	"device_add":            "there is no verb for it yet",
	"device_del":            "there is no verb for it yet",
	"netdev_add":            "NICs are the spec's",
	"netdev_del":            "NICs are the spec's",
	"set_link":              "NICs are the spec's",
	"getfd":                 "descriptors are vmrun's to pass",
	"closefd":               "descriptors are vmrun's to pass",
	"add-fd":                "descriptors are vmrun's to pass",
	"remove-fd":             "descriptors are vmrun's to pass",
	"chardev-add":           "the monitor and the console are vmrun's",
	"chardev-change":        "the monitor and the console are vmrun's",
	"chardev-remove":        "the monitor and the console are vmrun's",
	"yank":                  "the monitor and the console are vmrun's",
	"migrate":               "a guest's NICs are bound to this host",
	"migrate-incoming":      "a guest's NICs are bound to this host",
	"set-action":            "how a guest ends is vmrun's to know",
	"watchdog-set-action":   "how a guest ends is vmrun's to know",
	"human-monitor-command": "use the QMP command that does it",
	"qom-set":               "use the QMP command that does it",
}

// quickCommands are answered at once by a QEMU that works, so that one which is
// frozen can be told from one that is busy.
var quickCommands = map[string]time.Duration{
	"stop":             commandTimeout,
	"cont":             commandTimeout,
	"system_reset":     commandTimeout,
	"system_powerdown": commandTimeout,
	"system_wakeup":    commandTimeout,
	"query-status":     commandTimeout,
}
