package launcher

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"vmrun/netsetup"
)

// TestKilledAtEveryStep kills the supervisor, QEMU, or both, before and after
// every step of a start. Whatever happened, the next commands clear it up, and
// the guest starts again with the same MAC. The steps come from the plan, so a
// new one is in the matrix by itself.
func TestKilledAtEveryStep(t *testing.T) {
	b := newBench(t)
	g := b.spec("victim", "", nic("bridge", "queues = 2", "host_access = true", `addresses = ["192.0.2.11"]`, "pin = true", `bandwidth = { inbound = "1gbit", outbound = "1gbit" }`))
	steps := []string{"lock"}
	for _, s := range planFor(b, g.Path).Steps {
		steps = append(steps, s.Name)
	}
	cells, started := 0, false
	var table strings.Builder
	for _, step := range steps {
		fmt.Fprintf(&table, "%-18s", step)
		for _, when := range []string{"before", "after"} {
			started = started || step == "qemu start" && when == "after"
			for _, do := range []string{"kill self", "kill qemu", "kill both"} {
				if !started && do != "kill self" {
					continue // there is no QEMU to kill
				}
				f := fault{When: when, Step: step, Do: do}
				verdict := b.killOnce(g.Path, f)
				fmt.Fprintf(&table, " %s %s: %-9s", when, strings.TrimPrefix(do, "kill "), verdict)
				cells++
			}
		}
		table.WriteByte('\n')
	}
	t.Logf("%d cells:\n%s", cells, table.String())
}

// planFor is the plan of the spec as the lab's host would make it.
func planFor(b *bench, path string) *Plan {
	b.t.Helper()
	g := mustLoad(b.t, path)
	var p *Plan
	err := b.lab.Host.Do(func() (err error) {
		p, err = PlanFor(context.Background(), g, b.base, PlanOptions{})
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// killOnce starts the guest with a fault, then starts it again without, stops
// it, and returns what the second start found.
func (b *bench) killOnce(path string, f fault) string {
	b.t.Helper()
	what := fmt.Sprintf("%s %s %s", f.Do, f.When, f.Step)
	g := mustLoad(b.t, path)
	_, firstErr := b.start(g, order{Fault: f})
	if f.Do != "kill self" {
		// QEMU died: what a supervisor that lives saw of it is cleared up by it.
		b.awaitSupervisorsEnd(g.Name, f, firstErr)
	}
	report, err := b.startSoon(path)
	if err != nil {
		b.t.Errorf("%s: the next start: %v", what, err)
		return "STUCK"
	}
	if report.Adopted && report.Status.State != StateRunning {
		b.t.Errorf("%s: adopted, but %s: its CPUs were to run", what, report.Status.State)
	}
	if _, err := Kill(context.Background(), b.base, g.Name); err != nil {
		b.t.Errorf("%s: the end: %v", what, err)
	}
	b.clean(what)
	if report.Adopted {
		return "adopted"
	}
	return "fresh"
}

// startSoon starts the guest again. A supervisor that has just been killed may
// hold the name for the instant that the kernel takes to end it.
func (b *bench) startSoon(path string) (report Report, err error) {
	for range 100 {
		report, err = b.start(mustLoad(b.t, path), order{Paused: true})
		if KindOf(err) != KindState {
			return report, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return report, err
}

// awaitSupervisorsEnd waits for the supervisor of a guest whose QEMU was killed.
func (b *bench) awaitSupervisorsEnd(name string, f fault, startErr error) {
	b.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, alive := guestDir(b.base, name).supervisor()
		if !alive {
			return
		}
		// A fault before QEMU exists strikes nothing: the guest runs.
		if s, err := Observe(context.Background(), b.base, name); err == nil && startErr == nil && s.State == StateRunning {
			if _, err := Kill(context.Background(), b.base, name); err != nil && !errors.Is(err, ErrState) {
				b.t.Error(err)
			}
			return
		}
		if time.Now().After(deadline) {
			b.t.Errorf("%s %s %s: the supervisor goes on without QEMU", f.Do, f.When, f.Step)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestKilledAtTheEnd kills the supervisor at every step of a guest's end.
func TestKilledAtTheEnd(t *testing.T) {
	b := newBench(t)
	g := b.spec("victim", "", nic("bridge"))
	for _, step := range []string{"undo", "unlock"} {
		for _, when := range []string{"before", "after"} {
			f := fault{When: when, Step: step, Do: "kill self"}
			b.mustStart(g, order{Paused: true, Fault: f})
			Stop(b.within(10*time.Second), b.base, g.Name) // whose answer dies with the supervisor
			if _, err := b.startSoon(g.Path); err != nil {
				t.Errorf("%s %s: the next start: %v", when, step, err)
			}
			if _, err := Kill(context.Background(), b.base, g.Name); err != nil {
				t.Errorf("%s %s: %v", when, step, err)
			}
			b.clean(fmt.Sprintf("killed %s %s", when, step))
		}
	}
}

// TestKilledInAdoption kills an adopting supervisor at every step: the guest
// stays, and the next one adopts it.
func TestKilledInAdoption(t *testing.T) {
	b := newBench(t)
	g := b.spec("victim", "", nic("bridge"))
	b.mustStart(g, order{Paused: true})
	b.killSupervisor(g.Name)
	pid := b.observe(g).PID
	for _, s := range (&life{}).adoptionSteps() {
		for _, when := range []string{"before", "after"} {
			if _, err := b.start(g, order{Fault: fault{When: when, Step: s.Name, Do: "kill self"}}); err == nil {
				t.Errorf("%s %s: the supervisor survived", when, s.Name)
			}
			if got := b.observe(g); got.PID != pid || got.State != StatePaused {
				t.Errorf("%s %s: the guest is %s with pid %d, want paused with %d", when, s.Name, got.State, got.PID, pid)
			}
		}
	}
	report, err := b.startSoon(g.Path)
	if err != nil || !report.Adopted || report.Status.PID != pid {
		t.Fatalf("adoption after all: %+v, %v", report, err)
	}
	b.stop(g, RungQuit)
	b.clean("adoption")
}

// killSupervisor kills a guest's supervisor and waits until it is gone.
func (b *bench) killSupervisor(name string) {
	b.t.Helper()
	pid, alive := guestDir(b.base, name).supervisor()
	if !alive {
		b.t.Fatalf("%s has no supervisor", name)
	}
	p, err := findProcess(processID{PID: pid})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := p.kill(); err != nil {
		b.t.Fatal(err)
	}
	for {
		if _, alive := guestDir(b.base, name).supervisor(); !alive {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestFailedAtEveryStep makes every step of a start fail by a cancelled start
// right before it; everything must be undone by the supervisor itself.
func TestFailedAtEveryStep(t *testing.T) {
	b := newBench(t)
	g := b.spec("victim", "", nic("bridge", "host_access = true", `addresses = ["192.0.2.11"]`, "pin = true", `bandwidth = { inbound = "1gbit", outbound = "1gbit" }`))
	for _, s := range planFor(b, g.Path).Steps {
		if s.Name == "run" { // after the commit
			continue
		}
		err := b.lab.Host.Do(func() error {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			opts := Options{RunDir: b.base, step: func(when, step string) error {
				if when == "before" && step == s.Name {
					cancel()
				}
				return nil
			}}
			ns, err := netsetup.CurrentNamespace()
			if err != nil {
				return err
			}
			defer ns.Close()
			_, err = Run(ctx, g, opts)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), s.Name+": context canceled") {
			t.Errorf("%s: %v, want the cancelled step named", s.Name, err)
		}
		b.clean("failed " + s.Name)
	}
}
