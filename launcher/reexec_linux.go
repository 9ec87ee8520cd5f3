package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vmrun/qmp"
)

// ReexecArguments are those of vmrun-reexec.
type ReexecArguments struct {
	Reads int `json:"reads"` // the newest version of a state file that the program to come reads
}

// serveReexec puts the program that is installed by now into the place of this one
// (execve(2)): the same process, so that a unit, a scope and a terminal keep their
// supervisor. For the guest that is a supervisor that was killed, and one that
// adopts it a moment later; what could be cut off amid a change is waited for. The
// client is answered when it failed, and hears the end of the connection otherwise.
func (l *life) serveReexec(ctx context.Context, arguments json.RawMessage) (any, error) {
	var args ReexecArguments
	if err := decodeArguments(arguments, &args); err != nil {
		return nil, err
	}
	if l.opts.Reexec == nil {
		return nil, qmp.Errorf("the guest's supervisor cannot do that")
	}
	if args.Reads < recordVersion {
		return nil, qmp.Errorf("the vmrun that is installed is older than the guest's state file")
	}
	select {
	case l.reloads <- struct{}{}:
		defer func() { <-l.reloads }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l.diskWork.Lock()
	defer l.diskWork.Unlock()
	if ctx.Err() != nil { // nobody waits for it any more
		return nil, ctx.Err()
	}
	err := l.change(func() error {
		unlock, err := l.nics.lock(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		return l.reexec(ctx)
	})
	return nil, err
}

// reexec returns only when it could not. The goroutine that owns the situation
// carries it out, so that no stop begins meanwhile.
func (l *life) reexec(ctx context.Context) error {
	var err error
	asked := l.request(ctx, func(w *watcher) {
		if w.now.Rung != RungNone || w.isUnwritten() {
			err = qmp.Errorf("the guest is stopping, or its state file is out of date")
			return
		}
		w.log.Info("the supervisor goes on as the vmrun that is installed")
		if err = keepDescriptors(); err == nil {
			err = w.opts.Reexec()
		}
		w.log.Error("the supervisor goes on as it is", "error", err)
	})
	return errors.Join(asked, err)
}

// Reexec has the supervisor of a guest go on as the vmrun that is installed, and
// waits until it has the guest again, for ten seconds at most.
func Reexec(ctx context.Context, base, name string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, reexecTimeout)
	defer cancel()
	client, err := Control(ctx, base, name)
	if err != nil {
		return Status{}, err
	}
	defer client.Close()
	err = client.Execute(ctx, CommandReexec, ReexecArguments{Reads: recordVersion}, nil)
	var refused *qmp.Error
	switch {
	case errors.As(err, &refused):
		return Status{}, fmt.Errorf("%s: %w", name, refused)
	case ctx.Err() != nil:
		return Status{}, fmt.Errorf("%s: its supervisor does not answer: %w", name, ctx.Err())
	}
	for {
		status, err := Observe(ctx, base, name)
		if err == nil && status.Supervisor != 0 && status.State != StateStarting {
			if client, err := Control(ctx, base, name); err == nil {
				client.Close()
				return status, nil
			}
		}
		select {
		case <-time.After(reexecEvery):
		case <-ctx.Done():
			return status, fmt.Errorf("%[1]s: its supervisor has not come back within %[2]v: vmrun start %[1]s adopts the guest: %[3]w", name, reexecTimeout, ctx.Err())
		}
	}
}

const (
	reexecTimeout = 10 * time.Second
	reexecEvery   = 20 * time.Millisecond
)
