package launcher

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/netsetup/nettest"
)

// restart is the lines of a guest that is restarted after short delays, and
// without a limit unless further lines say otherwise.
func restart(policy configs.RestartPolicy, lines ...string) string {
	if len(lines) == 0 {
		lines = []string{`delay = "100ms"`, `max_delay = "200ms"`, "limit = 0"}
	}
	return fmt.Sprintf("[restart]\npolicy = %q\n%s", policy, strings.Join(lines, "\n"))
}

// killQEMU kills a guest's QEMU, and returns its status before.
func (b *bench) killQEMU(g *configs.Guest, sig syscall.Signal) Status {
	b.t.Helper()
	s := b.observe(g)
	if s.PID == 0 {
		b.t.Fatalf("%s is %s, without a QEMU", g.Name, s.State)
	}
	b.signalQEMU(Report{Status: s}, sig)
	return s
}

// restarted waits until a guest has been restarted so often, and is in a state.
func (b *bench) restarted(g *configs.Guest, count int, want State) Status {
	b.t.Helper()
	var s Status
	b.eventually(30*time.Second, fmt.Sprintf("restart %d of %s", count, g.Name), func() string {
		s = b.observe(g)
		if s.Restarts != nil && s.Restarts.Count >= count && s.State == want {
			return ""
		}
		return fmt.Sprintf("%s, %+v", s.State, s.Restarts)
	})
	return s
}

// TestRestart kills a guest's QEMU in several ways: it is back each time as it
// was, for a client of the control socket too. Then its owner stops it.
func TestRestart(t *testing.T) {
	b := newBench(t)
	g := b.spec("phoenix", "", nic("bridge", "queues = 2", "host_access = true", "pin = true", `addresses = ["192.0.2.11"]`), restart(configs.RestartOnFailure))
	b.mustStart(g, order{Paused: true})
	events := b.events(g)
	for i, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		was := b.killQEMU(g, sig)
		for _, want := range []State{StateRestarting, StateStarting, StatePaused} {
			ev := events.wait(EventState, "", 20*time.Second)
			if got := ev.Data["state"]; got != string(want) {
				t.Errorf("%v: event %v, want %s", sig, ev.Data, want)
			}
			if want == StateRestarting && (ev.Data["reason"] != string(ReasonSignal) || fmt.Sprint(ev.Data["restarts"]) != fmt.Sprint(i) || ev.Data["next"] == nil) {
				t.Errorf("%v: event %v", sig, ev.Data)
			}
		}
		s := b.restarted(g, i+1, StatePaused)
		if s.PID == was.PID || s.Supervisor != was.Supervisor || s.UUID != was.UUID {
			t.Errorf("%v: was %+v, is %+v", sig, was, s)
		}
		if n, m := s.NICs[0], was.NICs[0]; n.MAC != m.MAC || n.Index != m.Index || n.Queues != m.Queues || n.Pin != m.Pin {
			t.Errorf("%v: was %+v, is %+v", sig, m, n)
		}
		if r := s.Restarts; r.Count != i+1 || !r.Next.IsZero() || r.Last == nil || r.Last.Reason != ReasonSignal || s.Ended != nil {
			t.Errorf("%v: restarts %+v", sig, r)
		}
		b.eventually(3*time.Second, "the host's route is back", func() string { return b.unrouted(g) })
	}
	b.stop(g, RungQuit)
	events.wait(EventEnded, "", time.Second)
	if s := b.observe(g); s.State != StateEnded || s.Ended.Reason != ReasonStopped || s.Restarts.Count != 2 {
		t.Errorf("after the stop: %+v", s)
	}
	b.clean("restarts")
	if report := b.mustStart(g, order{Paused: true}); report.Status.Restarts != nil {
		t.Errorf("a start by hand: %+v", report.Status.Restarts)
	}
	b.kill(g.Name)
	if s := b.observe(g); s.State != StateEnded || s.Ended.Rung != RungKill {
		t.Errorf("after the kill: %+v", s)
	}
	b.clean("kill")
}

// unrouted says which of a guest's addresses the host does not reach.
func (b *bench) unrouted(g *configs.Guest) string {
	for _, n := range b.observe(g).NICs {
		if len(n.Unrouted) > 0 {
			return fmt.Sprint(n.Unrouted)
		}
	}
	return ""
}

// TestRestartPolicies has guests power themselves off: that is no failure. A
// guest that ran runs again, with its memory of the past in the record.
func TestRestartPolicies(t *testing.T) {
	b := newBench(t)
	once := b.spec("once", "", nic("bridge"), restart(configs.RestartOnFailure))
	ever := b.spec("ever", "", nic("bridge"), restart(configs.RestartAlways))
	for _, c := range b.boot(once, ever) {
		c.Run(b.within(10*time.Second), "poweroff") // the answer may be lost
	}
	if s := b.waitState(once, StateEnded, 20*time.Second); s.Ended.Reason != ReasonPoweroff || s.Restarts != nil {
		t.Errorf("on-failure: %+v, %+v", s.Ended, s.Restarts)
	}
	if s := b.restarted(ever, 1, StateRunning); s.Restarts.Last.Reason != ReasonPoweroff {
		t.Errorf("always: %+v", s.Restarts)
	}
	if err := b.control(ever.Name).Stop(b.within(5 * time.Second)); err != nil { // its owner only pauses it
		t.Error(err)
	}
	b.killQEMU(ever, syscall.SIGKILL)
	b.restarted(ever, 2, StateRunning)
	b.kill(ever.Name)
	b.clean("policies")
}

// TestRestartLimit lets a guest fail once more than it may.
func TestRestartLimit(t *testing.T) {
	b := newBench(t)
	g := b.spec("sisyphus", "", nic("bridge"), restart(configs.RestartAlways, `delay = "100ms"`, "limit = 2"))
	b.mustStart(g, order{Paused: true})
	for i := range 2 {
		b.killQEMU(g, syscall.SIGKILL)
		b.restarted(g, i+1, StatePaused)
	}
	b.killQEMU(g, syscall.SIGKILL)
	s := b.waitState(g, StateEnded, 5*time.Second)
	if want := "; not restarted again: its limit is 2 restarts within 10m0s"; s.Ended.Reason != ReasonSignal || !strings.HasSuffix(s.Ended.String(), want) {
		t.Errorf("%+v, want %q", s.Ended, want)
	}
	b.clean("limit")
}

// TestBackOff looks at a guest that waits to be restarted, and has its owner
// think better of it, in every way that there is.
func TestBackOff(t *testing.T) {
	b := newBench(t)
	g := b.spec("waiting", "192.0.2.11/24", nic("bridge"), restart(configs.RestartOnFailure, `delay = "5m"`, `max_delay = "5m"`))
	for name, end := range map[string]func() (Outcome, error){
		"stop": func() (Outcome, error) { return Stop(b.within(10*time.Second), b.base, g.Name) },
		"kill": func() (Outcome, error) { return Kill(b.within(10*time.Second), b.base, g.Name) },
		"SIGTERM": func() (Outcome, error) {
			b.must(syscall.Kill(b.observe(g).Supervisor, syscall.SIGTERM))
			return *b.waitState(g, StateEnded, 5*time.Second).Ended, nil
		},
	} {
		b.mustStart(g, order{Paused: true})
		before := time.Now()
		b.killQEMU(g, syscall.SIGKILL)
		s := b.waitState(g, StateRestarting, 10*time.Second)
		if next := s.Restarts.Next.Sub(before); next < 5*time.Minute || next > 6*time.Minute {
			t.Errorf("%s: the next attempt is in %v", name, next)
		}
		if s.PID != 0 || s.Supervisor == 0 || s.Ended != nil || s.Restarts.Last.Reason != ReasonSignal || s.Restarts.Count != 0 || len(s.NICs) != 1 {
			t.Errorf("%s: %+v, %+v", name, s, s.Restarts)
		}
		var busy *BusyError
		if _, err := b.start(g, order{}); !errors.As(err, &busy) {
			t.Errorf("%s: a start meanwhile: %v", name, err)
		}
		control, waiter := b.control(g.Name), b.control(g.Name)
		if err := control.Cont(b.within(5 * time.Second)); err == nil || !strings.Contains(err.Error(), "is being restarted") {
			t.Errorf("%s: cont meanwhile: %v", name, err)
		}
		events := waiter.Subscribe()
		b.timed(name, time.Second, func() {
			o, err := end()
			if err != nil || o.Reason != ReasonStopped || !strings.HasPrefix(o.String(), "stopped before its restart: QEMU was killed by SIGKILL") {
				t.Errorf("%s: %+v, %v", name, o, err)
			}
		})
		var names []string
		for ev := range events.Events() {
			names = append(names, ev.Event)
		}
		if got := strings.Join(names, " "); got != EventState+" "+EventEnded {
			t.Errorf("%s: events %q", name, got)
		}
		if s := b.observe(g); s.State != StateEnded || s.Ended.Reason != ReasonStopped {
			t.Errorf("%s: %+v", name, s)
		}
		b.clean(name)
	}
}

// TestKilledInBackOff kills a supervisor that waits, or stops it: nobody else
// takes the guest for one that will be back.
func TestKilledInBackOff(t *testing.T) {
	b := newBench(t)
	g := b.spec("forgotten", "", nic("bridge"), restart(configs.RestartOnFailure, `delay = "5m"`, `max_delay = "5m"`))
	first := b.mustStart(g, order{Paused: true})
	b.killQEMU(g, syscall.SIGKILL)
	supervisor := b.waitState(g, StateRestarting, 10*time.Second).Supervisor
	b.must(syscall.Kill(supervisor, syscall.SIGSTOP))
	if s := b.waitState(g, StateUnresponsive, 20*time.Second); s.Silent != silentSupervisor {
		t.Errorf("with a supervisor that does not answer: %s, %s", s.State, s.Silent)
	}
	b.killSupervisor(g.Name)
	if s := b.observe(g); s.State != StateEnded || s.Ended.Reason != ReasonSignal || s.Supervisor != 0 {
		t.Errorf("without a supervisor: %+v", s)
	}
	again, err := b.startSoon(g.Path)
	if err != nil || again.Adopted || again.Status.Restarts != nil || again.Status.NICs[0].MAC != first.Status.NICs[0].MAC {
		t.Errorf("the next start: %+v, %v", again, err)
	}
	b.kill(g.Name)
	b.clean("killed in back-off")
}

// TestRestartFails takes the parent away while a guest is down. Its restarts
// fail until the parent is back.
func TestRestartFails(t *testing.T) {
	b := newBench(t)
	g := b.spec("patient", "", nic("bridge"), restart(configs.RestartOnFailure))
	before := b.mustStart(g, order{Paused: true}).Status
	b.lab.RemoveNIC("lab0")
	b.killQEMU(g, syscall.SIGKILL)
	b.eventually(20*time.Second, "a restart fails", func() string {
		s := b.observe(g)
		if s.Restarts == nil || s.Restarts.Last == nil || s.Restarts.Last.Reason != ReasonStartFailed {
			return fmt.Sprintf("%s, %+v", s.State, s.Restarts)
		}
		return other(fmt.Sprint(strings.Contains(s.Restarts.Last.Detail, "lab0"), strings.Contains(s.Restarts.Last.Detail, "\n")), "true false")
	})
	b.lab.AddNIC("lab0", nettest.NIC{MAC: b.lab.Host.MAC, Addresses: []netip.Prefix{nettest.HostAddr4, nettest.HostAddr6}})
	s := b.restarted(g, 2, StatePaused)
	if s.NICs[0].MAC != before.NICs[0].MAC {
		t.Errorf("%+v", s)
	}
	b.stop(g, RungQuit)
	b.clean("parent gone and back")
}

// TestRestartFailsAtLast has the limit end a guest whose restarts fail, at a step
// that has acquired something.
func TestRestartFailsAtLast(t *testing.T) {
	b := newBench(t)
	g := b.spec("doomed", "", nic("bridge"), restart(configs.RestartOnFailure, `delay = "100ms"`, "limit = 2"))
	b.mustStart(g, order{Paused: true})
	once := fault{When: "before", Step: "commit", Do: "fail"}
	b.setFault(once, once) // one for each restart
	b.killQEMU(g, syscall.SIGKILL)
	s := b.waitState(g, StateEnded, 20*time.Second)
	if want := "restart: commit: made to fail; not restarted again: its limit is 2 restarts within 10m0s"; s.Ended.Reason != ReasonStartFailed || s.Ended.String() != want {
		t.Errorf("%+v, want %q", s.Ended, want)
	}
	if s.Restarts == nil || s.Restarts.Count != 2 {
		t.Errorf("restarts %+v, want 2", s.Restarts)
	}
	b.setFault(fault{})
	b.clean("failed restarts")
}

// TestAdoptedRestart has an adopted guest's QEMU die: the new supervisor goes on
// counting, and has all that it takes to start the guest again.
func TestAdoptedRestart(t *testing.T) {
	b := newBench(t)
	g := b.spec("heir", "", nic("bridge", "queues = 2"), restart(configs.RestartOnFailure, `delay = "100ms"`, "limit = 2"))
	before := b.mustStart(g, order{Paused: true}).Status
	b.killQEMU(g, syscall.SIGKILL)
	b.restarted(g, 1, StatePaused)
	b.killSupervisor(g.Name)
	b.rewrite(g, `cpus = 2`) // the guest that is held counts, not its file
	if report, err := b.startSoon(g.Path); err != nil || !report.Adopted || report.Status.Restarts.Count != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	b.killQEMU(g, syscall.SIGKILL)
	s := b.restarted(g, 2, StatePaused)
	if s.NICs[0].MAC != before.NICs[0].MAC || s.UUID != before.UUID || s.CPUs != 1 || s.Restarts.Last.Reason != ReasonUnknown {
		t.Errorf("%+v, %+v", s, s.Restarts)
	}
	b.killQEMU(g, syscall.SIGKILL)
	if s := b.waitState(g, StateEnded, 5*time.Second); !strings.Contains(s.Ended.String(), "limit is 2") {
		t.Errorf("%+v", s.Ended)
	}
	b.clean("adopted restart")
}

// TestKilledInRestart kills the supervisor amid a restart: what it leaves is what
// any start leaves.
func TestKilledInRestart(t *testing.T) {
	b := newBench(t)
	g := b.spec("twice", "", nic("bridge"), restart(configs.RestartOnFailure))
	for _, f := range []struct {
		fault
		adopted bool
	}{
		{fault{"before", "record restart", "kill self"}, false},
		{fault{"after", "record restart", "kill self"}, false},
		{fault{"before", "record", "kill self"}, false},
		{fault{"after", "record", "kill self"}, false},
		{fault{"after", "qemu start", "kill self"}, false},
		{fault{"before", "control listen", "kill self"}, false},
		{fault{"before", "commit", "kill self"}, false},
		{fault{"after", "commit", "kill self"}, true},
	} {
		what := f.When + " " + f.Step
		b.mustStart(g, order{Paused: true})
		b.setFault(f.fault)
		b.killQEMU(g, syscall.SIGKILL)
		b.eventually(20*time.Second, what+": the supervisor dies", func() string {
			if _, alive := guestDir(b.base, g.Name).supervisor(); alive {
				return "it lives"
			}
			return ""
		})
		b.setFault(fault{})
		report, err := b.startSoon(g.Path)
		if err != nil || report.Adopted != f.adopted || (report.Status.Restarts != nil) != f.adopted {
			t.Errorf("%s: %+v, %v", what, report, err)
		}
		b.kill(g.Name)
		b.clean(what)
	}
}

// TestStopInRestart stops a guest while it is being started again, at the first
// steps and the last. All its lives are supervised by this process, and leave
// nothing in it.
func TestStopInRestart(t *testing.T) {
	b := newBench(t)
	g := b.spec("busy", "", nic("bridge"), restart(configs.RestartOnFailure))
	b.stopAt(g, "commit", 2)
	before := takeUsage(t)
	b.stopAt(g, "commit", 8)
	after := takeUsage(t)
	if after.descriptors > before.descriptors || after.goroutines > before.goroutines {
		t.Errorf("eight restarts: %+v became %+v", before, after)
	}
	for _, step := range []string{"record", "qemu start", "control listen"} {
		b.stopAt(g, step, 1)
	}
}

// TestKillInBackOff has the program that supervises a guest end it, as a second
// signal does.
func TestKillInBackOff(t *testing.T) {
	b := newBench(t)
	g := b.spec("waiting", "", nic("bridge"), restart(configs.RestartOnFailure, `delay = "5m"`, `max_delay = "5m"`))
	kill := make(chan struct{})
	opts := Options{RunDir: b.base, Paused: true, Kill: kill}
	opts.Ready = func(r Report) {
		b.signalQEMU(r, syscall.SIGKILL)
		go func() {
			b.eventually(10*time.Second, "it waits", func() string {
				s, _ := Observe(context.Background(), b.base, g.Name)
				return other(string(s.State), string(StateRestarting))
			})
			close(kill)
		}()
	}
	b.must(b.lab.Host.Do(func() error {
		o, err := Run(b.within(time.Minute), g, opts)
		if err == nil && o.Reason != ReasonStopped {
			err = fmt.Errorf("outcome %+v", o)
		}
		return err
	}))
	b.clean("kill in back-off")
}

// stopAt restarts a guest so often, and has it stopped before a step of the last
// restart.
func (b *bench) stopAt(g *configs.Guest, step string, restarts int) {
	b.t.Helper()
	lives := 0
	told := make(chan error, 1)
	opts := Options{RunDir: b.base, Paused: true, step: func(when, name string) error {
		switch {
		case when == "before" && name == "record":
			lives++
		case when == "after" && name == "commit" && lives <= restarts:
			qemu, err := findOrphan(guestDir(b.base, g.Name))
			if err != nil {
				return err
			}
			return qemu.kill()
		}
		if when == "before" && name == step && lives == restarts+1 {
			go func() {
				_, err := Stop(context.Background(), b.base, g.Name)
				told <- err
			}()
			time.Sleep(200 * time.Millisecond) // so that it is heard in this step
		}
		return nil
	}}
	err := b.lab.Host.Do(func() error {
		o, err := Run(b.within(time.Minute), g, opts)
		if err == nil && o.Reason != ReasonStopped {
			err = fmt.Errorf("outcome %+v", o)
		}
		return err
	})
	if err = errors.Join(err, <-told); err != nil || lives != restarts+1 {
		b.t.Errorf("stopped before %s of restart %d: after %d lives: %v", step, restarts, lives, err)
	}
	if _, err := os.Stat(guestDir(b.base, g.Name).path(fileControl)); err == nil {
		b.t.Errorf("stopped before %s: %s is left", step, fileControl)
	}
	b.clean("stopped before " + step)
}
