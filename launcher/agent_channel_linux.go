package launcher

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

var (
	errNoAgent     = errors.New("no agent answers in the guest: it may still boot, or need qemu-guest-agent installed and started")
	errAgentPaused = errors.New("the guest's CPUs stand still, and so its agent does not answer: vmrun resume")
	errAgentBusy   = errors.New("the agent in the guest is talking to somebody else")
	errAgentDeaf   = errors.New("the agent in the guest does not answer")
)

// converse has one conversation with the agent, when it is its turn: there is one
// at a time. The agent gets patience to come into step, and after that talk until
// ctx ends. The channel is free in between, for whoever else has something to say
// to it.
func (a *agent) converse(ctx context.Context, patience time.Duration, talk func(*conversation) error) error {
	begin, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-begin.Done():
		return errAgentBusy
	}
	var d net.Dialer
	conn, err := d.DialContext(begin, "unix", a.life.dir.path(fileAgent))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(begin, func() { conn.SetDeadline(time.Now()) })
	c, err := newConversation(conn, rand.Int64())
	if err == nil && !stop() {
		err = errAgentDeaf
	}
	if err != nil {
		return deaf(err)
	}
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	return deaf(talk(c))
}

// deaf says of an agent that took too long what it is.
func deaf(err error) error {
	var late net.Error
	if errors.As(err, &late) && late.Timeout() || errors.Is(err, io.EOF) { // which is QEMU's end
		return errAgentDeaf
	}
	return err
}

// there is nil when somebody in the guest can be asked, who need not be an agent
// or answer.
func (a *agent) there(ctx context.Context) error {
	if err := a.look(ctx); err != nil {
		return unresponsive(err)
	}
	a.mu.Lock()
	opened := a.opened
	a.mu.Unlock()
	switch {
	case !opened:
		return errNoAgent
	case a.life.snapshot().Situation.Paused:
		return errAgentPaused
	}
	return nil
}

// mayAnswer reports whether an agent is known of that may power the guest down. In the
// first moment of a supervisor none is.
func (a *agent) mayAnswer() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mayAsk()
}

// powerDown has the agent power the guest down, and calls taken when it was told.
// The error says that it did not hear, or in two seconds more that it will not.
func (a *agent) powerDown(ctx context.Context, taken func()) error {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout+agentPatience)
	defer cancel()
	if err := a.there(ctx); err != nil {
		return err
	}
	return a.converse(ctx, agentTimeout, func(c *conversation) error {
		if err := c.send("guest-shutdown", map[string]string{"mode": "powerdown"}); err != nil {
			return err
		}
		taken()
		var refusal *agentRefusal
		if err := c.answer(maxAgentWords, maxAgentWords, nil); errors.As(err, &refusal) {
			return err
		}
		return nil // which a success has no words for (qga/qapi-schema.json, guest-shutdown)
	})
}

// tellAgent has the agent in the guest power it down, beside the loop.
func (w *watcher) tellAgent() {
	say := func(kind eventKind) {
		w.request(context.Background(), func(w *watcher) { w.handle(event{kind: kind}) }) // which is there until QEMU ends
	}
	w.acts.Go(func() {
		err := w.opts.do("guest-shutdown", func() error {
			return w.nics.agent.powerDown(context.Background(), func() { say(evTaken) })
		})
		if err != nil {
			w.log.Info("the agent in the guest does not power it down: its power button is pressed", "error", err)
			say(evDeaf)
		}
	})
}
