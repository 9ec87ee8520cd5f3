package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"vmrun/qmp"
)

// The times of a command in a guest.
const (
	execStart   = 10 * time.Second       // for an agent to start it
	execHaste   = time.Second            // for the same, where the client is in a hurry
	execAnswer  = 2 * time.Minute        // to hand over what it wrote, which it does once
	execSilence = 30 * time.Second       // for a silent agent to be given up
	execBrief   = 500 * time.Millisecond // that it may take to be waited for in the first conversation
	execPollMin = 10 * time.Millisecond
	execPollMax = time.Second
)

// serveExec runs a command in the guest by its agent, as the agent's user, which
// is root.
func (l *life) serveExec(ctx context.Context, arguments json.RawMessage) (any, error) {
	var args ExecArguments
	if err := decodeArguments(arguments, &args); err != nil {
		return nil, err
	}
	if err := args.check(); err != nil {
		return nil, err
	}
	if !l.snapshot().Committed {
		return nil, qmp.Errorf("the guest is still starting")
	}
	result, err := l.nics.agent.exec(ctx, args)
	var refusal *agentRefusal
	switch {
	case errors.As(err, &refusal) && result.PID == 0:
		return nil, &qmp.Error{Class: ClassRefused, Desc: refusal.Error()}
	case errors.Is(err, errExecTimeout):
		return nil, &qmp.Error{Class: ClassTimeout, Desc: err.Error()}
	case err != nil:
		return nil, err
	}
	return result, nil
}

var errExecTimeout = errors.New("timed out")

// exec runs a command in the guest and waits for its end. With an error the pid is
// that of a command that was started.
func (a *agent) exec(ctx context.Context, args ExecArguments) (ExecResult, error) {
	if err := a.there(ctx); err != nil {
		return ExecResult{}, err
	}
	starting := ctx
	if args.TimeoutMS > 0 {
		var cancel, cancelStart context.CancelFunc
		starting, cancelStart = context.WithTimeoutCause(ctx, max(args.timeout(), execHaste), errExecTimeout)
		defer cancelStart()
		ctx, cancel = context.WithTimeoutCause(ctx, args.timeout(), errExecTimeout)
		defer cancel()
	}
	isOver := func(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errExecTimeout) }
	pid, status, err := a.startExec(starting, args)
	switch {
	case err != nil && isOver(starting) && pid == 0:
		return ExecResult{}, errExecTimeout
	case err != nil && isOver(starting):
		return ExecResult{PID: pid}, mayGoOn(pid, errExecTimeout)
	case err != nil && pid != 0:
		return ExecResult{PID: pid}, mayGoOn(pid, err)
	case err != nil:
		return ExecResult{}, err
	}
	heard := time.Now()
	for wait := execPollMin; !status.Exited; wait = min(2*wait, execPollMax) {
		select {
		case <-time.After(wait):
		case <-a.life.qemu.done:
			return ExecResult{PID: pid}, errors.New("the guest has ended")
		case <-ctx.Done():
			if isOver(ctx) {
				return ExecResult{PID: pid}, mayGoOn(pid, errExecTimeout)
			}
			return ExecResult{PID: pid}, ctx.Err()
		}
		err := a.there(ctx)
		if err == nil {
			status, err = a.pollExec(ctx, pid)
		}
		switch {
		case err != nil && isOver(ctx):
			return ExecResult{PID: pid}, mayGoOn(pid, errExecTimeout)
		case err == nil || errors.Is(err, errAgentPaused):
			heard = time.Now()
		case !errors.Is(err, errAgentBusy) && !errors.Is(err, errAgentDeaf) || time.Since(heard) > execSilence:
			return ExecResult{PID: pid}, mayGoOn(pid, err)
		}
	}
	return status.result(pid), nil
}

// startExec starts a command and, should it be brief, waits for its end.
func (a *agent) startExec(ctx context.Context, args ExecArguments) (pid int64, status execStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, execStart+execAnswer)
	defer cancel()
	err = a.converse(ctx, execStart, func(c *conversation) error {
		var started struct{ PID int64 }
		if err := c.ask("guest-exec", args.guestExec(), &started); err != nil {
			return err
		}
		pid = started.PID
		for wait, began := execPollMin, time.Now(); time.Since(began) < min(execBrief, args.timeout()); wait *= 2 {
			time.Sleep(wait)
			if status, err = c.execStatus(pid); err != nil || status.Exited {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, errAgentDeaf) && pid != 0 {
		err = nil // it is asked again
	}
	return pid, status, err
}

func (a *agent) pollExec(ctx context.Context, pid int64) (status execStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, execAnswer)
	defer cancel()
	err = a.converse(ctx, execStart, func(c *conversation) (err error) {
		status, err = c.execStatus(pid)
		return err
	})
	return status, err
}
