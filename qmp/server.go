package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Request is one command of a client that has negotiated.
type Request struct {
	Command   string
	Arguments json.RawMessage // an object, or nil
	Peer      Peer
}

// Handler runs one request. ctx ends when the client disconnects or the
// server closes. Requests of one client come one after the other, those of
// different clients at the same time.
//
// A json.RawMessage as the result goes out as it is, nil is the empty object,
// and all else is for encoding/json. An error that wraps an *Error keeps its
// class and description; any other becomes a GenericError.
type Handler func(ctx context.Context, req Request) (result any, err error)

// ServerOptions are what a Server can do without; the zero value works.
type ServerOptions struct {
	Admit        func(Peer) error // who may be a client; others are told the error; everybody when nil
	MaxClients   int              // at the same time, half of them for others than the owner of the server; 128 when 0
	MaxRequests  int              // queued for one client; 8 when 0, as in QEMU (include/monitor/monitor.h)
	MaxBytes     int              // of one request; 256 KiB when 0
	EventQueue   int              // events held for one client; 256 when 0
	WriteTimeout time.Duration    // for a client to take a message; 10 s when 0
	Logger       *slog.Logger     // nothing is logged when nil
}

func (o *ServerOptions) withDefaults() ServerOptions {
	var opts ServerOptions
	if o != nil {
		opts = *o
	}
	for _, d := range []struct {
		value *int
		def   int
	}{
		{&opts.MaxClients, 128},
		{&opts.MaxRequests, 8},
		{&opts.MaxBytes, maxRequest},
		{&opts.EventQueue, 256},
	} {
		if *d.value <= 0 {
			*d.value = d.def
		}
	}
	if opts.WriteTimeout <= 0 {
		opts.WriteTimeout = 10 * time.Second
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return opts
}

// Server speaks QMP to many clients, as QEMU does to one.
type Server struct {
	version Version
	handler Handler
	opts    ServerOptions

	mu       sync.Mutex
	sessions map[*session]struct{}
	running  sync.WaitGroup // sessions
	closed   bool
	listener net.Listener       // of Serve
	cancel   context.CancelFunc // ends Serve and its sessions
	served   chan struct{}      // closed when Serve returns
}

// NewServer returns a server that greets with version, that of the QEMU
// behind it.
func NewServer(version Version, handler Handler, opts *ServerOptions) *Server {
	return &Server{
		version:  version,
		handler:  handler,
		opts:     opts.withDefaults(),
		sessions: make(map[*session]struct{}),
		served:   make(chan struct{}),
	}
}

// Serve accepts clients from l, which it owns from now on, until ctx ends or
// the server is closed; that is a clean end, nil. When it returns, no
// goroutine of the server is left. It may be called once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !s.begin(l, cancel) {
		_ = l.Close()
		return nil
	}
	defer close(s.served)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	err := s.acceptAll(ctx, l)
	_ = l.Close()
	if err != nil {
		cancel()
	}
	s.running.Wait()
	return err
}

func (s *Server) begin(l net.Listener, cancel context.CancelFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.cancel != nil {
		return false
	}
	s.listener, s.cancel = l, cancel
	return true
}

// acceptAll does not give up for want of descriptors or memory: the control
// socket of a guest must be there again when the host has recovered.
func (s *Server) acceptAll(ctx context.Context, l net.Listener) error {
	const least, most = 5 * time.Millisecond, time.Second
	wait := least
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			wait = least
			s.admit(ctx, conn)
			continue
		case ctx.Err() != nil || s.isClosed():
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		}
		s.opts.Logger.Warn("cannot accept a client", "err", err, "retry", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, most)
	}
}

// admit starts a session, or says why not.
func (s *Server) admit(ctx context.Context, conn net.Conn) {
	sess := newSession(s, conn)
	err := s.enter(sess)
	if err == nil {
		go sess.run(ctx)
		return
	}
	if !s.isClosed() {
		// A new socket has room for one line; the deadline is for others.
		_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = conn.Write(encodeError(asError(err), nil))
		s.opts.Logger.Warn("refused a client", "err", err, "peer", sess.peer)
	}
	_ = conn.Close()
}

// enter counts a client in, or says why not.
func (s *Server) enter(sess *session) error {
	if s.opts.Admit != nil {
		if err := s.opts.Admit(sess.peer); err != nil {
			return err
		}
	}
	room := s.opts.MaxClients
	if !sess.peer.Owns() {
		room /= 2 // they leave the owner some
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if len(s.sessions) >= room {
		return Errorf("too many clients: the limit is %d", room)
	}
	s.sessions[sess] = struct{}{}
	s.running.Add(1)
	return nil
}

func (s *Server) left(sess *session) {
	s.mu.Lock()
	delete(s.sessions, sess)
	s.mu.Unlock()
	s.running.Done()
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Broadcast queues ev for every client that has negotiated, and never blocks.
// A client that does not keep up loses its oldest events.
func (s *Server) Broadcast(ev Event) error {
	line, err := encodeEvent(ev)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for sess := range s.sessions {
		if sess.negotiated {
			sess.events.push(line)
		}
	}
	return nil
}

// Close ends the server at once: handlers are cancelled, connections closed.
// It returns when Serve has nothing left to wait for but its caller.
func (s *Server) Close() error {
	if cancel := s.stop(func(*session) {}); cancel != nil {
		cancel()
		<-s.served
	}
	return nil
}

// Shutdown ends the server with grace: no more clients, no more requests, but
// those already received are answered and queued events delivered. When ctx
// ends first it goes on as Close, and returns the error of ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	if s.stop((*session).drain) == nil {
		return nil
	}
	select {
	case <-s.served:
		return nil
	case <-ctx.Done():
		_ = s.Close()
		return ctx.Err()
	}
}

// stop closes the listener and calls each for every session. It returns what
// cancels Serve, nil when that was never called.
func (s *Server) stop(each func(*session)) context.CancelFunc {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.listener != nil {
		_ = s.listener.Close()
	}
	for sess := range s.sessions {
		each(sess)
	}
	return s.cancel
}
