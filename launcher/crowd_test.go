package launcher

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/qmp"
)

// crowd connects clients to a guest's control socket, none of which is any good.
// For viewers of the console that are not, see console_test.go.
func (b *bench) crowd(g *configs.Guest, n int) []net.Conn {
	b.t.Helper()
	var clients []net.Conn
	for i := range n {
		conn, err := net.Dial("unix", guestDir(b.base, g.Name).path(fileControl))
		b.must(err)
		b.t.Cleanup(func() { conn.Close() })
		clients = append(clients, conn)
		switch i % 4 {
		case 0: // never says anything
		case 1: // has begun to
			_, err = io.WriteString(conn, `{"execute": "qmp_capab`)
		case 2: // wants events and does not read them
			_, err = io.WriteString(conn, `{"execute": "qmp_capabilities"}`)
		case 3: // asks more than is answered at a time, and does not read either
			_, err = io.WriteString(conn, `{"execute": "qmp_capabilities"}`+strings.Repeat(`{"execute": "query-status"}`, 100))
		}
		b.must(err)
	}
	return clients
}

// TestCrowd has a guest's control socket full of clients that are no good. The
// one that comes then is told so, and the guest can be looked at and ended.
func TestCrowd(t *testing.T) {
	b := newBench(t)
	g := b.spec("famous", "", nic("bridge"))
	report := b.mustStart(g, order{Paused: true})
	friend := b.control(g.Name) // who came first
	clients := b.crowd(g, 127)
	b.eventually(10*time.Second, "the socket is full", func() string {
		var full *qmp.Error
		if _, err := Control(t.Context(), b.base, g.Name); !errors.As(err, &full) || full.Desc != "too many clients: the limit is 128" {
			return "one more client: " + errText(err)
		}
		return ""
	})
	raw, err := net.Dial("unix", guestDir(b.base, g.Name).path(fileControl))
	b.must(err)
	defer raw.Close()
	raw.SetReadDeadline(time.Now().Add(5 * time.Second))
	if line, err := bufio.NewReader(raw).ReadString('\n'); err != nil || !strings.Contains(line, "too many clients") {
		t.Errorf("one more client reads %q, %v", line, err)
	}

	var wg sync.WaitGroup
	wg.Go(func() { // events for all of them
		for range 30 {
			if err := errors.Join(friend.Cont(b.within(5*time.Second)), friend.Stop(b.within(5*time.Second))); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 5 {
		b.timed("status", observeTimeout, func() {
			if s := b.observe(g); s.State != StatePaused && s.State != StateRunning || s.PID != report.Status.PID || s.Supervisor == 0 {
				t.Errorf("status beside a crowd: %+v", s)
			}
		})
	}
	wg.Wait()
	b.timed("stop", observeTimeout, func() {
		if _, err := Stop(context.Background(), b.base, g.Name); err == nil || !strings.Contains(err.Error(), "too many clients") {
			t.Errorf("stop beside a crowd: %v", err)
		}
	})

	clients[0].Close()
	b.eventually(10*time.Second, "a place is free", func() string {
		c, err := Control(t.Context(), b.base, g.Name)
		if err == nil {
			c.Close()
		}
		return errText(err)
	})
	again, err := net.Dial("unix", guestDir(b.base, g.Name).path(fileControl))
	b.must(err)
	defer again.Close()
	b.timed("kill", observeTimeout+drainTimeout, func() { b.kill(g.Name) })
	b.clean("crowd")
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
