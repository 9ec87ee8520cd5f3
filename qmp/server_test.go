package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serve runs a Server until the test ends and returns its socket's path.
func serve(t testing.TB, h Handler, opts *ServerOptions) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var v Version
	v.QEMU.Major = 7
	s := NewServer(v, h, opts)
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, path
}

// echo answers with what it was asked; "wait" waits for its client to go.
func echo(ctx context.Context, req Request) (any, error) {
	switch req.Command {
	case "wait":
		<-ctx.Done()
		return nil, ctx.Err()
	case "missing":
		return nil, fmt.Errorf("wrapped: %w", &Error{ClassDeviceNotFound, "no such device"})
	case "fail":
		return nil, errors.New("it fails")
	case "raw":
		return json.RawMessage(`{"a":  "<&>" }`), nil
	case "broken":
		return json.RawMessage(`{`), nil
	case "nothing":
		return nil, nil
	}
	return map[string]any{"command": req.Command, "arguments": req.Arguments, "pid": req.Peer.PID}, nil
}

// rawDial is a client of no particular manners.
func rawDial(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func dialPath(t testing.TB, path string) *Client {
	t.Helper()
	c, err := Dial(testContext(t), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestServerAnswers(t *testing.T) {
	_, path := serve(t, echo, nil)
	pid := os.Getpid()
	const greeting = `{"QMP": {"version":{"package":"","qemu":{"major":7,"micro":0,"minor":0}},"capabilities":[]}}`
	for _, tt := range []struct{ name, in, want string }{
		{"before negotiation", `{"execute":"x","id":1}`, `{"error": {"class":"CommandNotFound","desc":"Expecting capabilities negotiation with 'qmp_capabilities'"}, "id": 1}`},
		{"capability", `{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}`, `{"error": {"class":"GenericError","desc":"Capability 'oob' not available"}}`},
		{"argument", `{"execute":"qmp_capabilities","arguments":{"x":1}}`, `{"error": {"class":"GenericError","desc":"Parameter 'x' is unexpected"}}`},
		{"negotiation", `{"execute":"qmp_capabilities","arguments":{"enable":[]},"id":{"a": null}}`, `{"return": {}, "id": {"a":null}}`},
		{"again", `{"execute":"qmp_capabilities"}`, `{"error": {"class":"CommandNotFound","desc":"Capabilities negotiation is already complete, command ignored"}}`},
		{"echo", `{"execute":"x","arguments":{"y":[1]},"id":"s"}`, fmt.Sprintf(`{"return": {"arguments":{"y":[1]},"command":"x","pid":%d}, "id": "s"}`, pid)},
		{"class kept", `{"execute":"missing","id":2.50}`, `{"error": {"class":"DeviceNotFound","desc":"no such device"}, "id": 2.50}`},
		{"other error", `{"execute":"fail","id":[]}`, `{"error": {"class":"GenericError","desc":"it fails"}, "id": []}`},
		{"raw bytes", `{"execute":"raw"}`, `{"return": {"a":  "<&>" }}`},
		{"broken result", `{"execute":"broken"}`, `{"error": {"class":"GenericError","desc":"result is not JSON"}}`},
		{"no result", `{"execute":"nothing","id":true}`, `{"return": {}, "id": true}`},
		{"parse error", `{"execute":}`, `{"error": {"class":"GenericError","desc":"JSON parse error"}}`},
		{"lines", "{\n'execute'\n:\n'nothing'\n}", `{"return": {}}`},
	} {
		if !t.Run(tt.name, func(t *testing.T) {
			conn := rawDial(t, path)
			in := newFrames(conn, maxMessage)
			wants := []string{greeting}
			if !strings.Contains(greeting+tt.name, "negotiation") && tt.name != "capability" && tt.name != "argument" {
				_, _ = io.WriteString(conn, `{"execute":"qmp_capabilities"}`)
				wants = append(wants, `{"return": {}}`)
			}
			_, _ = io.WriteString(conn, tt.in)
			for _, want := range append(wants, tt.want) {
				got, err := in.next()
				if err != nil || string(got) != want {
					t.Fatalf("got %s, %v\nwant %s", got, err, want)
				}
			}
		}) {
			return
		}
	}
}

// TestServerHalfClose: a client that writes all it has to say, shuts that side
// down and reads, gets all its answers, in order, though more than the queue
// holds.
func TestServerHalfClose(t *testing.T) {
	_, path := serve(t, func(_ context.Context, req Request) (any, error) {
		return req.Arguments, nil
	}, &ServerOptions{MaxRequests: 2})
	conn := rawDial(t, path)
	const requests = 200
	_, _ = io.WriteString(conn, `{"execute":"qmp_capabilities"}`)
	for i := range requests {
		_, _ = fmt.Fprintf(conn, `{"execute":"x","arguments":{"n":%d}}`, i)
	}
	_ = conn.CloseWrite()
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(all)), "\r\n")
	want := make([]string, requests)
	for i := range want {
		want[i] = fmt.Sprintf(`{"return": {"n":%d}}`, i)
	}
	if diff := cmp.Diff(want, lines[2:]); diff != "" {
		t.Error(diff)
	}
}

func TestServerCancels(t *testing.T) {
	for _, tt := range []struct {
		name    string
		backlog int
	}{{"idle reader", 0}, {"full queue", 100}} {
		t.Run(tt.name, func(t *testing.T) {
			began, ended := make(chan struct{}, 1), make(chan struct{}, 200)
			_, path := serve(t, func(ctx context.Context, _ Request) (any, error) {
				began <- struct{}{}
				<-ctx.Done()
				ended <- struct{}{}
				return nil, ctx.Err()
			}, &ServerOptions{MaxRequests: 4})
			conn := rawDial(t, path)
			_, _ = io.WriteString(conn, `{"execute":"qmp_capabilities"}`+strings.Repeat(`{"execute":"wait"}`, 1+tt.backlog))
			<-began
			_ = conn.Close()
			<-ended
		})
	}
}

func TestServerBounds(t *testing.T) {
	_, path := serve(t, echo, &ServerOptions{MaxClients: 2, MaxBytes: 1000})
	first, second := dialPath(t, path), dialPath(t, path)
	var refused *Error
	if _, err := Dial(testContext(t), path); !errors.As(err, &refused) || refused.Class != ClassGeneric {
		t.Errorf("the third client: %v", err)
	}
	_ = second.Close()
	for { // the server learns of it a little later
		c, err := Dial(testContext(t), path)
		if err == nil {
			_ = c.Close()
			break
		}
		if !errors.As(err, &refused) {
			t.Fatal(err)
		}
	}
	big := map[string]string{"x": strings.Repeat("x", 1000)}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := first.Execute(ctx, "x", big, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a huge request: %v", err)
	}
}

// TestServerSlowClient: one that never reads is dropped in the end, and the
// others see every event until then.
func TestServerSlowClient(t *testing.T) {
	s, path := serve(t, echo, &ServerOptions{EventQueue: 1 << 14, WriteTimeout: 2 * time.Second})
	slow := rawDial(t, path)
	_, _ = io.WriteString(slow, `{"execute":"qmp_capabilities"}`)
	_, _ = newFrames(slow, maxMessage).next() // and no more
	quick := dialPath(t, path)
	quick.opts.EventQueue = 1 << 14
	sub := quick.Subscribe()
	if err := quick.Execute(testContext(t), "x", nil, nil); err != nil {
		t.Fatal(err) // by now it is negotiated
	}
	const events = 4000
	for i := range events {
		if err := s.Broadcast(Event{Event: "STOP", Data: map[string]any{"n": i, "pad": strings.Repeat("x", 1000)}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range events {
		if _, open := <-sub.Events(); !open {
			t.Fatalf("the quick client was dropped after %d events", i)
		}
	}
	for s.clients() > 1 {
		time.Sleep(10 * time.Millisecond)
	}
	if sub.Dropped() != 0 {
		t.Errorf("the quick client lost %d events", sub.Dropped())
	}
	if err := quick.Execute(testContext(t), "x", nil, nil); err != nil {
		t.Error(err)
	}
}

func (s *Server) clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// TestServerShutdown: what was received is answered, the last event arrives.
func TestServerShutdown(t *testing.T) {
	began, proceed := make(chan struct{}), make(chan struct{})
	s, path := serve(t, func(context.Context, Request) (any, error) {
		close(began)
		<-proceed
		return nil, nil
	}, nil)
	c, idle := dialPath(t, path), dialPath(t, path)
	sub := c.Subscribe()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Execute(testContext(t), "x", nil, nil); err != nil {
			t.Errorf("the request that ran: %v", err)
		}
	})
	<-began
	wg.Go(func() {
		if err := s.Shutdown(testContext(t)); err != nil {
			t.Error(err)
		}
	})
	<-idle.Done()
	if err := s.Broadcast(Event{Event: "SHUTDOWN"}); err != nil {
		t.Error(err)
	}
	close(proceed)
	wg.Wait()
	if ev := <-sub.Events(); ev.Event != "SHUTDOWN" {
		t.Errorf("got %+v", ev)
	}
	<-c.Done()
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("it still listens")
	}
}

func TestServerShutdownGivesUp(t *testing.T) {
	s, path := serve(t, echo, nil)
	c := dialPath(t, path)
	ended := make(chan error)
	go func() { ended <- c.Execute(testContext(t), "wait", nil, nil) }()
	time.Sleep(20 * time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("a request that nobody finished succeeded")
	}
}

func TestServeContext(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "control"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := NewServer(Version{}, echo, nil)
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	c := dialPath(t, l.Addr().String())
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	<-c.Done()
	_ = s.Close()
	again, err := net.Listen("unix", filepath.Join(t.TempDir(), "control"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(context.Background(), again); err != nil {
		t.Errorf("Serve of a closed server: %v", err)
	}
	if err := NewServer(Version{}, echo, nil).Close(); err != nil {
		t.Errorf("Close before Serve: %v", err)
	}
}
