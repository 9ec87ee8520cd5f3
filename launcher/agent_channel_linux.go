package launcher

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"time"
)

var (
	errNoAgent     = errors.New("no agent answers in the guest: install qemu-guest-agent there, and start it")
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
	if errors.As(err, &late) && late.Timeout() {
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
