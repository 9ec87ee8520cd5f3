package launcher

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The times of a freeze. Whoever writes in the guest waits meanwhile.
const (
	freezePatience = 10 * time.Second // for a guest to write out what is dirty
	thawPatience   = 5 * time.Second
	freezeLimit    = 30 * time.Second // for what is done to a frozen guest
)

// Freeze is what came of freezing a guest's file systems.
type Freeze struct {
	FileSystems int    `json:"filesystems"`   // that were frozen
	Why         string `json:"why,omitempty"` // none was
}

// whileFrozen has the agent in the guest write out and freeze all of its file
// systems, runs act, which gets 30 s, and has them thawed again, whatever became of
// act. Where nothing can be frozen, there being no agent for example, act runs all
// the same: what it takes of the disks is then as after a power cut. The error is
// act's, or says that the guest may be frozen and act was not run; who thaws it
// then, and after the death of this supervisor, is the agent's goroutine, as soon
// as the guest's CPUs run and its agent answers.
//
// It is for what is taken of disks alone. In the memory of a guest that is taken
// meanwhile the file systems are frozen for good, or until somebody calls
// agent.thawSoon when it runs from that.
func (l *life) whileFrozen(ctx context.Context, act func(context.Context) error) (Freeze, error) {
	a := l.nics.agent
	if !a.freezing.TryLock() {
		return Freeze{}, errors.New("the guest's file systems are being frozen for somebody else")
	}
	defer a.thawSoon() // where it is not done here
	defer a.freezing.Unlock()
	f, err := a.freeze(ctx)
	if err != nil {
		return f, err
	}
	acting, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	err = act(acting)
	if l.snapshot().Frozen {
		if thawErr := a.thaw(context.WithoutCancel(ctx)); thawErr != nil {
			l.log.Warn("the guest's file systems are not thawed yet", "error", thawErr)
		}
	}
	return f, err
}

// freeze freezes the guest's file systems. That it is about to is written down
// first, for whoever looks after the guest when this process has died.
func (a *agent) freeze(ctx context.Context) (f Freeze, err error) {
	if a.life.snapshot().Frozen {
		return f, errors.New("the guest's file systems are still to be thawed after an earlier freeze")
	}
	if err := a.there(ctx); err != nil {
		return Freeze{Why: err.Error()}, nil
	}
	if err := a.setFrozen(true); err != nil {
		return f, fmt.Errorf("freeze: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, freezePatience)
	defer cancel()
	asked := false
	err = a.converse(ctx, agentTimeout, func(c *conversation) error {
		asked = true
		return c.ask("guest-fsfreeze-freeze", nil, &f.FileSystems)
	})
	var refusal *agentRefusal
	switch {
	case err == nil:
		a.life.log.Info("the guest's file systems are frozen", "count", f.FileSystems)
		return f, nil
	case !asked || errors.As(err, &refusal): // an agent that cannot thaws what it had frozen
		return Freeze{Why: err.Error()}, a.setFrozen(false)
	}
	return Freeze{Why: err.Error()}, fmt.Errorf("freeze: %w", err)
}

// thaw thaws the guest's file systems, which does nothing to those that are not
// frozen.
func (a *agent) thaw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, thawPatience)
	defer cancel()
	var n int
	err := a.converse(ctx, thawPatience, func(c *conversation) error { return c.ask("guest-fsfreeze-thaw", nil, &n) })
	if err != nil {
		return err
	}
	a.life.log.Info("the guest's file systems are thawed", "count", n)
	return a.setFrozen(false)
}

// thawSoon has the goroutine thaw what the record says is frozen.
func (a *agent) thawSoon() { a.touch() }

func (a *agent) setFrozen(frozen bool) error {
	return a.life.update(func(r *record) { r.Frozen = frozen })
}

// keepThawed thaws what nobody needs frozen any more. It reports whether the guest
// is not frozen.
func (a *agent) keepThawed(ctx context.Context) bool {
	if !a.life.snapshot().Frozen {
		return true
	}
	if !a.freezing.TryLock() {
		return false
	}
	defer a.freezing.Unlock()
	return a.thaw(ctx) == nil
}
