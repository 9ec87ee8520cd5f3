package launcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmrun/configs"
)

// trial is where the cells of one kind are tried on one guest, that has everything.
type trial struct {
	*bench
	table *matrix
	g     *configs.Guest
	disk  string
	vars  string // of its firmware, "" where it has a BIOS
	mac   string
	read  int    // of the file of steps
	what  string // the present cell
	tried int    // cells, those that were left out too
	share int    // of how many cells one is tried, 0 for the usual
}

// firstCell begins the third of the cells that make test tries, another each time;
// make soak tries all. Of every step's there is one at least.
var firstCell = rand.IntN(3)

func (m *matrix) newTrial(t *testing.T, kind string) *trial {
	lines := ""
	if kind == "restart" {
		lines = restart(configs.RestartOnFailure)
	}
	l := &trial{bench: newBench(t), table: m}
	l.must(os.WriteFile(filepath.Join(l.base, stepFile), nil, 0o600))
	// Of a name of its own, and so with a uid of its own: other kinds are tried meanwhile,
	// in another network, and a uid that is in use there is not free here.
	l.g = l.spec("victim-"+kind, "", nic("bridge", "queues = 2", "host_access = true", `addresses = ["192.0.2.11"]`, "pin = true",
		`bandwidth = { inbound = "1gbit", outbound = "1gbit" }`),
		"[[disk]]\npath = \"victim.qcow2\"\nsize = \"16MiB\"", "[stop]\ntimeout = \"500ms\"\nquit_timeout = \"500ms\"", lines)
	if kind == "start" || kind == "end" || kind == "adoption" { // the others have nothing to do with it, and one cannot be suspended with a share
		requireCompanions(t)
		l.rewrite(l.g, "tpm = true\nshare = [{path = \".\", tag = \"src\", readonly = true}]")
		l.g = mustLoad(t, l.g.Path)
	}
	l.disk = filepath.Join(l.specs, "victim.qcow2")
	switch kind { // the others' guests boot, and by UEFI that takes longer
	case "start":
		l.rewrite(l.g, "firmware = \"uefi\"\ndisplay = \"vnc\"")
		l.vars = filepath.Join(StateDir(l.base, l.g.Name), varsFile(l.g))
	case "adoption":
		l.rewrite(l.g, "display = \"vnc\"")
	}
	return l
}

// cell tries a step and a manner, and notes the verdict.
func (l *trial) cell(kind, step string, how manner, try func(how manner, faults ...fault) string, besides ...fault) {
	l.t.Helper()
	l.what = fmt.Sprintf("%s, %s: %s", kind, step, how)
	row := l.table.row(kind, step) // there in any case: the step is known
	if share := soakOr(1, cmp.Or(l.share, 3)); (l.tried+firstCell)%share == 0 {
		row.Verdicts[how] = try(how, append(besides, how.fault(step))...)
	}
	l.tried++
}

// wrong fails the test, but not the cells to come.
func (l *trial) wrong(format string, args ...any) string {
	l.t.Helper()
	l.t.Errorf("%s: %s", l.what, fmt.Sprintf(format, args...))
	return "WRONG"
}

// steps are the steps that supervisors come to during fn, each once, in order.
func (l *trial) steps(fn func()) (list []string) {
	l.t.Helper()
	l.newSteps()
	fn()
	return l.newSteps()
}

func (l *trial) newSteps() (list []string) {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join(l.base, stepFile))
	l.must(err)
	for _, step := range strings.Split(strings.TrimSuffix(string(text[l.read:]), "\n"), "\n") {
		if step != "" && !slices.Contains(list, step) {
			list = append(list, step)
			l.table.Seen[step] = true
		}
	}
	l.read = len(text)
	return list
}

// wantSteps makes sure that steps, which were seen, hold those of a list in the code.
func (l *trial) wantSteps(steps, listed []string) {
	l.t.Helper()
	for _, step := range listed {
		if !slices.Contains(steps, step) {
			l.t.Errorf("%s is in the code and was never come to: %s", step, strings.Join(steps, ", "))
		}
	}
}

func (l *trial) close() {
	l.t.Helper()
	l.newSteps()
	for _, pattern := range []string{filepath.Join(l.specs, ".*"), filepath.Join(l.base, l.g.Name, ".*")} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			l.t.Errorf("left behind: %s", left)
		}
	}
}

// again starts the guest, for good, makes sure that it is the one that it was,
// and ends it. It returns whether it was adopted, which then was to be in a state.
func (l *trial) again(want State) string {
	l.t.Helper()
	report, err := l.startSoon(l.g.Path)
	if err != nil {
		return l.wrong("the next start: %v", err)
	}
	l.sameMAC(report.Status)
	if !report.Adopted {
		return l.end("fresh")
	}
	if s := report.Status.State; s != want {
		l.wrong("adopted, but %s: it was to be %s", s, want)
	}
	return l.end("adopted")
}

func (l *trial) sameMAC(s Status) {
	l.t.Helper()
	mac := s.NICs[0].MAC
	if l.mac == "" {
		l.mac = mac
	}
	if mac != l.mac {
		l.wrong("the MAC is %s, was %s", mac, l.mac)
	}
}

// end ends the guest. The verdict is what it was, unless something is left that the
// next command does not repair: that is how a supervisor ends which had to be killed,
// because it did not answer in time.
func (l *trial) end(verdict string) string {
	l.t.Helper()
	err := l.lab.Host.Do(func() error { _, err := Kill(context.Background(), l.base, l.g.Name); return err })
	if err != nil && !errors.Is(err, ErrState) {
		return l.wrong("the end: %v", err)
	}
	left := l.left(3 * time.Second)
	if left != "" {
		l.t.Logf("%s: left to the next command:\n%s", l.what, left)
		l.must(l.lab.Host.Do(func() error { return RepairNetwork(context.Background()) }))
		left = l.left(3 * time.Second)
	}
	if left != "" {
		return l.wrong("left behind:\n%s", left)
	}
	return verdict
}

// startCells end a start at each of its steps.
func (l *trial) startCells() {
	var listed []string
	for _, s := range planFor(l.bench, l.g.Path).Steps {
		listed = append(listed, s.Name)
	}
	steps := l.steps(func() { l.mustStart(l.g, order{}) })
	l.end("")
	l.wantSteps(steps, listed)
	steps = steps[:slices.Index(steps, "run")+1]
	for i, step := range steps {
		for _, how := range manners {
			if how == qemuKilled && i < slices.Index(steps, "qemu start") {
				continue // there is none
			}
			l.cell("start", step, how, l.startOnce)
		}
	}
	// And so the undos of one that fails.
	l.must(errors.Join(removeFile(l.disk), removeFile(l.vars)))
	failing := fails.fault("commit")
	undos := l.steps(func() { l.setFault(failing); l.start(l.g, order{}); l.setFault() })
	l.left(3 * time.Second)
	undos = undos[slices.Index(undos, "commit")+1:]
	for i, step := range undos {
		for _, how := range manners {
			if how == qemuKilled && i >= slices.Index(undos, "undo qemu") {
				continue
			}
			l.cell("failed start", step, how, l.startOnce, failing)
		}
	}
}

// planFor is the plan of the spec as the lab's host would make it.
func planFor(b *bench, path string) *Plan {
	b.t.Helper()
	g := mustLoad(b.t, path)
	var p *Plan
	b.must(b.lab.Host.Do(func() (err error) {
		p, err = PlanFor(context.Background(), g, b.base, PlanOptions{})
		return err
	}))
	return p
}

func (l *trial) startOnce(how manner, faults ...fault) string {
	l.must(errors.Join(removeFile(l.disk), removeFile(l.vars))) // so that they are created
	l.setFault(faults...)
	_, err := l.start(l.g, order{})
	l.setFault()
	switch {
	case how == fails && err == nil: // after the commit
		if s := l.observe(l.g); s.State != StatePaused {
			return l.wrong("the guest is %s, want it there and paused", s.State)
		}
		return l.end("kept")
	case how == fails && !strings.Contains(err.Error(), errMade.Error()):
		return l.wrong("the start says: %v", err)
	}
	l.awaitUnlocked(l.g.Name)
	if how == killedBefore || how == killedAfter {
		return l.again(StateRunning)
	}
	patience := 3 * time.Second
	if len(faults) > 1 { // an undo has failed too, so that something stays
		patience = 300 * time.Millisecond
	}
	left, verdict := l.left(patience), "undone"
	switch {
	case err == nil: // after the commit
		verdict = "ended"
	case left+l.files() != "" && len(faults) == 1: // no undo has failed
		return l.wrong("left behind:\n%s", left+l.files())
	case left+l.files() != "":
		verdict = "repaired"
	}
	if got := l.again(StateRunning); got != "fresh" {
		return l.wrong("the next start: %s", got)
	}
	return verdict
}

// files lists what a start that was undone may not have left.
func (l *trial) files() string {
	list, _ := filepath.Glob(filepath.Join(l.base, l.g.Name, "*"))
	list = slices.DeleteFunc(list, func(path string) bool {
		if rec, err := guestDir(l.base, l.g.Name).readRecord(); err == nil && rec.Ended != nil && filepath.Base(path) == fileState {
			return true // an earlier life's
		}
		return slices.Contains([]string{fileLock, fileQEMULog, fileConsoleLog, fileCompanionLog, fileSupervisorLog}, filepath.Base(path))
	})
	for _, path := range []string{l.disk, l.vars} {
		if _, err := os.Stat(path); err == nil {
			list = append(list, path)
		}
	}
	return strings.Join(list, "\n")
}
