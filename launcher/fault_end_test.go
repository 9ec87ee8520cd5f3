package launcher

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ending is a way in which a guest comes to its end.
type ending struct {
	name    string
	prepare func()
	end     func() error
	all     bool // of its steps some are named like those of another, and do something else
}

// endCells end the end of a guest at each of its steps.
func (l *trial) endCells() {
	paused := func() { l.mustStart(l.g, order{Paused: true}) }
	stop := func() error { _, err := Stop(l.within(10*time.Second), l.base, l.g.Name); return err }
	done := map[string]bool{}
	for _, e := range []ending{
		{"stop", paused, stop, true},
		{"stop when adopted", func() {
			paused()
			l.killSupervisor(l.g.Name)
			l.adopt()
		}, stop, true},
		{"stop when halted", func() { // whose CPUs run for it
			l.mustStart(l.g, order{})
			l.must(l.ask("stop", nil))
			l.waitState(l.g, StatePaused, 5*time.Second)
		}, stop, false},
		{"kill", paused, func() error { _, err := Kill(context.Background(), l.base, l.g.Name); return err }, false},
	} {
		e.prepare()
		steps := l.steps(func() { l.must(e.end()) })
		l.awaitUnlocked(l.g.Name)
		steps = slices.DeleteFunc(steps, func(step string) bool { return done[step] && !e.all })
		for _, step := range steps {
			done[step] = true
			for _, how := range manners {
				if how == qemuKilled && (strings.HasPrefix(step, "undo ") || step == "record end" || step == "unlock") {
					continue // there is none any more
				}
				l.cell(e.name, step, how, func(how manner, faults ...fault) string { return l.endOnce(e, how, faults...) })
			}
		}
	}
}

func (l *trial) endOnce(e ending, how manner, faults ...fault) string {
	e.prepare()
	l.setFault(faults...)
	e.end() // whose answer dies with the supervisor
	l.setFault()
	l.awaitUnlocked(l.g.Name)
	verdict := "finished"
	switch {
	case how == killedBefore || how == killedAfter:
		report, err := l.startSoon(l.g.Path)
		if err != nil {
			return l.wrong("the next start: %v", err)
		}
		if verdict = "fresh"; report.Adopted { // and the end goes on
			verdict = "finished"
			l.awaitUnlocked(l.g.Name)
		}
	case l.left(300*time.Millisecond) != "":
		verdict = "repaired"
	}
	if verdict == "fresh" {
		return l.end(verdict)
	}
	if got := l.again(StatePaused); got != "fresh" {
		return l.wrong("the next start: %s", got)
	}
	return verdict
}

// adopt starts a guest that lives without a supervisor.
func (l *trial) adopt() Report {
	l.t.Helper()
	report, err := l.startSoon(l.g.Path)
	if err != nil || !report.Adopted {
		l.t.Fatalf("%s: adoption: %+v, %v", l.what, report, err)
	}
	return report
}

// adoptionCells end an adoption, and what else a start does about an earlier
// life, at each of its steps.
func (l *trial) adoptionCells() {
	l.desert()
	steps := l.steps(func() { l.adopt() })
	var listed []string
	for _, s := range (&life{}).adoptionSteps() {
		listed = append(listed, s.Name)
	}
	l.wantSteps(steps, listed)
	l.killSupervisor(l.g.Name)
	for _, step := range listed {
		for _, how := range manners {
			l.cell("adoption", step, how, l.adoptOnce)
		}
	}
	l.end("")
	for _, wreck := range []struct {
		kind, step string
		make       func()
	}{
		{"after a death", "clear", func() {
			l.desert()
			l.setFault()
			qemu, err := findOrphan(guestDir(l.base, l.g.Name))
			l.must(err)
			l.must(qemu.kill())
		}},
		{"after half a start", "end half-started", func() {
			l.setFault(killedAfter.fault("monitor connect"))
			if _, err := l.start(l.g, order{}); err == nil {
				l.t.Fatal("a supervisor survived its death")
			}
			l.awaitUnlocked(l.g.Name)
		}},
	} {
		for _, how := range []manner{fails, killedBefore, killedAfter} {
			l.cell(wreck.kind, wreck.step, how, func(how manner, faults ...fault) string {
				wreck.make()
				l.setFault(faults...)
				_, err := l.startSoon(l.g.Path)
				l.setFault()
				if err == nil || how == fails && !strings.Contains(err.Error(), errMade.Error()) {
					return l.wrong("the start says: %v", err)
				}
				l.awaitUnlocked(l.g.Name)
				return l.again(StateRunning)
			})
		}
	}
}

// desert starts the guest and leaves it without a supervisor, unless there is one such.
func (l *trial) desert() {
	l.t.Helper()
	if s, err := Observe(context.Background(), l.base, l.g.Name); err == nil && s.State == StatePaused {
		return
	}
	l.mustStart(l.g, order{Paused: true})
	l.killSupervisor(l.g.Name)
}

func (l *trial) adoptOnce(how manner, faults ...fault) string {
	l.desert()
	before := l.observe(l.g)
	l.setFault(faults...)
	_, err := l.startSoon(l.g.Path)
	l.setFault()
	l.awaitUnlocked(l.g.Name)
	if how == qemuKilled {
		return l.again(StatePaused)
	}
	if err == nil || how == fails && !strings.Contains(err.Error(), errMade.Error()) {
		return l.wrong("the start says: %v", err)
	}
	if got := l.observe(l.g); got.PID != before.PID || got.State != StatePaused {
		return l.wrong("the guest is %s with pid %d, want paused with %d", got.State, got.PID, before.PID)
	}
	report := l.adopt()
	l.killSupervisor(l.g.Name)
	if s := report.Status; s.PID != before.PID || s.NICs[0].MAC != before.NICs[0].MAC || s.State != StatePaused {
		return l.wrong("adopted as %+v, was %+v", s, before)
	}
	return "adopted"
}

// ask has the guest's supervisor do something.
func (l *trial) ask(command string, args any) error {
	client, err := Control(context.Background(), l.base, l.g.Name)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return client.Execute(ctx, command, args, nil)
}

// restartCells end a restart between two lives, and at some steps of the next.
// The others are those of any start.
func (l *trial) restartCells() {
	for _, step := range []string{"record restart", "record", "qemu start", "commit"} {
		for _, how := range manners {
			if how == qemuKilled && (step == "record restart" || step == "record") {
				continue // there is none
			}
			l.cell("restart", step, how, l.restartOnce)
		}
	}
}

func (l *trial) restartOnce(how manner, faults ...fault) string {
	l.mustStart(l.g, order{Paused: true})
	l.setFault(faults...)
	l.killQEMU(l.g, syscall.SIGKILL)
	if how == killedBefore || how == killedAfter {
		l.awaitUnlocked(l.g.Name)
		l.setFault()
		return l.again(StatePaused)
	}
	count := 2 // the first failed
	if faults[0].Step == "record restart" {
		count = 1
	}
	l.eventually(10*time.Second, l.what, func() string {
		if s := l.observe(l.g); s.Restarts == nil || s.Restarts.Count < count {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	l.setFault()
	l.sameMAC(l.restarted(l.g, count, StatePaused))
	return l.end("finished")
}
