package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Execute runs a command and waits for its answer. args is nil, or what
// encoding/json makes an object of; a json.RawMessage goes out as it is, but
// for white space. result is nil, or points to where the answer goes; a
// *json.RawMessage gets its bytes.
//
// The error is an *Error when the peer refused; wraps ErrClosed when the
// connection ended; and is that of ctx when ctx ended first. In that case the
// peer may still run the command, and its late answer is thrown away.
//
// When ctx ends while the command is half written, which takes a peer that
// has stopped reading, the connection is beyond repair and closed.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	return c.ExecuteFiles(ctx, command, args, result)
}

// ExecuteFiles is Execute with descriptors sent beside the command, for
// getfd and add-fd; the connection must be a unix socket. The files stay the
// caller's, and may be closed when it returns.
func (c *Client) ExecuteFiles(ctx context.Context, command string, args, result any, files ...*os.File) error {
	m, _, err := c.roundTrip(ctx, command, args, files)
	if err != nil {
		return err
	}
	if err := decodeResult(m.Return, result); err != nil {
		return fmt.Errorf("%s: result: %w", command, err)
	}
	return nil
}

// roundTrip returns the answer that is no error; sent reports whether the
// command went out whole.
func (c *Client) roundTrip(ctx context.Context, command string, args any, files []*os.File) (m *message, sent bool, err error) {
	id, reply := c.register()
	defer c.forget(id)
	line, err := encodeCommand(command, args, id)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", command, err)
	}
	if err := c.send(ctx, line, files); err != nil {
		return nil, false, fmt.Errorf("%s: %w", command, err)
	}
	m, err = c.wait(ctx, reply)
	if err != nil {
		return nil, true, fmt.Errorf("%s: %w", command, err)
	}
	if m.Error != nil {
		return nil, true, fmt.Errorf("%s: %w", command, m.Error)
	}
	return m, true, nil
}

func decodeResult(data json.RawMessage, result any) error {
	switch into := result.(type) {
	case nil:
		return nil
	case *json.RawMessage:
		*into = data
		return nil
	}
	if len(data) > maxResult {
		return fmt.Errorf("%w: %w: over %d bytes", ErrProtocol, errTooLarge, maxResult)
	}
	return json.Unmarshal(data, result)
}

// register hands out an id and the channel its answer will come by.
func (c *Client) register() (string, <-chan *message) {
	reply := make(chan *message, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextID++
	id := c.idPrefix + strconv.FormatUint(c.nextID, 10)
	c.pending[id] = reply
	return id, reply
}

func (c *Client) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// answer hands m to the call that waits for it. An id that nobody waits for
// belongs to a call whose context has ended, or to a former client.
func (c *Client) answer(m *message) {
	var id string
	if json.Unmarshal(m.ID, &id) != nil {
		return
	}
	c.mu.Lock()
	reply, ok := c.pending[id]
	delete(c.pending, id)
	c.mu.Unlock()
	if ok {
		reply <- m // has room: an id is answered once
	}
}

func (c *Client) wait(ctx context.Context, reply <-chan *message) (*message, error) {
	select {
	case m := <-reply:
		return m, nil
	case <-c.done:
	case <-ctx.Done():
	}
	// What came last may have been the answer.
	select {
	case m := <-reply:
		return m, nil
	default:
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	return nil, ctx.Err()
}

// send writes one command; whoever else writes waits, but not beyond its ctx.
func (c *Client) send(ctx context.Context, line []byte, files []*os.File) error {
	if err := ctx.Err(); err != nil {
		return ctx.Err()
	}
	select {
	case c.writing <- struct{}{}:
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.writing }()
	if err := c.Err(); err != nil {
		return err
	}
	n, err := c.write(ctx, line, files)
	if err == nil {
		c.opts.Trace(true, line[:len(line)-1])
		return nil
	}
	return c.unsent(ctx, n, err)
}

func (c *Client) write(ctx context.Context, line []byte, files []*os.File) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.WriteTimeout)
	defer cancel()
	release := boundBy(ctx, c.conn.SetWriteDeadline)
	defer release()
	if len(files) > 0 {
		return writeFiles(c.conn, line, files)
	}
	return c.conn.Write(line)
}

var errWriteTimeout = fmt.Errorf("the peer does not read: %w", context.DeadlineExceeded)

// unsent says what a failed write means.
func (c *Client) unsent(ctx context.Context, n int, err error) error {
	switch {
	case errors.Is(err, errFiles):
		return err
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return c.hungUp(ctx, err)
	}
	err = errWriteTimeout
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if n == 0 {
		return err // nothing is lost but this command
	}
	c.fail(fmt.Errorf("a command was cut short: %w", err))
	<-c.done
	return c.err
}

// hungUp waits for the reader to find out as well that the peer has closed
// its end: the last events may still be on their way to it.
func (c *Client) hungUp(ctx context.Context, err error) error {
	patience := time.NewTimer(time.Second)
	defer patience.Stop()
	select {
	case <-c.done:
	case <-patience.C:
	case <-ctx.Done():
	}
	c.fail(err)
	<-c.done
	return c.err
}
