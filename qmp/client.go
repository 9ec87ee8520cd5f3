package qmp

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"sync"
	"time"
)

// Options are what a Client can do without; the zero value works.
type Options struct {
	// EventQueue is how many events a subscription holds; 256 when 0.
	EventQueue int

	// WriteTimeout bounds the write of one command whose context has no
	// earlier end; 10 s when 0. It bounds the write, not the answer.
	WriteTimeout time.Duration

	// Trace, when set, is given every message as it was sent or received.
	// It is called from several goroutines, must not block, and must not
	// keep or change the line.
	Trace func(sent bool, line []byte)
}

func (o *Options) withDefaults() Options {
	var opts Options
	if o != nil {
		opts = *o
	}
	if opts.EventQueue <= 0 {
		opts.EventQueue = 256
	}
	if opts.WriteTimeout <= 0 {
		opts.WriteTimeout = 10 * time.Second
	}
	if opts.Trace == nil {
		opts.Trace = func(bool, []byte) {}
	}
	return opts
}

// Client is one connection to a QMP monitor. Its methods may be called from
// many goroutines at once.
type Client struct {
	conn     net.Conn
	opts     Options
	greeting Greeting
	hub      hub
	writing  chan struct{} // held by whoever writes

	mu      sync.Mutex
	pending map[string]chan<- *message // by id; each has room for one
	nextID  uint64
	cause   error // why the connection ends, when known before the reader

	// Ids are unlike those of any other client. A command that a dead
	// predecessor of ours left running may be answered on our connection. They are
	// short, because QEMU reads a monitor byte by byte, with some seven system calls
	// for each (monitor/monitor.c, monitor_can_read).
	idPrefix string

	done chan struct{} // closed by the reader when it leaves
	err  error         // set before done is closed
}

// NewClient reads the greeting from conn and negotiates; ctx bounds both. It
// owns conn from now on, and closes it when it returns an error. A peer that
// refuses with a QMP error instead of a greeting makes it return that *Error.
//
// Events that come before Subscribe are lost: subscribe first, then query the
// state that the events would change.
func NewClient(ctx context.Context, conn net.Conn, opts *Options) (*Client, error) {
	c := &Client{
		conn:     conn,
		opts:     opts.withDefaults(),
		writing:  make(chan struct{}, 1),
		pending:  make(map[string]chan<- *message),
		idPrefix: rand.Text()[:5],
		done:     make(chan struct{}),
	}
	in := newFrames(conn, maxMessage)
	if err := c.greet(ctx, in); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("greeting: %w", err)
	}
	go c.read(in)
	if err := c.Execute(ctx, capabilities, nil, nil); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// Dial connects to the monitor that listens on the unix socket at path. QEMU
// serves one client for each monitor: a second one waits for its greeting
// until ctx ends.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	c, err := NewClient(ctx, conn, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func (c *Client) greet(ctx context.Context, in *frames) error {
	release := boundBy(ctx, c.conn.SetReadDeadline)
	defer release()
	line, err := in.next()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if unreadable(err) {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if err != nil {
		return closedError(err)
	}
	c.opts.Trace(false, line)
	m, err := decodeMessage(line)
	if err != nil {
		return err
	}
	if m.Error != nil {
		return m.Error
	}
	if m.Greeting == nil {
		return fmt.Errorf("%w: something else came first", ErrProtocol)
	}
	c.greeting = *m.Greeting
	return nil
}

// boundBy makes I/O fail from the end of ctx on, until release is called;
// then the deadline is lifted.
func boundBy(ctx context.Context, setDeadline func(time.Time) error) (release func()) {
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = setDeadline(time.Unix(1, 0))
		close(fired)
	})
	return func() {
		if !stop() {
			<-fired // or it would hit whoever comes next
		}
		_ = setDeadline(time.Time{})
	}
}

// read is the only reader of conn, and the last to leave.
func (c *Client) read(in *frames) {
	err := c.readAll(in)
	c.mu.Lock()
	if c.cause != nil {
		err = c.cause
	}
	c.mu.Unlock()
	_ = c.conn.Close()
	c.err = closedError(err)
	c.hub.close()
	close(c.done)
}

func (c *Client) readAll(in *frames) error {
	for {
		line, err := in.next()
		if unreadable(err) {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if err != nil {
			return err
		}
		c.opts.Trace(false, line)
		if err := c.deliver(line); err != nil {
			return err
		}
	}
}

func (c *Client) deliver(line []byte) error {
	m, err := decodeMessage(line)
	if err != nil {
		return err
	}
	switch {
	case m.Event == "":
		c.answer(m)
	case len(line) > maxEvent:
		c.hub.lost(m.Event)
	default:
		ev, err := decodeEvent(line)
		if err != nil {
			return err
		}
		c.hub.publish(ev)
	}
	return nil
}

// fail ends the connection; the first cause counts.
func (c *Client) fail(cause error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = cause
	}
	c.mu.Unlock()
	_ = c.conn.Close()
}

// Close ends the connection and returns when its reader has left; calls that
// wait for an answer return with ErrClosed. It may be called more than once.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	<-c.done
	return nil
}

// Done is closed when the connection has ended, for whatever reason, and
// nothing more will be delivered.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil while the connection lives. Then it wraps ErrClosed and the
// cause: io.EOF when the peer closed it, io.ErrUnexpectedEOF when that was
// amid a message, ErrProtocol when it sent what is none.
func (c *Client) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Version is that of the QEMU at the other end.
func (c *Client) Version() Version { return c.greeting.Version }

// Greeting is what the other end said first.
func (c *Client) Greeting() Greeting { return c.greeting }

// Subscribe returns a subscription to the events of the given names, or to
// all when there are none. A subscriber that does not keep up loses its
// oldest events and blocks nobody. Of an ended connection the subscription is
// closed already.
func (c *Client) Subscribe(names ...string) *Subscription {
	return c.hub.add(c.opts.EventQueue, names)
}
