package launcher

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestQEMUsThatDoNotStart has one QEMU after the other that is no good: each
// start fails in time, says why, and leaves nothing.
func TestQEMUsThatDoNotStart(t *testing.T) {
	b := newBench(t)
	tests := []struct{ behaviour, want string }{
		{"qemu-mute", "QEMU did not answer within 15s"},
		{"qemu-babbling", "not the QEMU machine protocol: invalid character"},
		{"qemu-endless", "not the QEMU machine protocol: message too large"},
		{"qemu-shy", "monitor connection closed"},
		{"qemu-dying", "QEMU ended with status 3 before it greeted: qemu: out of order"},
		{"qemu-deaf", "QEMU did not answer within 15s"},
		{"qemu-confused", "QEMU did not answer within 15s"},
	}
	rows := make([]string, len(tests))
	var wg sync.WaitGroup
	for i, tt := range tests {
		g := b.faked(strings.TrimPrefix(tt.behaviour, "qemu-"), tt.behaviour, nic("bridge"))
		wg.Go(func() {
			began := time.Now()
			_, err := b.start(g, order{})
			took := time.Since(began)
			rows[i] = fmt.Sprintf("%-14s %5.1f s  %v", tt.behaviour, took.Seconds(), err)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "monitor connect: ") {
				t.Errorf("%s: %v; want %q", tt.behaviour, err, tt.want)
			}
			if took > greetTimeout+10*time.Second {
				t.Errorf("%s: the start took %v", tt.behaviour, took)
			}
			if _, err := findOrphan(guestDir(b.base, g.Name)); !errors.Is(err, errGone) {
				t.Errorf("%s: QEMU is still there: %v", tt.behaviour, err)
			}
		})
	}
	wg.Wait()
	b.clean("QEMUs that do not start")
	t.Logf("starts of:\n%s", strings.Join(rows, "\n"))
}

// TestQEMUsThatMisbehave has guests whose QEMU is no good once it is there.
func TestQEMUsThatMisbehave(t *testing.T) {
	b := newBench(t)
	const quick = "[stop]\ntimeout = \"1s\"\nquit_timeout = \"1s\""
	t.Run("stubborn", func(t *testing.T) {
		g := b.faked("stubborn", "qemu-stubborn", nic("bridge"), quick)
		b.mustStart(g, order{})
		b.timed("stop", 2*time.Second, func() { b.stop(g, RungKill) })
		b.clean("stubborn")
	})
	t.Run("half deaf", func(t *testing.T) {
		g := b.faked("halfdeaf", "qemu-half-deaf", nic("bridge"), quick)
		report := b.mustStart(g, order{})
		if report.Status.State != StateUnresponsive || !strings.Contains(strings.Join(report.Warnings, "\n"), "run: ") {
			t.Errorf("started as %+v", report)
		}
		b.timed("stop", observeTimeout, func() {
			if _, err := Stop(context.Background(), b.base, g.Name); !errors.Is(err, ErrUnresponsive) {
				t.Errorf("stop: %v", err)
			}
		})
		b.kill(g.Name)
		b.clean("half deaf")
	})
	t.Run("flooding", func(t *testing.T) {
		g := b.faked("flooding", "qemu-flooding", nic("bridge"), "[stop]\ntimeout = \"1s\"\nquit_timeout = \"10s\"")
		b.mustStart(g, order{})
		for range 5 {
			b.timed("status", observeTimeout, func() {
				if s := b.observe(g); s.State != StateRunning {
					t.Errorf("status: %+v", s)
				}
			})
			time.Sleep(500 * time.Millisecond)
		}
		b.timed("stop", 8*time.Second, func() { b.stop(g, RungQuit) })
		dir := guestDir(b.base, g.Name)
		said := strings.Count(string(readFile(t, dir.path(fileSupervisorLog))), "QEMU says")
		t.Logf("the flood: %s; %d of it were logged", strings.Join(tail(dir.path(fileQEMULog), 1), ""), said)
		if said > 20 {
			t.Errorf("%d of a QEMU's events were logged", said)
		}
		b.clean("flooding")
	})
}
