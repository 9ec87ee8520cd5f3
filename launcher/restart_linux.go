package launcher

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"vmrun/qmp"
)

// again starts the guest anew where its policy says so, as often as it takes. It
// returns the next life; or nil, and how the guest ended for good. Until a start
// has come as far as to write a record, this life's tells of it.
func (l *life) again(ctx context.Context, o Outcome) (*life, Outcome) {
	last := l.snapshot()
	past, ran := last.Restarts, time.Since(last.Started)
	for !last.Situation.Asked && !l.opts.adoptOnly && l.owns() {
		var why string
		if past, why = past.after(l.guest().Restart, o, ran, time.Now()); past.Next.IsZero() {
			if why != "" {
				l.log.Error("the guest stays ended", "why", why)
				o.Detail = fmt.Sprintf("%s; %s", o, why)
			}
			return nil, o
		}
		l.between(past, o)
		if !l.rest(ctx, time.Until(past.Next)) {
			return nil, stopped(o)
		}
		past = past.begun(l.guest().Restart, time.Now())
		l.mu.Lock()
		l.rec.Restarts = past // written down should this be the last
		l.mu.Unlock()
		l.announce(newEvent(EventState, map[string]any{"state": string(StateStarting)}))
		l.opts.Paused, l.opts.Force = last.Halted && !last.Situation.Ran, last.Forced
		next := l.newLife()
		next.past = past
		err := next.start(ctx)
		if err == nil {
			state := next.snapshot().state()
			l.log.Info("guest is up again", "state", state, "pid", next.qemu.id.PID, "restarts", past.Count)
			l.announce(newEvent(EventState, map[string]any{"state": string(state)}))
			return next, o
		}
		l.present.Store(nil)
		if ctx.Err() != nil {
			return nil, stopped(o)
		}
		l.log.Error("the guest could not be restarted", "error", err)
		o, ran = failed(err), 0
	}
	return nil, o
}

// between notes and tells that the guest waits for a restart.
func (l *life) between(past restarts, o Outcome) {
	err := l.opts.do("record restart", func() error {
		return l.update(func(r *record) { r.Ended, r.Restarts = &o, past })
	})
	if err != nil {
		l.log.Error("the state file is out of date", "error", err)
	}
	l.present.Store(nil)
	l.log.Info("guest is to be restarted", "in", time.Until(past.Next).Round(time.Millisecond), "restarts", past.Count)
	l.announce(newEvent(EventState, map[string]any{
		"state": string(StateRestarting), "next": past.Next, "restarts": past.Count, "reason": string(o.Reason), "detail": o.String(),
	}))
}

// rest waits, and reports whether nobody wants the guest to stay ended.
func (s *supervisor) rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d) // by a clock that nobody can set
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
	case <-s.opts.Kill:
	}
	return false
}

// stopped is the outcome of a guest that somebody did not want restarted.
func stopped(o Outcome) Outcome {
	return Outcome{Reason: ReasonStopped, Detail: "stopped before its restart: " + o.String(), At: time.Now()}
}

// failed is the outcome of a restart that did not come about.
func failed(err error) Outcome {
	lines := strings.NewReplacer("\n\t", "; ", "\n", "; ")
	return Outcome{Reason: ReasonStartFailed, Detail: "restart: " + lines.Replace(err.Error()), At: time.Now()}
}

// answer answers a request on the control socket: the present life does, or
// between two of them whoever waits for the next.
func (s *supervisor) answer(ctx context.Context, req qmp.Request) (any, error) {
	if l := s.present.Load(); l != nil {
		return l.serve(ctx, req)
	}
	switch req.Command {
	case CommandStatus:
		rec, err := s.dir.readRecord()
		if err != nil {
			return nil, err
		}
		return rec.status(os.Getpid()), nil
	case CommandStop, CommandKill:
		var args StopArguments
		if len(req.Arguments) > 0 {
			if err := json.Unmarshal(req.Arguments, &args); err != nil {
				return nil, err
			}
		}
		s.giveUp()
		if req.Command == CommandStop && !args.Wait {
			return nil, nil
		}
		return s.awaitEnd(ctx)
	}
	return nil, qmp.Errorf("the guest has ended, and is being restarted")
}
