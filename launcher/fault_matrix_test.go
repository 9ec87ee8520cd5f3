package launcher

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmrun/netsetup/nettest"
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
	Rows    []*row
	Seen    map[string]bool // the steps that any supervisor came to
	Figures []string
}

type row struct {
	Kind, Step string
	Verdicts   map[manner]string
}

// Kinds of cells, in two shares that take about as long as each other.
var (
	kinds = map[string]func(*trial){
		"start": (*trial).startCells, "end": (*trial).endCells, "restart": (*trial).restartCells,
		"adoption": (*trial).adoptionCells, "attach": (*trial).attachCells, "set": (*trial).setCells,
		"replug": (*trial).replugCells, "suspend": (*trial).suspendCells,
	}
	shares = [][]string{{"start", "attach", "suspend"}, {"end", "restart", "adoption", "set", "replug"}}
)

// TestFaultMatrix makes every step of a guest's life the last one: it fails, or
// the supervisor is killed right before or after it, or QEMU right after. Then
// all is as it was, or the next command makes it so, and the guest starts again
// with the MAC that it had. The steps come from the plan, the lists of changes
// and what supervisors say of themselves, so none can go untested.
//
// One kind alone, here for example set: VMRUN_TEST_TABLE=/dev/null go test -v
// -run TestFaultMatrix/set.
func TestFaultMatrix(t *testing.T) {
	nettest.Root(t)
	requireQEMU(t)
	if file := os.Getenv(tableEnv); file != "" {
		table := tryAll(t)
		if !t.Failed() { // what failed is to be the last words
			t.Logf("%d cells:\n%s", table.cells(), table)
		}
		text, err := json.Marshal(table)
		if err == nil {
			err = os.WriteFile(file, text, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
		return
	}
	table := &matrix{Seen: map[string]bool{}}
	parts := make([]matrix, len(shares))
	var wg sync.WaitGroup
	for i, share := range shares {
		wg.Go(func() { parts[i] = elsewhere(t, share) })
	}
	wg.Wait()
	for _, part := range parts {
		table.Rows, table.Figures = append(table.Rows, part.Rows...), append(table.Figures, part.Figures...)
		maps.Copy(table.Seen, part.Seen)
	}
	if !t.Failed() {
		t.Logf("%d cells:\n%s", table.cells(), table)
	}
	for step := range table.Seen {
		if !slices.ContainsFunc(table.Rows, func(r *row) bool { return anyNIC(r.Step) == anyNIC(step) }) {
			t.Errorf("%s is a step, and no row of the table", step)
		}
	}
}

// anyNIC is a step whichever NIC it is of.
func anyNIC(step string) string { return digits.ReplaceAllString(step, "N") }

// tableEnv names a file for what a process has found of its share.
const tableEnv = "VMRUN_TEST_TABLE"

// elsewhere tries kinds of cells in a process of its own, because a snapshot
// answers for all that its process has to do with.
func elsewhere(t *testing.T, share []string) (part matrix) {
	runtime.LockOSThread() // Pdeathsig means this thread's death
	defer runtime.UnlockOSThread()
	file := filepath.Join(t.TempDir(), "table")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFaultMatrix$/^("+strings.Join(share, "|")+")$", "-test.timeout=15m")
	cmd.Env = append(os.Environ(), tableEnv+"="+file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if said, err := cmd.CombinedOutput(); err != nil { // marked, as tests of another process
		t.Errorf("%s: %v\n| %s", share, err, strings.ReplaceAll(string(said), "\n", "\n| "))
	}
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &part)
	}
	if err != nil {
		t.Error(err)
	}
	return part
}

// tryAll tries all kinds of cells, or those that -run names.
func tryAll(t *testing.T) *matrix {
	table := &matrix{Seen: map[string]bool{}}
	for _, kind := range slices.Concat(shares...) {
		t.Run(kind, func(t *testing.T) {
			began, before := time.Now(), table.cells()
			l := table.newTrial(t, kind)
			kinds[kind](l)
			l.close()
			took, cells := time.Since(began).Seconds(), table.cells()-before
			table.Figures = append(table.Figures, fmt.Sprintf("%s: %d cells in %.1f s, %.2f s each", kind, cells, took, took/float64(cells)))
		})
	}
	return table
}

func (m *matrix) cells() (n int) {
	for _, r := range m.Rows {
		n += len(r.Verdicts)
	}
	return n
}

func (m *matrix) String() string {
	var text strings.Builder
	line := func(words ...string) {
		text.WriteString(strings.TrimRight(fmt.Sprintf("%-18s %-22s %-10s %-14s %-13s %s", words[0], words[1], words[2], words[3], words[4], words[5]), " ") + "\n")
	}
	line("", "step", string(fails), string(killedBefore), string(killedAfter), string(qemuKilled))
	for _, r := range m.Rows {
		words := []string{r.Kind, r.Step}
		for _, manner := range manners {
			verdict, ok := r.Verdicts[manner]
			if !ok {
				verdict = "-"
			}
			words = append(words, verdict)
		}
		line(words...)
	}
	return text.String() + strings.Join(m.Figures, "\n")
}

func (m *matrix) row(kind, step string) *row {
	for _, r := range m.Rows {
		if r.Kind == kind && r.Step == step {
			return r
		}
	}
	r := &row{kind, step, map[manner]string{}}
	m.Rows = append(m.Rows, r)
	return r
}
