package launcher

import (
	"context"
	"errors"
	"time"
)

// When a guest's clock is set: it stands while the guest's CPUs do.
const (
	clockSlack   = time.Second      // a clock that is off by less is right, and a shorter halt nothing
	clockWait    = time.Minute      // for an agent that can set it
	timePatience = 10 * time.Second // hwclock(8), which the agent runs, waits for the next second
)

// keepTime has the clock of a guest set that goes on after a while, or from disk.
// One that boots reads its own.
func (w *watcher) keepTime(before situation) {
	switch {
	case w.now.Paused:
		w.halted = time.Now()
	case !before.Ran && !w.snapshot().Restored:
	case !before.Ran || w.halted.IsZero() || time.Since(w.halted) >= clockSlack:
		w.nics.agent.clockStood()
	}
}

// clockStood has the guest's clock set to the host's, where it is behind, as soon
// as the guest's agent answers: the guest goes on after it has stood still.
func (a *agent) clockStood() {
	a.mu.Lock()
	a.stood = time.Now()
	a.mu.Unlock()
	a.touch()
}

// keepTime sets the clock of a guest that has stood still.
func (a *agent) keepTime(ctx context.Context) {
	a.mu.Lock()
	stood := a.stood
	a.mu.Unlock()
	if stood.IsZero() {
		return
	}
	behind, err := time.Duration(0), errAgentDeaf
	if time.Since(stood) < clockWait {
		ctx, cancel := context.WithTimeout(ctx, timePatience)
		defer cancel()
		behind, err = a.setTime(ctx)
	}
	var refusal *agentRefusal
	switch {
	case err == nil && behind >= clockSlack:
		a.life.log.Info("the guest's clock is set: it had stood still", "behind", behind.Round(time.Millisecond))
	case err != nil && !errors.As(err, &refusal) && time.Since(stood) < clockWait:
		return // and tried again
	case err != nil:
		a.life.log.Warn("the guest's clock is not set after it has stood still", "behind", behind.Round(time.Millisecond), "error", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stood.Equal(stood) {
		a.stood = time.Time{}
	}
}

// setTime sets the guest's clock where it is behind the host's, and returns by how
// much it was.
func (a *agent) setTime(ctx context.Context) (behind time.Duration, err error) {
	err = a.converse(ctx, agentTimeout, func(c *conversation) error {
		var shown int64 // nanoseconds since 1970
		if err := c.ask("guest-get-time", nil, &shown); err != nil {
			return err
		}
		now := time.Now()
		if behind = now.Sub(time.Unix(0, shown)); behind < clockSlack {
			return nil
		}
		return c.ask("guest-set-time", map[string]int64{"time": time.Now().UnixNano()}, nil)
	})
	return behind, err
}
