package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmrun/configs"
)

// manner is a way in which a step is the last that is done.
type manner string

const (
	fails        manner = "fails"
	killedBefore manner = "killed before"
	killedAfter  manner = "killed after"
	qemuKilled   manner = "QEMU killed after"
)

var manners = []manner{fails, killedBefore, killedAfter, qemuKilled}

func (m manner) fault(step string) fault {
	switch m {
	case fails:
		return fault{"before", step, "fail"}
	case killedBefore:
		return fault{"before", step, "kill self"}
	case killedAfter:
		return fault{"after", step, "kill self"}
	}
	return fault{"after", step, "kill qemu"}
}

// matrix is what became of a guest for each step and manner. The verdicts:
//
//	undone    nothing is left, or all is as it was before
//	repaired  what was left, the next command has removed
//	fresh     the next start cleared up and started the guest anew
//	adopted   the guest runs on, and the next start took it over
//	kept      the guest runs on under its supervisor
//	finished  what was begun was brought to its end, by the same supervisor or the next
//	ended     the guest has ended in order
type matrix struct {
	rows []*row
	seen map[string]bool // the steps that any supervisor came to
}

type row struct {
	kind, step string
	verdicts   map[manner]string
}

// TestFaultMatrix makes every step of a guest's life the last one: it fails, or
// the supervisor is killed right before or after it, or QEMU right after. Then
// all is as it was, or the next command makes it so, and the guest starts again
// with the MAC that it had. The steps come from the plan, the lists of changes
// and what supervisors say of themselves, so none can go untested.
func TestFaultMatrix(t *testing.T) {
	table := &matrix{seen: map[string]bool{}}
	kinds := []struct {
		name string
		run  func(*trial)
	}{
		{"start", (*trial).startCells}, {"end", (*trial).endCells}, {"restart", (*trial).restartCells}, {"adoption", (*trial).adoptionCells},
		{"attach", (*trial).attachCells}, {"set", (*trial).setCells}, {"replug", (*trial).replugCells},
	}
	ran := 0
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			ran++
			began, before := time.Now(), table.cells()
			lines := ""
			if kind.name == "restart" {
				lines = restart(configs.RestartOnFailure)
			}
			l := table.newTrial(t, lines)
			kind.run(l)
			l.close()
			took, cells := time.Since(began), table.cells()-before
			t.Logf("%d cells in %.1f s, %.2f s each", cells, took.Seconds(), took.Seconds()/float64(cells))
		})
	}
	t.Logf("%d cells:\n%s", table.cells(), table)
	if ran < len(kinds) {
		return // by -run
	}
	for step := range table.seen {
		if !slices.ContainsFunc(table.rows, func(r *row) bool { return r.step == step }) {
			t.Errorf("%s is a step, and no row of the table", step)
		}
	}
}

func (m *matrix) cells() (n int) {
	for _, r := range m.rows {
		n += len(r.verdicts)
	}
	return n
}

func (m *matrix) String() string {
	var text strings.Builder
	line := func(words ...string) {
		text.WriteString(strings.TrimRight(fmt.Sprintf("%-18s %-22s %-10s %-14s %-13s %s", words[0], words[1], words[2], words[3], words[4], words[5]), " ") + "\n")
	}
	line("", "step", string(fails), string(killedBefore), string(killedAfter), string(qemuKilled))
	for _, r := range m.rows {
		words := []string{r.kind, r.step}
		for _, manner := range manners {
			verdict, ok := r.verdicts[manner]
			if !ok {
				verdict = "-"
			}
			words = append(words, verdict)
		}
		line(words...)
	}
	return text.String()
}

func (m *matrix) row(kind, step string) *row {
	for _, r := range m.rows {
		if r.kind == kind && r.step == step {
			return r
		}
	}
	r := &row{kind, step, map[manner]string{}}
	m.rows = append(m.rows, r)
	return r
}

// trial is where the cells of one kind are tried on one guest, that has everything.
type trial struct {
	*bench
	table *matrix
	g     *configs.Guest
	disk  string
	mac   string
	read  int    // of the file of steps
	what  string // the present cell
}

func (m *matrix) newTrial(t *testing.T, lines string) *trial {
	l := &trial{bench: newBench(t), table: m}
	l.must(os.WriteFile(filepath.Join(l.base, stepFile), nil, 0o600))
	l.g = l.spec("victim", "", nic("bridge", "queues = 2", "host_access = true", `addresses = ["192.0.2.11"]`, "pin = true",
		`bandwidth = { inbound = "1gbit", outbound = "1gbit" }`),
		"[[disk]]\npath = \"victim.qcow2\"\nsize = \"16MiB\"", "[stop]\ntimeout = \"500ms\"\nquit_timeout = \"500ms\"", lines)
	l.disk = filepath.Join(l.specs, "victim.qcow2")
	return l
}

// cell tries a step and a manner, and notes the verdict.
func (l *trial) cell(kind, step string, how manner, try func(how manner, faults ...fault) string, besides ...fault) {
	l.t.Helper()
	l.what = fmt.Sprintf("%s, %s: %s", kind, step, how)
	l.table.row(kind, step).verdicts[how] = try(how, append(besides, how.fault(step))...)
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
			l.table.seen[step] = true
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
	for _, pattern := range []string{filepath.Join(l.specs, ".*"), filepath.Join(l.base, "victim", ".*")} {
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

// end ends the guest. The verdict is what it was, unless something is left.
func (l *trial) end(verdict string) string {
	l.t.Helper()
	if _, err := Kill(context.Background(), l.base, l.g.Name); err != nil && !errors.Is(err, ErrState) {
		return l.wrong("the end: %v", err)
	}
	if left := l.left(3 * time.Second); left != "" {
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
	l.must(removeFile(l.disk))
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
	l.must(removeFile(l.disk)) // so that it is created
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
	verdict := "undone"
	if left := l.left(300*time.Millisecond) + l.files(); left != "" {
		verdict = "repaired"
		if len(faults) == 1 { // no undo has failed
			return l.wrong("left behind:\n%s", left)
		}
	}
	if err == nil {
		verdict = "ended"
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
		return slices.Contains([]string{fileLock, fileQEMULog, fileConsoleLog, fileSupervisorLog}, filepath.Base(path))
	})
	if _, err := os.Stat(l.disk); err == nil {
		list = append(list, l.disk)
	}
	return strings.Join(list, "\n")
}
