package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTypedCommands(t *testing.T) {
	c, ctx := startQEMU(t).dial(t), testContext(t)
	sub := c.Subscribe("RESUME", "STOP")
	if s, err := c.QueryStatus(ctx); err != nil || s.Running || s.Status != "prelaunch" {
		t.Errorf("query-status: %+v, %v", s, err)
	}
	if id, err := c.QueryUUID(ctx); err != nil || len(id) != 36 {
		t.Errorf("query-uuid: %q, %v", id, err)
	}
	if name, err := c.QueryName(ctx); err != nil || name != "lab" {
		t.Errorf("query-name: %q, %v", name, err)
	}
	if v, err := c.QueryVersion(ctx); err != nil || v != c.Version() || v.QEMU.Major == 0 {
		t.Errorf("query-version: %v, greeting %v, %v", v, c.Version(), err)
	}
	if names, err := c.QueryCommands(ctx); err != nil || len(names) < 100 {
		t.Errorf("query-commands: %d, %v", len(names), err)
	}
	if err := errors.Join(c.Cont(ctx), c.SystemReset(ctx), c.SystemPowerdown(ctx), c.Stop(ctx)); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"RESUME", "STOP"} {
		if ev := <-sub.Events(); ev.Event != want || ev.Timestamp.Seconds == 0 {
			t.Errorf("got %+v, want %s", ev, want)
		}
	}
	var refused *Error
	if err := c.SystemWakeup(ctx); !errors.As(err, &refused) || refused.Class != ClassGeneric {
		t.Errorf("system_wakeup: %v", err)
	}
	if err := c.Execute(ctx, "nope", nil, nil); !errors.Is(err, ErrCommandNotFound) {
		t.Errorf("nope: %v", err)
	}
	out, err := c.Run([]byte(`{"execute": "query-name", "id": [1]}`))
	if err != nil || string(out) != "{\"return\": {\"name\": \"lab\"}, \"id\": [1]}\r\n" {
		t.Errorf("Run: %s, %v", out, err)
	}
	if err := c.Quit(ctx); err != nil {
		t.Errorf("quit: %v", err)
	}
	<-c.Done()
}

// stress runs commands whose answers can be told apart on every client, while
// the guest is stopped and continued without a pause. ctl is best on another
// monitor: QEMU takes one command from each in turn, and events go to all.
func stress(t *testing.T, ctl *Client, clients []*Client, routines, commands int) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	defer cancel()
	flood, end := context.WithCancel(ctx)
	var flooding, wg sync.WaitGroup
	flooding.Go(func() {
		for flood.Err() == nil {
			if err := errors.Join(ctl.Cont(ctx), ctl.Stop(ctx)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range routines {
		c := clients[i%len(clients)]
		wg.Go(func() {
			for k := range commands {
				if err := ask(ctx, c, i, k); err != nil {
					t.Errorf("%d/%d: %v", i, k, err)
					return
				}
			}
		})
	}
	wg.Wait()
	end()
	flooding.Wait()
}

// ask runs one command and checks that the answer is its own.
func ask(ctx context.Context, c *Client, i, k int) error {
	switch k % 25 {
	case 0:
		var schema []struct{ Name string }
		err := c.Execute(ctx, "query-qmp-schema", nil, &schema)
		if err != nil || len(schema) < 500 {
			return fmt.Errorf("schema of %d, %w", len(schema), err)
		}
		return nil
	case 1, 7:
		name, err := c.QueryName(ctx)
		if err != nil || name != "lab" {
			return fmt.Errorf("name %q, %w", name, err)
		}
		return nil
	case 2, 8:
		s, err := c.QueryStatus(ctx)
		if err != nil || s.Status == "" || s.Running != (s.Status == "running") {
			return fmt.Errorf("status %+v, %w", s, err)
		}
		return nil
	}
	command, want := fmt.Sprintf("no-%d-%d", i, k), new(Error)
	err := c.Execute(ctx, command, nil, nil)
	if !errors.As(err, &want) || want.Desc != fmt.Sprintf("The command %s has not been found", command) {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

func TestManyCallersUnderEventFlood(t *testing.T) {
	q := startQEMU(t)
	c, ctl := q.dial(t), dialPath(t, q.second)
	dead, live := c.Subscribe(), c.Subscribe("STOP")
	seen := make(chan int)
	go func() {
		n := 0
		for range live.Events() {
			n++
		}
		seen <- n
	}()
	stress(t, ctl, []*Client{c}, 64, 100)
	_ = c.Close()
	n := <-seen
	t.Logf("%d STOP events, %d dropped for who never reads", n, dead.Dropped())
	if n < 256 || dead.Dropped() == 0 {
		t.Error("that was no flood")
	}
	if len(c.pending) != 0 {
		t.Errorf("%d ids are still known", len(c.pending))
	}
}

func TestManyClientsThroughServer(t *testing.T) {
	q := startQEMU(t)
	monitor, ctl := q.dial(t), dialPath(t, q.second)
	server, path := serve(t, Forward(monitor), nil)
	sub := monitor.Subscribe()
	var relay sync.WaitGroup
	relay.Go(func() {
		for ev := range sub.Events() {
			if err := server.Broadcast(ev); err != nil {
				t.Error(err)
			}
		}
	})
	clients := make([]*Client, 16)
	for i := range clients {
		clients[i] = dialPath(t, path)
	}
	events := clients[0].Subscribe("STOP")
	stress(t, ctl, clients, 64, 50)
	select {
	case ev := <-events.Events():
		if ev.Event != "STOP" {
			t.Errorf("got %+v", ev)
		}
	case <-time.After(patience):
		t.Error("no event came through")
	}
	_ = monitor.Close()
	relay.Wait()
	if err := clients[0].Stop(testContext(t)); err == nil || errors.Is(err, ErrClosed) {
		t.Errorf("the monitor is gone, the server is not: %v", err)
	}
}

// TestForwardKeepsBytes: QEMU's answer reaches the client untouched.
func TestForwardKeepsBytes(t *testing.T) {
	monitor := startQEMU(t).dial(t)
	_, path := serve(t, Forward(monitor), nil)
	c := dialPath(t, path)
	var direct, through json.RawMessage
	for _, ask := range []struct {
		c  *Client
		to *json.RawMessage
	}{{monitor, &direct}, {c, &through}} {
		if err := ask.c.Execute(testContext(t), "query-qmp-schema", nil, ask.to); err != nil {
			t.Fatal(err)
		}
	}
	if string(direct) != string(through) || len(direct) < 100_000 {
		t.Errorf("%d bytes became %d", len(direct), len(through))
	}
	bad := json.RawMessage(`{"nope": 1}`)
	e1, e2 := new(Error), new(Error)
	if !errors.As(monitor.Execute(testContext(t), "getfd", bad, nil), &e1) ||
		!errors.As(c.Execute(testContext(t), "getfd", bad, nil), &e2) {
		t.Fatal("a bad argument was taken")
	}
	if diff := cmp.Diff(e1, e2); diff != "" {
		t.Error(diff)
	}
}

func TestFrozenQEMU(t *testing.T) {
	q := startQEMU(t)
	c := q.dial(t)
	if err := q.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// More than the socket's buffer holds, so that writes block as well.
	var wg sync.WaitGroup
	for range 2000 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			if err := c.Execute(ctx, "query-status", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
	wg.Wait()
	if err := q.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// The late answers are nobody's, the connection is as good as before.
	if name, err := c.QueryName(testContext(t)); err != nil || name != "lab" {
		t.Errorf("thawed: %q, %v", name, err)
	}
}

func TestKilledQEMU(t *testing.T) {
	q := startQEMU(t)
	c := q.dial(t)
	if err := q.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	for range 32 {
		go func() { errs <- c.Execute(testContext(t), "query-status", nil, nil) }()
	}
	for len(c.writing) != 0 || c.waiting() != 32 {
		time.Sleep(time.Millisecond)
	}
	if err := q.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 32 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
}

func (c *Client) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pending)
}

// TestGetfd passes descriptors from many goroutines at once; QEMU must match
// each to its command.
func TestGetfd(t *testing.T) {
	c := startQEMU(t).dial(t)
	type named struct {
		Name string `json:"fdname"`
	}
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			r, w, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			name := named{fmt.Sprint("pipe", i)}
			err = c.ExecuteFiles(testContext(t), "getfd", name, nil, w)
			_ = w.Close()
			if err != nil {
				t.Error(err)
				return
			}
			// QEMU has the last writing end now: closing it there ends ours.
			if err := c.Execute(testContext(t), "closefd", name, nil); err != nil {
				t.Error(err)
			}
			_ = r.SetReadDeadline(time.Now().Add(patience))
			if _, err := r.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("read %v: the descriptor was not ours", err)
			}
		})
	}
	wg.Wait()
	var refused *Error
	if err := c.Execute(testContext(t), "getfd", named{"none"}, nil); !errors.As(err, &refused) {
		t.Errorf("without a descriptor: %v", err)
	}
}

// TestReconnect: a monitor whose former client left unread events and a
// running command behind greets the next one cleanly.
func TestReconnect(t *testing.T) {
	q := startQEMU(t)
	for range 3 {
		conn, err := net.Dial("unix", q.path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, `{"execute":"qmp_capabilities"}`)
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		for range 20 { // 4 MB of answers that nobody reads
			_, _ = io.WriteString(conn, `{"execute":"query-qmp-schema","id":1}`)
		}
		time.Sleep(50 * time.Millisecond)
		_ = conn.Close()
		c := q.dial(t)
		if name, err := c.QueryName(testContext(t)); err != nil || name != "lab" {
			t.Errorf("%q, %v", name, err)
		}
		_ = c.Close()
	}
}

// TestLikeQEMU: the Server's framing and refusals are QEMU's.
func TestLikeQEMU(t *testing.T) {
	monitor := startQEMU(t)
	other := startQEMU(t).dial(t)
	_, path := serve(t, Forward(other), nil)
	for _, in := range []string{
		"foo\n", "{]\n", `{"execute": }`, `"str"`, `[1,2]`, "12\n", `{}`, `{"id":3}`, `{"execute":1,"id":4}`,
		`{"execute":"query-name","arguments":[]}`, `{"execute":"query-name","foo":1,"id":2}`,
		`{"exec-oob":"query-name","id":9}`, `{'execute':'query-name','id':'a"b'}`,
		`{"execute":"query-name","execute":"stop","id":1}`, `{"execute":"query-name","id":"\ud800"}`,
		`{"execute":"query-name","id":"\ufffe"}`, "{\"execute\":\"query-name\",\"id\":\"\xef\xbf\xbe\"}",
		`{"execute":"query-name","id":"\u0000"}`, "@\n", "\xff", "{\"execute\":\"query-name\"\xff{\"execute\":\"query-name\",\"id\":5}",
		"\xff\n{\"execute\":\"query-name\",\"id\":6}", "\x01\n", ",\n", "{\"execute\":\"query-name\",\"id\":\"a\nb\"}\n",
		`{"execute":"query-name","id":null}`, `{"execute":"no","id":7}`,
		`{"execute":"query-name","arguments":null}`, `{"execute":"query-name","arguments":{"a":1},"id":1}{"execute":"query-name","id":2}`,
		`{"execute":"qmp_capabilities","id":1}`, `{"execute":"query-name","id":"\x"}`, "[[[[\n]]]]",
		`{"execute":"query-name","arguments":{"a":1,"a":1}}`,
	} {
		want, got := outcomes(t, monitor.path, in), outcomes(t, path, in)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: (-QEMU +Server)\n%s", in, diff)
		}
	}
}

// outcomes sends in and returns class and id of every answer.
func outcomes(t *testing.T, path, in string) []string {
	t.Helper()
	conn := rawDial(t, path)
	defer conn.Close()
	_, _ = io.WriteString(conn, `{"execute":"qmp_capabilities"}`+in+"\n"+`{"execute":"query-name","id":"end"}`)
	answers := newFrames(conn, maxMessage)
	var list []string
	for {
		line, err := answers.next()
		if err != nil {
			t.Fatalf("%q: %v after %q", in, err, list)
		}
		m, err := decodeMessage(line)
		if err != nil {
			t.Fatal(err)
		}
		if string(m.ID) == `"end"` {
			return list[2:] // without greeting and negotiation
		}
		class := "return"
		if m.Error != nil {
			class = m.Error.Class
		}
		list = append(list, class+" "+string(m.ID))
	}
}

func BenchmarkExecute(b *testing.B) {
	c := startQEMU(b).dial(b)
	ctx := context.Background()
	for b.Loop() {
		if err := c.Execute(ctx, "query-name", nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExecuteThroughServer(b *testing.B) {
	_, path := serve(b, Forward(startQEMU(b).dial(b)), nil)
	c := dialPath(b, path)
	ctx := context.Background()
	for b.Loop() {
		if err := c.Execute(ctx, "query-name", nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}
