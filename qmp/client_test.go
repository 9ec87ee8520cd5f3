package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	hello    = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}` + "\r\n"
	flooding = `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}` + "\r\n"
)

// fakePeer is no QEMU: it says what a test makes it say.
type fakePeer struct {
	t    *testing.T
	conn *net.UnixConn
	in   *frames
}

// newFake returns a client that has negotiated with a fake peer.
func newFake(t *testing.T, opts *Options) (*Client, *fakePeer) {
	t.Helper()
	near, far := socketPair(t)
	p := &fakePeer{t, far, newFrames(far, maxMessage)}
	var wg sync.WaitGroup
	wg.Go(func() {
		p.say(hello)
		p.say(`{"return": {}, "id": %s}`, p.hear())
	})
	c, err := NewClient(testContext(t), near, opts)
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, p
}

func (p *fakePeer) say(format string, args ...any) {
	if _, err := fmt.Fprintf(p.conn, format, args...); err != nil {
		p.t.Errorf("the fake peer cannot write: %v", err)
	}
}

// hear returns the id of the next command, as JSON.
func (p *fakePeer) hear() json.RawMessage {
	frame, err := p.in.next()
	if err != nil {
		p.t.Errorf("the fake peer cannot read: %v", err)
		return nil
	}
	in, refused := decodeRequest(frame)
	if refused != nil {
		p.t.Errorf("the client wrote %s: %v", frame, refused)
	}
	return in.id
}

func TestGreeting(t *testing.T) {
	for _, tt := range []struct {
		name, says string
		want       error
	}{
		{"garbage", "SSH-2.0-OpenSSH\r\n", ErrProtocol},
		{"binary", "\x00\x01\x02", ErrProtocol},
		{"no greeting", `{"return": {}}`, ErrProtocol},
		{"nothing, and ends", "", ErrClosed},
		{"half a greeting, and ends", hello[:20], io.ErrUnexpectedEOF},
		{"a refusal", `{"error": {"class": "GenericError", "desc": "too many clients"}}`, &Error{Class: ClassGeneric}},
		{"greets, and ends", hello, ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			near, far := socketPair(t)
			_, _ = io.WriteString(far, tt.says)
			_ = far.CloseWrite()
			if _, err := NewClient(testContext(t), near, nil); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestNeverGreets(t *testing.T) {
	near, _ := socketPair(t)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := NewClient(ctx, near, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is still open: %v", err)
	}
}

func TestDiesMidLine(t *testing.T) {
	c, peer := newFake(t, nil)
	const calls = 8
	errs := make(chan error)
	for range calls {
		go func() { errs <- c.Execute(testContext(t), "query-name", nil, nil) }()
	}
	for range calls {
		peer.hear()
	}
	peer.say(`{"return": {"name": "la`)
	_ = peer.conn.Close()
	for range calls {
		if err := <-errs; !errors.Is(err, ErrClosed) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
	}
	<-c.Done()
	if err := c.Execute(testContext(t), "query-name", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestProtocolViolations(t *testing.T) {
	for _, tt := range []struct{ name, says string }{
		{"text", "Segmentation fault\n"},
		{"control character", "\x07"},
		{"too deep", strings.Repeat("[", maxDepth+1)},
		{"wrong type", `{"event": 1}`},
		{"bad event", `{"event": "X", "data": []}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, peer := newFake(t, nil)
			peer.say("%s", tt.says)
			<-c.Done()
			if err := c.Err(); !errors.Is(err, ErrProtocol) || !errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestHugeLine(t *testing.T) {
	c, peer := newFake(t, nil)
	chunk := []byte(`{"return": "` + strings.Repeat("x", 1<<20))
	for err := error(nil); err == nil; chunk = chunk[12:] {
		_, err = peer.conn.Write(chunk)
		chunk = append([]byte("xxxxxxxxxxxx"), chunk...)
	}
	<-c.Done()
	if err := c.Err(); !errors.Is(err, ErrProtocol) || !errors.Is(err, errTooLarge) {
		t.Errorf("got %v", err)
	}
}

// TestStrayReplies: ids of nobody, ids used twice, late answers.
func TestStrayReplies(t *testing.T) {
	c, peer := newFake(t, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	given := make(chan error)
	go func() { given <- c.Execute(ctx, "late", nil, nil) }()
	late := peer.hear()
	cancel()
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	for i := range 3 {
		var got string
		done := make(chan error)
		go func() { done <- c.Execute(testContext(t), "now", nil, &got) }()
		id := peer.hear()
		peer.say(`{"return": "late", "id": %s}`, late)
		peer.say(`{"return": "unknown", "id": "nobody"} {"return": "number", "id": 1} {"return": "no id"}`)
		peer.say(`{"return": "right %d", "id": %s} {"return": "twice", "id": %s}`, i, id, id)
		if err := <-done; err != nil || got != fmt.Sprint("right ", i) {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if n := c.waiting(); n != 0 {
		t.Errorf("%d ids are still known", n)
	}
}

// TestAnswersOutOfOrder: only ids match.
func TestAnswersOutOfOrder(t *testing.T) {
	c, peer := newFake(t, nil)
	const calls = 16
	var wg sync.WaitGroup
	ids := make([]json.RawMessage, calls)
	for i := range calls {
		wg.Go(func() {
			var got int
			if err := c.Execute(testContext(t), "count", nil, &got); err != nil || got != i {
				t.Errorf("call %d got %d, %v", i, got, err)
			}
		})
		ids[i] = peer.hear()
	}
	for i := calls - 1; i >= 0; i-- {
		peer.say(`{"id": %s, "return": %d}`, ids[i], i)
	}
	wg.Wait()
}

func TestRepliesOwnTheirBytes(t *testing.T) {
	c, peer := newFake(t, nil)
	var first json.RawMessage
	var wg sync.WaitGroup
	wg.Go(func() {
		peer.say(`{"return": {"a": "first"}, "id": %s}`, peer.hear())
	})
	if err := c.Execute(testContext(t), "x", nil, &first); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		id := peer.hear()
		peer.say("%s", strings.Repeat(flooding, 1000))
		peer.say(`{"return": {}, "id": %s}`, id)
	})
	if err := c.Execute(testContext(t), "x", nil, nil); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if string(first) != `{"a": "first"}` {
		t.Errorf("the first reply is now %s", first)
	}
}

// TestEventFlood: a subscriber who never reads loses events, and nobody else
// does.
func TestEventFlood(t *testing.T) {
	c, peer := newFake(t, &Options{EventQueue: 16})
	dead, others := c.Subscribe(), c.Subscribe("SHUTDOWN")
	live := c.Subscribe("RESUME")
	seen := make(chan int)
	go func() {
		n := 0
		for range live.Events() {
			n++
		}
		seen <- n
	}()
	const events = 10000
	for range events / 100 {
		peer.say("%s", strings.Repeat(flooding, 100))
	}
	peer.say(`{"event": "RESUME", "timestamp": {"seconds": -1, "microseconds": -1}}`)
	peer.say(`{"event": "STOP", "data": {"x": "%s"}}`, strings.Repeat("x", maxEvent))
	_ = peer.conn.Close()
	<-c.Done()
	if n := <-seen; n != 1 || live.Dropped() != 0 {
		t.Errorf("saw %d RESUME, dropped %d", n, live.Dropped())
	}
	if got := dead.Dropped(); got != events+1-16+1 {
		t.Errorf("dropped %d", got)
	}
	last := ""
	for ev := range dead.Events() {
		last = ev.Event
	}
	if last != "RESUME" {
		t.Errorf("the newest that is kept is %q", last)
	}
	if others.Dropped() != 0 {
		t.Errorf("dropped %d events nobody asked for", others.Dropped())
	}
	if _, open := <-c.Subscribe().Events(); open {
		t.Error("a subscription to an ended connection is open")
	}
}

func TestSubscriptionClose(t *testing.T) {
	c, peer := newFake(t, nil)
	var wg sync.WaitGroup
	wg.Go(func() { peer.say("%s", strings.Repeat(flooding, 2000)) })
	for range 50 {
		wg.Go(func() {
			s := c.Subscribe()
			select {
			case <-s.Events():
			case <-time.After(time.Millisecond):
			}
			s.Close()
			s.Close()
			for range s.Events() {
			}
		})
	}
	wg.Wait()
	if n := len(c.hub.subs); n != 0 {
		t.Errorf("%d subscriptions left", n)
	}
}

// TestPeerStopsReading: calls return within their contexts, the half-written
// command ends the connection.
func TestPeerStopsReading(t *testing.T) {
	c, _ := newFake(t, nil)
	big := map[string]string{"x": strings.Repeat("x", 1<<20)}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			err := c.Execute(ctx, "ringbuf-write", big, nil)
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
		})
	}
	wg.Wait()
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("got %v", err)
	}
}

// TestWriteTimeout: a context without an end does not mean for ever.
func TestWriteTimeout(t *testing.T) {
	c, _ := newFake(t, &Options{WriteTimeout: 50 * time.Millisecond})
	big := map[string]string{"x": strings.Repeat("x", 1<<20)}
	if err := c.Execute(context.Background(), "ringbuf-write", big, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// TestCloseWhileWriting: Close ends even a write that nobody reads.
func TestCloseWhileWriting(t *testing.T) {
	c, _ := newFake(t, &Options{WriteTimeout: patience})
	big := map[string]string{"x": strings.Repeat("x", 1<<20)}
	errs := make(chan error)
	for range 2 {
		go func() { errs <- c.Execute(context.Background(), "ringbuf-write", big, nil) }()
	}
	time.Sleep(20 * time.Millisecond)
	_ = c.Close()
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	if c.Err() != ErrClosed {
		t.Errorf("Err is %v", c.Err())
	}
}

func TestQuit(t *testing.T) {
	for _, tt := range []struct {
		name string
		then func(c *Client, p *fakePeer, id json.RawMessage)
		want error
	}{
		{"answers", func(_ *Client, p *fakePeer, id json.RawMessage) { p.say(`{"return": {}, "id": %s}`, id) }, nil},
		{"event and end", func(_ *Client, p *fakePeer, _ json.RawMessage) { p.say(flooding); _ = p.conn.Close() }, nil},
		{"end amid the answer", func(_ *Client, p *fakePeer, _ json.RawMessage) { p.say(`{"ret`); _ = p.conn.Close() }, nil},
		{"refusal", func(_ *Client, p *fakePeer, id json.RawMessage) {
			p.say(`{"error": {"class": "CommandNotFound", "desc": "no"}, "id": %s}`, id)
		}, ErrCommandNotFound},
		{"our own end", func(c *Client, _ *fakePeer, _ json.RawMessage) { _ = c.Close() }, ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, peer := newFake(t, nil)
			err := make(chan error)
			go func() { err <- c.Quit(testContext(t)) }()
			tt.then(c, peer, peer.hear())
			if got := <-err; !errors.Is(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	c, peer := newFake(t, nil)
	_ = peer.conn.Close()
	<-c.Done()
	if err := c.Quit(testContext(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("of an ended connection: %v", err)
	}
}

// TestLastWords: what the peer said before it closed is delivered, even when
// our write notices the end first.
func TestLastWords(t *testing.T) {
	c, peer := newFake(t, nil)
	sub := c.Subscribe()
	peer.say("%s", strings.Repeat(flooding, 200))
	_ = peer.conn.Close()
	_ = c.Execute(testContext(t), "query-status", nil, nil)
	n := 0
	for range sub.Events() {
		n++
	}
	if n != 200 {
		t.Errorf("%d of 200 events", n)
	}
}

func TestFilesRefused(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	go func() {
		in := newFrames(far, maxMessage)
		_, _ = io.WriteString(far, hello)
		frame, _ := in.next()
		req, _ := decodeRequest(frame)
		_, _ = fmt.Fprintf(far, `{"return": {}, "id": %s}`, req.id)
	}()
	c, err := NewClient(testContext(t), near, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.ExecuteFiles(testContext(t), "getfd", nil, nil, os.Stdin); !errors.Is(err, errFiles) {
		t.Errorf("over a pipe: %v", err)
	}
	uc, _ := newFake(t, nil)
	closed, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	if err := uc.ExecuteFiles(testContext(t), "getfd", nil, nil, closed); !errors.Is(err, errFiles) {
		t.Errorf("a closed file: %v", err)
	}
	if err := uc.ExecuteFiles(testContext(t), "add-fd", nil, nil, make([]*os.File, 17)...); !errors.Is(err, errFiles) {
		t.Errorf("17 files: %v", err)
	}
	if uc.Err() != nil {
		t.Errorf("the connection did not survive: %v", uc.Err())
	}
}

func TestErrorText(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&Error{ClassGeneric, "no"}, "no"},
		{&Error{ClassDeviceNotFound, "no"}, "DeviceNotFound: no"},
		{closedError(io.EOF), "monitor connection closed: EOF"},
		{closedError(nil), "monitor connection closed"},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	if errors.Is(&Error{ClassGeneric, "x"}, ErrCommandNotFound) {
		t.Error("classes are mixed up")
	}
}
