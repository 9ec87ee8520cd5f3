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

// TestBadQEMUs has QEMUs that are no good: with some no start succeeds, and says
// why; with others the guest can be looked at and ended all the same. Nothing is
// left of any.
func TestBadQEMUs(t *testing.T) {
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
	var starts sync.WaitGroup
	for i, tt := range tests {
		g := b.faked(strings.TrimPrefix(tt.behaviour, "qemu-"), tt.behaviour, nic("bridge"))
		starts.Go(func() {
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
	b.stubborn()
	b.halfDeaf()
	b.flooding()
	starts.Wait()
	b.clean("bad QEMUs")
	t.Logf("starts of:\n%s", strings.Join(rows, "\n"))
}

const quickStop = "[stop]\ntimeout = \"1s\"\nquit_timeout = \"1s\""

// stubborn has a QEMU that neither quits nor heeds signals.
func (b *bench) stubborn() {
	b.t.Helper()
	g := b.faked("stubborn", "qemu-stubborn", nic("bridge"), quickStop)
	b.mustStart(g, order{})
	b.timed("stop of a QEMU that refuses", 2*time.Second, func() { b.stop(g, RungKill) })
}

// halfDeaf has a QEMU that answers no more from the moment that it is to run.
func (b *bench) halfDeaf() {
	b.t.Helper()
	g := b.faked("halfdeaf", "qemu-half-deaf", nic("bridge"), quickStop)
	report := b.mustStart(g, order{})
	if report.Status.State != StateUnresponsive || !strings.Contains(strings.Join(report.Warnings, "\n"), "run: ") {
		b.t.Errorf("started as %+v", report)
	}
	b.timed("stop of a QEMU that is silent", observeTimeout, func() {
		if _, err := Stop(context.Background(), b.base, g.Name); !errors.Is(err, ErrUnresponsive) {
			b.t.Errorf("stop: %v", err)
		}
	})
	b.kill(g.Name)
}

// flooding has a QEMU that sends events as fast as it can. On a busy machine its
// answers may be late behind them, which is said in time too.
func (b *bench) flooding() {
	b.t.Helper()
	g := b.faked("flooding", "qemu-flooding", nic("bridge"), "[stop]\ntimeout = \"1s\"\nquit_timeout = \"10s\"")
	b.mustStart(g, order{})
	seen := map[State]int{}
	for range 5 {
		b.timed("status", observeTimeout, func() { seen[b.observe(g).State]++ })
		time.Sleep(500 * time.Millisecond)
	}
	if seen[StateRunning]+seen[StateUnresponsive] != 5 || seen[StateRunning] == 0 {
		b.t.Errorf("it was seen as %v", seen)
	}
	b.eventually(30*time.Second, "a flooding QEMU is stopped", func() string {
		o, err := Stop(b.within(20*time.Second), b.base, g.Name)
		if err != nil && !errors.Is(err, ErrUnresponsive) || err == nil && o.Rung != RungQuit {
			b.t.Errorf("stop: %v, %v", o, err)
		}
		return errText(err)
	})
	dir := guestDir(b.base, g.Name)
	said := strings.Count(string(readFile(b.t, dir.path(fileSupervisorLog))), "QEMU says")
	b.t.Logf("the flood: %s; %d of it were logged", strings.Join(tail(dir.path(fileQEMULog), 1), ""), said)
	if said > hourly {
		b.t.Errorf("%d of a QEMU's events were logged", said)
	}
}
