package launcher

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestLife boots one guest and puts it through everything that a healthy guest
// can go through.
func TestLife(t *testing.T) {
	b := newBench(t)
	g := b.spec("web1", "192.0.2.11/24,2001:db8::11/64", nic("bridge"), "[stop]", `timeout = "30s"`)
	console := b.boot(g)[0]

	for _, addr := range []string{"192.0.2.11", "2001:db8::11"} {
		sent, received, err := b.lab.Outside.Ping(b.within(10*time.Second), netip.MustParseAddr(addr), 5, 0)
		if err != nil || received != sent {
			t.Errorf("ping %s: %d of %d answered, %v", addr, received, sent, err)
		}
	}
	if reply := b.say(console, "ping 192.0.2.1 3"); reply != "sent=3 received=3" {
		t.Errorf("ping from the guest: %s", reply)
	}

	control := b.control(g.Name)
	events := control.Subscribe("STOP", "RESUME", "RESET", EventState)
	ctx := b.within(20 * time.Second)
	if err := control.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	b.waitState(g, StatePaused, time.Second)
	if err := control.Cont(ctx); err != nil {
		t.Fatal(err)
	}
	b.waitState(g, StateRunning, time.Second)

	if err := control.SystemReset(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := console.WaitReady(b.within(60 * time.Second)); err != nil {
		t.Fatalf("after a reset: %v", err)
	}
	b.say(console, "reboot")
	if _, err := console.WaitReady(b.within(60 * time.Second)); err != nil {
		t.Fatalf("after a reboot: %v", err)
	}
	if got := b.observe(g).State; got != StateRunning {
		t.Errorf("after a reboot: %s", got)
	}
	events.Close()
	var names []string
	for ev := range events.Events() {
		names = append(names, ev.Event)
	}
	names = slices.Compact(names) // firmware and kernel reset several times in one reboot
	if got, want := strings.Join(names, " "), "STOP VMRUN_STATE RESUME VMRUN_STATE RESET"; got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
	b.stop(g, RungPowerdown)
	b.clean("stop")
}

// TestEnds has guests end by themselves, in every way that they can.
func TestEnds(t *testing.T) {
	tests := []struct {
		name, command string
		want          Reason
	}{
		{"poweroff", "poweroff", ReasonPoweroff},
		{"panic", "crash", ReasonPanic},
	}
	b := newBench(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := b.spec(tt.name, "", nic("bridge"))
			console := b.boot(g)[0]
			console.Run(b.within(10*time.Second), tt.command) // the answer may be lost
			s := b.waitState(g, StateEnded, 20*time.Second)
			if s.Ended == nil || s.Ended.Reason != tt.want {
				t.Errorf("outcome %+v, want %s", s.Ended, tt.want)
			}
			b.clean(tt.name)
		})
	}
	t.Run("QEMU crashes", func(t *testing.T) {
		// The first process of a namespace is spared such signals from outside.
		g := b.spec("crash", "", nic("bridge"), "[confine]", "namespaces = false")
		b.signalQEMU(b.mustStart(g, order{Paused: true}), syscall.SIGSEGV)
		s := b.waitState(g, StateEnded, 5*time.Second)
		if s.Ended.Reason != ReasonCrash || !strings.Contains(s.Ended.Detail, "segmentation fault") {
			t.Errorf("outcome %+v", s.Ended)
		}
		b.clean("crash")
	})
	t.Run("QEMU is told to end by others", func(t *testing.T) {
		g := b.spec("term", "", nic("bridge"))
		b.signalQEMU(b.mustStart(g, order{Paused: true}), syscall.SIGTERM)
		s := b.waitState(g, StateEnded, 5*time.Second)
		if s.Ended.Reason != ReasonSignal {
			t.Errorf("outcome %+v", s.Ended)
		}
		b.clean("term")
	})
	t.Run("qemu_args hit a wall", func(t *testing.T) {
		g := b.spec("wall", "", nic("bridge"))
		b.rewrite(g, `qemu_args = ["-drive", "if=none,format=raw,readonly=on,file=/etc/hostname"]`)
		_, err := b.start(mustLoad(t, g.Path), order{})
		if err == nil || !strings.Contains(err.Error(), "inside QEMU's walls") {
			t.Errorf("error %v, want the wall named", err)
		}
		b.clean("wall")
	})
	t.Run("QEMU refuses its command line", func(t *testing.T) {
		g := b.spec("refuse", "", nic("bridge"))
		g.QEMUArgs = nil
		g = b.rawSpec("refuse", "console=ttyS0", nic("bridge"))
		b.rewrite(g, `qemu_args = ["-device", "no-such-device"]`)
		_, err := b.start(mustLoad(t, g.Path), order{})
		if err == nil || !strings.Contains(err.Error(), "no-such-device") {
			t.Errorf("error %v, want QEMU's own words", err)
		}
		b.clean("refuse")
	})
}

// TestLadder stops a guest that ignores its power button.
func TestLadder(t *testing.T) {
	b := newBench(t)
	g := b.rawSpec("deaf", "console=ttyS0 quiet vmrun.powerbutton=ignore", nic("bridge"), "[stop]", `timeout = "1s"`)
	b.boot(g)
	b.stop(g, RungQuit)
	b.clean("quit")
}

// TestFrozen holds every verb against a QEMU that does not answer.
func TestFrozen(t *testing.T) {
	b := newBench(t)
	g := b.spec("frozen", "", nic("bridge"))
	report := b.mustStart(g, order{})
	b.signalQEMU(report, syscall.SIGSTOP)
	for _, supervised := range []bool{true, false} {
		if !supervised {
			b.killSupervisor(g.Name)
		}
		b.timed("ps", observeTimeout, func() {
			if list, err := List(context.Background(), b.base); err != nil || len(list) != 1 || list[0].State != StateUnresponsive {
				t.Errorf("list, supervised %v: %+v, %v", supervised, list, err)
			}
		})
		b.timed("status", observeTimeout, func() {
			if s := b.observe(g); s.State != StateUnresponsive {
				t.Errorf("status, supervised %v: %s", supervised, s.State)
			}
		})
		b.timed("stop", observeTimeout, func() {
			_, err := Stop(context.Background(), b.base, g.Name)
			if !errors.Is(err, ErrUnresponsive) || !strings.Contains(err.Error(), "--force") {
				t.Errorf("stop, supervised %v: %v", supervised, err)
			}
		})
	}
	b.timed("stop --force", observeTimeout, func() {
		if _, err := Kill(context.Background(), b.base, g.Name); err != nil {
			t.Error(err)
		}
	})
	b.clean("frozen")
}

// timed fails the test when fn takes more than its deadline and 3 s.
func (b *bench) timed(what string, deadline time.Duration, fn func()) {
	b.t.Helper()
	start := time.Now()
	fn()
	if took := time.Since(start); took > deadline+3*time.Second {
		b.t.Errorf("%s took %v, its deadline is %v", what, took, deadline)
	}
}

// TestFrozenAdoption adopts a guest whose QEMU does not answer, and finds it
// well when it does again.
func TestFrozenAdoption(t *testing.T) {
	b := newBench(t)
	g := b.spec("frozen", "", nic("bridge"))
	report := b.mustStart(g, order{})
	b.killSupervisor(g.Name)
	b.signalQEMU(report, syscall.SIGSTOP)
	again := b.mustStart(g, order{})
	if !again.Adopted || b.observe(g).State != StateUnresponsive {
		t.Errorf("adoption of a frozen guest: %+v, now %s", again, b.observe(g).State)
	}
	b.signalQEMU(report, syscall.SIGCONT)
	b.waitState(g, StateRunning, 10*time.Second)
	b.kill(g.Name)
	b.clean("frozen adoption")
}

// TestStopWithoutASupervisor stops a guest that has lost its supervisor.
func TestStopWithoutASupervisor(t *testing.T) {
	b := newBench(t)
	g := b.spec("orphan", "", nic("bridge"))
	b.boot(g)
	b.killSupervisor(g.Name)
	b.stop(g, RungPowerdown)
	b.clean("stop of an orphan")
}

// TestTwoStartsAtOnce has several starts of one name race: one wins, and the
// others say who has it.
func TestTwoStartsAtOnce(t *testing.T) {
	b := newBench(t)
	g := b.spec("one", "", nic("bridge"))
	errs := make([]error, 6)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = b.start(g, order{Paused: true}) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		if KindOf(err) != KindState || !strings.Contains(err.Error(), "one has a supervisor already (pid ") {
			t.Errorf("a start that lost: %v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d starts won, want 1", won)
	}
	b.kill(g.Name)
	b.clean("race")
}
