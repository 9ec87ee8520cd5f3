package qmp

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// session is one client of a Server: a reader, an executor and a writer, each
// the only one to touch its direction. The executor ends when the reader has
// closed requests, the writer when the executor has closed replies.
type session struct {
	server *Server
	conn   net.Conn
	peer   Peer

	requests chan queued
	replies  chan []byte
	events   *queue[[]byte]

	negotiated bool // under server.mu: events are wanted
}

// queued is a request, or what is wrong with one.
type queued struct {
	incoming
	refused *Error
}

func newSession(s *Server, conn net.Conn) *session {
	return &session{
		server:   s,
		conn:     conn,
		peer:     PeerOf(conn),
		requests: make(chan queued, s.opts.MaxRequests),
		replies:  make(chan []byte),
		events:   newQueue[[]byte](s.opts.EventQueue),
	}
}

// drain stops the reader; what it has read is still answered.
func (ss *session) drain() {
	_ = ss.conn.SetReadDeadline(time.Unix(1, 0))
}

// run returns when the client has gone and all three have ended. It is the
// only one to close conn.
func (ss *session) run(ctx context.Context) {
	defer ss.server.left(ss)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		ss.readAll(ctx, cancel)
		close(ss.requests)
		ss.linger(ctx, cancel)
	})
	wg.Go(func() {
		ss.executeAll(ctx)
		close(ss.replies)
	})
	wg.Go(func() {
		err := ss.writeAll(ctx)
		if err != nil && ctx.Err() == nil && !hungUp(ss.conn) {
			ss.server.opts.Logger.Warn("dropped a client", "peer", ss.peer, "err", err)
		}
		cancel()
	})
	<-ctx.Done()
	_ = ss.conn.Close()
	wg.Wait()
}

// readAll queues requests until the client sends no more, or must not.
func (ss *session) readAll(ctx context.Context, cancel context.CancelFunc) {
	in := newFrames(ss.conn, ss.server.opts.MaxBytes)
	for {
		frame, err := in.next()
		var q queued
		switch {
		case err == nil:
			q.incoming, q.refused = decodeRequest(frame)
		case unreadable(err):
			q.refused = Errorf("%v", err)
		default:
			return
		}
		// Where the request ends that was too large, nobody knows.
		if !ss.enqueue(ctx, cancel, q) || errors.Is(err, errTooLarge) {
			return
		}
	}
}

// hangUpPoll is how often a reader that does not read looks after its client.
const hangUpPoll = 100 * time.Millisecond

// enqueue waits for room, as QEMU stops reading a client whose queue is full.
// A client that leaves meanwhile must still cancel its running request.
func (ss *session) enqueue(ctx context.Context, cancel context.CancelFunc, q queued) bool {
	select {
	case ss.requests <- q:
		return true
	default:
	}
	tick := time.NewTicker(hangUpPoll)
	defer tick.Stop()
	for {
		select {
		case ss.requests <- q:
			return true
		case <-ctx.Done():
			return false
		case <-tick.C:
			if hungUp(ss.conn) {
				cancel()
			}
		}
	}
}

// linger watches a client that sends no more. It may still want answers:
// `printf … | nc -N -U control.sock` shuts down its writing side and reads on.
func (ss *session) linger(ctx context.Context, cancel context.CancelFunc) {
	tick := time.NewTicker(hangUpPoll)
	defer tick.Stop()
	for !hungUp(ss.conn) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	cancel()
}

// executeAll answers requests in the order they came.
func (ss *session) executeAll(ctx context.Context) {
	ready := false
	for q := range ss.requests {
		if ctx.Err() != nil {
			continue // empty the queue, so that the reader can end
		}
		var line []byte
		negotiates := false
		switch {
		case q.refused != nil:
			line = encodeError(q.refused, q.id)
		case !ready:
			line, negotiates = negotiate(q.incoming)
		default:
			line = ss.execute(ctx, q.incoming)
		}
		select {
		case ss.replies <- line:
		case <-ctx.Done():
			continue
		}
		if negotiates {
			ready = true
			ss.wantEvents() // now, so that they come after the answer
		}
	}
}

func (ss *session) wantEvents() {
	ss.server.mu.Lock()
	defer ss.server.mu.Unlock()
	ss.negotiated = true
}

func (ss *session) execute(ctx context.Context, in incoming) []byte {
	if in.command == capabilities {
		return encodeError(&Error{ClassCommandNotFound,
			"Capabilities negotiation is already complete, command ignored"}, in.id)
	}
	req := Request{Command: in.command, Arguments: in.arguments, Peer: ss.peer}
	result, err := ss.server.handler(ctx, req)
	if err == nil {
		var line []byte
		if line, err = encodeReply(result, in.id); err == nil {
			return line
		}
	}
	return encodeError(asError(err), in.id)
}

func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return Errorf("%v", err)
}

// writeAll greets, and ends when all requests are answered; events that wait
// by then still go out.
func (ss *session) writeAll(ctx context.Context) error {
	greeting, err := encodeGreeting(ss.server.version)
	if err != nil {
		return err
	}
	if err := ss.write(greeting); err != nil {
		return err
	}
	for {
		select {
		case line, ok := <-ss.replies:
			if !ok {
				return ss.writeEvents()
			}
			err = ss.write(line)
		case line := <-ss.events.ch:
			err = ss.write(line)
		case <-ctx.Done():
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// writeEvents writes what is queued, and not what comes meanwhile.
func (ss *session) writeEvents() error {
	for range len(ss.events.ch) {
		select {
		case line := <-ss.events.ch:
			if err := ss.write(line); err != nil {
				return err
			}
		default: // dropped meanwhile
			return nil
		}
	}
	return nil
}

func (ss *session) write(line []byte) error {
	if err := ss.conn.SetWriteDeadline(time.Now().Add(ss.server.opts.WriteTimeout)); err != nil {
		return err
	}
	_, err := ss.conn.Write(line)
	return err
}
