package launcher

import (
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// suspendCells end, at each of its steps, a suspend and what lets the guest go on
// from it. Whatever happens, the guest runs, or its memory is whole; never both, and
// never is there a part of one.
func (l *trial) suspendCells() {
	l.share = 7 // each takes long
	l.mustStart(l.g, order{})
	steps := l.steps(func() { l.must(l.suspend()) })
	l.awaitUnlocked(l.g.Name)
	first, last := slices.Index(steps, "suspend mark"), slices.Index(steps, "suspend keep")
	if first < 0 || last != first+4 {
		l.t.Fatalf("a suspend takes the steps %s", strings.Join(steps, ", "))
	}
	for _, step := range append(steps[first:last+1:last+1], "quit") {
		for _, how := range manners {
			l.cell("suspend", step, how, l.suspendOnce)
		}
	}
	l.cell("failed suspend", "undo suspend", killedBefore, l.suspendOnce, fails.fault("suspend sync"))
	l.cell("failed suspend", "undo suspend", killedAfter, l.suspendOnce, fails.fault("suspend sync"))

	l.suspended()
	steps = l.steps(func() { l.goesOn("", true) })
	from := slices.Index(steps, "memory load")
	if from < 0 || !slices.Contains(steps, "memory take") {
		l.t.Fatalf("to go on takes the steps %s", strings.Join(steps, ", "))
	}
	for _, step := range []string{"memory load", "commit", "memory take", "run"} {
		for _, how := range manners {
			l.cell("go on", step, how, l.goOnOnce)
		}
	}
	l.suspended()
	l.killAfter("suspend keep")
	for _, how := range []manner{killedBefore, killedAfter} {
		l.cell("after a suspend", "end suspended", how, func(how manner, faults ...fault) string {
			l.killAfter("suspend keep")
			l.setFault(faults...)
			l.startSoon(l.g.Path)
			l.setFault()
			l.awaitUnlocked(l.g.Name)
			return l.goesOn("repaired", true)
		})
	}
	l.goesOn("", l.isKept())
}

func (l *trial) suspend() error {
	_, err := Suspend(l.within(30*time.Second), l.base, l.g.Name)
	return err
}

func (l *trial) isKept() bool { return isSuspended(l.base, l.g.Name) }

// suspended makes the guest a suspended one.
func (l *trial) suspended() {
	l.t.Helper()
	if l.isKept() {
		return
	}
	l.mustStart(l.g, order{})
	l.must(l.suspend())
	l.awaitUnlocked(l.g.Name)
}

// killAfter suspends the guest, and kills its supervisor after a step.
func (l *trial) killAfter(step string) {
	l.t.Helper()
	if l.isKept() {
		l.goesOn("", true)
	}
	l.mustStart(l.g, order{})
	l.setFault(killedAfter.fault(step))
	l.suspend()
	l.setFault()
	l.awaitUnlocked(l.g.Name)
}

// goesOn starts the guest, which then runs, from its memory if it has one, and ends it.
func (l *trial) goesOn(verdict string, resumed bool) string {
	l.t.Helper()
	report, err := l.startRunning()
	switch {
	case err != nil:
		return l.wrong("the next start: %v", err)
	case report.Resumed != resumed:
		return l.wrong("the next start: %+v, and it is to be resumed: %t", report, resumed)
	}
	l.sameMAC(report.Status)
	l.waitState(l.g, StateRunning, 5*time.Second)
	if left, _ := filepath.Glob(filepath.Join(StateDir(l.base, l.g.Name), "*memory*")); len(left) > 0 {
		return l.wrong("a guest runs beside its memory: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(StateDir(l.base, l.g.Name), ".*")); len(left) > 0 {
		return l.wrong("left: %v", left)
	}
	return l.end(verdict)
}

// startRunning is startSoon for a guest that is to run.
func (l *trial) startRunning() (report Report, err error) {
	for range 100 {
		report, err = l.start(mustLoad(l.t, l.g.Path), order{})
		if KindOf(err) != KindState {
			return report, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return report, err
}

func (l *trial) suspendOnce(how manner, faults ...fault) string {
	l.mustStart(l.g, order{})
	before := l.observe(l.g)
	l.setFault(faults...)
	err := l.suspend()
	l.setFault()
	kept := l.isKept()
	if how == fails && err != nil { // and the guest goes on under its supervisor
		s := l.waitState(l.g, StateRunning, 10*time.Second)
		if kept || s.PID != before.PID || !strings.Contains(err.Error(), errMade.Error()) {
			return l.wrong("%v, kept: %t, %+v", err, kept, s)
		}
		return l.end("kept")
	}
	l.awaitUnlocked(l.g.Name)
	switch s, err := Observe(l.within(5*time.Second), l.base, l.g.Name); {
	case how == killedBefore || how == killedAfter:
	case err != nil || kept != (s.State == StateSuspended):
		return l.wrong("kept: %t, %+v, %v", kept, s, err)
	}
	verdict := "fresh"
	switch {
	case kept:
		verdict = "finished"
	case how == killedBefore || how == killedAfter:
		verdict = "adopted"
	}
	return l.goesOn(verdict, kept)
}

func (l *trial) goOnOnce(how manner, faults ...fault) string {
	l.suspended()
	l.setFault(faults...)
	report, err := l.startRunning()
	l.setFault()
	kept := l.isKept()
	if how == fails && err == nil { // after the commit
		l.must(l.ask("cont", nil))
		s := l.waitState(l.g, StateRunning, 5*time.Second)
		if l.isKept() || s.PID != report.Status.PID {
			return l.wrong("%+v beside its memory", s)
		}
		return l.end("kept")
	}
	if how == qemuKilled && err == nil {
		l.awaitUnlocked(l.g.Name)
	}
	l.awaitUnlocked(l.g.Name)
	if qemu, err := findOrphan(guestDir(l.base, l.g.Name)); err == nil {
		qemu.pidfd.Close()
		if rec, err := guestDir(l.base, l.g.Name).readRecord(); err == nil && rec.Committed {
			return l.goesOn("adopted", false)
		}
	}
	if !kept {
		return l.goesOn("fresh", false)
	}
	return l.goesOn("undone", true)
}
