package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup/nettest"
)

// newMachine is a bench on a machine of the test's own, whose guests have no
// kernel: an emulator in an emulator takes too long to boot one.
func newMachine(t *testing.T) *bench {
	t.Helper()
	nettest.InGuest(t)
	return newBareBench(t)
}

// empty is the spec of a guest that has nothing to boot, with further lines. A
// machine that runs from its initramfs has no root to leave (pivot_root(2)).
func (b *bench) empty(name string, lines ...string) *configs.Guest {
	b.t.Helper()
	path := filepath.Join(b.specs, name+".toml")
	b.must(os.WriteFile(filepath.Join(b.specs, "empty.raw"), make([]byte, 1<<20), 0o600))
	text := "uuid = \"3f1c9d62-7a0e-4b57-9c35-2e8d41f6ab90\"\nmemory = \"64MiB\"\naccel = \"tcg\"\n" +
		"[confine]\nroot = false\n[[disk]]\npath = \"empty.raw\"\nreadonly = true\n" + strings.Join(lines, "\n") + "\n"
	b.must(os.WriteFile(path, []byte(text), 0o600))
	return mustLoad(b.t, path)
}

// newUnit makes a cgroup that is delegated as systemd does it, with all that the
// kernel can limit.
func newUnit(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("cgroup2", root, "cgroup2", 0, ""))
	t.Cleanup(func() { must(unix.Unmount(root, unix.MNT_DETACH)) })
	must(writeGroup(root, "cgroup.subtree_control", "+memory +cpu +pids"))
	unit := filepath.Join(root, "web1.service")
	must(os.Mkdir(unit, 0o755))
	t.Cleanup(func() { must(removeGroup(unit)) })
	must(unix.Setxattr(unit, "trusted.delegate", []byte("1"), 0))
	return unit
}

// below are the cgroups below one, and what controllers they have of it.
func below(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return append(names, readWords(dir, "cgroup.subtree_control")...)
}

func TestLimits(t *testing.T) {
	b := newMachine(t)
	unit := newUnit(t)
	limits := []string{"[limits]", `memory = "96MiB"`, "cpus = 1.5", "tasks = 300"}
	g := b.empty("web1", limits...)
	qemu := filepath.Join(unit, qemuGroup)
	clean := func(what string) {
		t.Helper()
		if got := below(t, unit); len(got) > 0 {
			t.Errorf("%s: left behind: %q", what, got)
		}
		b.clean(what)
	}
	b.mustStart(g, order{Paused: true, Cgroup: unit})
	s := b.observe(g)
	for _, at := range []struct {
		pid  int
		want string
	}{{s.PID, qemu}, {s.Supervisor, filepath.Join(unit, supervisorGroup)}} {
		if got, err := cgroupOf(at.pid, ""); got != at.want {
			t.Errorf("process %d is in %s, want %s; %v", at.pid, got, at.want, err)
		}
	}
	if diff := cmp.Diff([]string{"qemu", "supervisor", "cpu", "memory", "pids"}, below(t, unit)); diff != "" {
		t.Errorf("the unit (-want +got):\n%s", diff)
	}
	got := map[string]string{}
	for _, file := range []string{"memory.max", "memory.oom.group", "cpu.max", "pids.max"} {
		got[file] = strings.Join(readWords(qemu, file), " ")
	}
	want := map[string]string{"memory.max": "100663296", "memory.oom.group": "1", "cpu.max": "150000 100000", "pids.max": "300"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
	// Which is why the supervisor leaves, and a unit's next one cannot begin there.
	if err := writeGroup(unit, "cgroup.procs", strconv.Itoa(os.Getpid())); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a process beside the groups: %v, want EBUSY", err)
	}
	l := s.Limits
	if l == nil || s.Unlimited != "" || l.Cgroup != qemu || l.MemoryMax != 96<<20 || l.CPUMax != 1.5 || l.TasksMax != 300 ||
		l.Memory < 8<<20 || l.MemoryPeak < l.Memory || l.CPUTime <= 0 || l.Tasks < 2 {
		t.Errorf("status %+v, %q", l, s.Unlimited)
	}

	// Who adopts it is elsewhere, and ends what the dead one has begun.
	b.killSupervisor(g.Name)
	if r := b.mustStart(g, order{Paused: true}); !r.Adopted || b.observe(g).Limits == nil {
		t.Errorf("not adopted, or not with its limits: %+v", r)
	}
	b.must(writeGroup(qemu, "memory.max", "4M")) // the kernel kills at once
	s = b.waitState(g, StateEnded, 30*time.Second)
	words := `QEMU was killed for want of memory: it needed more than the 4MiB of limits.memory: raise that, or use "auto"`
	if s.Ended.Reason != ReasonOOM || s.Ended.Detail != words || s.Limits != nil {
		t.Errorf("outcome %+v, limits %+v, want %s: %s", s.Ended, s.Limits, ReasonOOM, words)
	}
	clean("adopted, killed")

	// A start that meets the limit says so. Here systemd has made the supervisor's
	// place (systemd.resource-control(5), DelegateSubgroup=).
	leaf := filepath.Join(unit, supervisorGroup)
	b.must(os.Mkdir(leaf, 0o755))
	g = b.empty("big", limits...)
	b.rewrite(g, `qemu_args = ["-object", "memory-backend-ram,id=big,size=512M,prealloc=on"]`)
	if _, err := b.start(mustLoad(t, g.Path), order{Paused: true, Cgroup: leaf}); err == nil || !strings.Contains(err.Error(), "more than the 96MiB of limits.memory") {
		t.Errorf("a QEMU that is too large at once: %v", err)
	}
	if diff := cmp.Diff([]string{supervisorGroup}, below(t, unit)); diff != "" {
		t.Errorf("what systemd had made (-want +got):\n%s", diff)
	}
	b.must(removeGroup(leaf))
	clean("too large")

	// A start that is cut short right after it, too.
	g = b.empty("web1", limits...)
	if _, err := b.start(g, order{Cgroup: unit, Fault: fault{When: "after", Step: "cgroup create", Do: "kill self"}}); err == nil {
		t.Error("a killed supervisor started a guest")
	}
	if _, err := Cleanup(context.Background(), b.base); err != nil {
		t.Error(err)
	}
	clean("cut short")

	// Of one whose supervisor and QEMU are killed the next command tells and clears up.
	r := b.mustStart(g, order{Paused: true, Cgroup: unit})
	b.killSupervisor(g.Name)
	b.must(writeGroup(qemu, "memory.max", "4M"))
	s = b.waitState(g, StateEnded, 10*time.Second)
	if s.Ended.Reason != ReasonOOM {
		t.Errorf("nobody watched: outcome %+v", s.Ended)
	}
	if names, err := Cleanup(context.Background(), b.base); err != nil || !slices.Contains(names, "web1") {
		t.Errorf("cleanup of pid %d: %q, %v", r.Status.PID, names, err)
	}
	clean("cleaned up")
}

// A unit whose supervisor was killed can be started again, and then its guest's
// limits hold again.
func TestLimitsReturn(t *testing.T) {
	b := newMachine(t)
	unit := newUnit(t)
	g := b.empty("web1", "[limits]", `memory = "96MiB"`, "tasks = 300")
	dir := guestDir(b.base, g.Name)
	qemu := filepath.Join(unit, qemuGroup)
	b.mustStart(g, order{Paused: true, Cgroup: unit})
	b.killSupervisor(g.Name)
	if _, err := b.start(g, order{Paused: true, Cgroup: unit}); err == nil {
		t.Fatal("a supervisor began beside the groups")
	}
	b.must(dir.clearWay())
	if diff := cmp.Diff([]string{qemuGroup, supervisorGroup}, below(t, unit)); diff != "" {
		t.Errorf("the way is not clear (-want +got):\n%s", diff)
	}
	b.must(dir.clearWay()) // which changes no more
	if r := b.mustStart(g, order{Paused: true, Cgroup: unit}); !r.Adopted {
		t.Errorf("not adopted: %+v", r)
	}
	s := b.observe(g)
	if in, err := cgroupOf(s.Supervisor, ""); in != filepath.Join(unit, supervisorGroup) {
		t.Errorf("the supervisor is in %s, %v", in, err)
	}
	if l := s.Limits; l == nil || l.Cgroup != qemu || l.MemoryMax != 96<<20 || l.TasksMax != 300 || l.Tasks < 2 {
		t.Errorf("limits %+v", l)
	}
	if all := readNumber(unit, "memory.current", ""); s.Limits.Memory > all/2 {
		t.Errorf("of %d bytes the limit counts %d, and so what QEMU had before: the README says otherwise", all, s.Limits.Memory)
	}
	b.kill(g.Name)
	if got := below(t, unit); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
	b.clean("returned")
}

// Which cgroup is vmrun's to divide.
func TestDelegation(t *testing.T) {
	b := newMachine(t)
	unit := newUnit(t)
	self := strconv.Itoa(os.Getpid())
	enter := func(dir string) { b.must(writeGroup(dir, "cgroup.procs", self)) }
	leaf := filepath.Join(unit, supervisorGroup)
	b.must(os.Mkdir(leaf, 0o755))
	defer func() {
		enter(filepath.Dir(unit))
		b.must(removeGroup(leaf))
	}()
	find := func(what string, want delegation, wantErr string) {
		t.Helper()
		got := findDelegation()
		slices.Sort(got.controllers)
		if got.dir != want.dir || got.leaf != want.leaf || !slices.Equal(got.controllers, want.controllers) || fmt.Sprint(got.err) != wantErr {
			t.Errorf("%s: %+v, want %+v, %s", what, got, want, wantErr)
		}
	}
	root := filepath.Dir(unit)
	enter(root)
	find("at the root", delegation{}, "vmrun's cgroup, "+root+", was not delegated to it")
	all := []string{"cpu", "memory", "pids"}
	enter(unit)
	find("in a unit", delegation{dir: unit, controllers: all}, "<nil>")
	enter(leaf)
	find("in a unit's subgroup", delegation{dir: unit, leaf: true, controllers: all}, "<nil>")

	enter(unit)
	other := exec.Command("ip", "-batch", "-")
	in, err := other.StdinPipe()
	b.must(err)
	b.must(other.Start())
	find("with others", delegation{}, fmt.Sprintf("process %d is in the cgroup %s too, which can have no children then", other.Process.Pid, unit))
	b.must(in.Close())
	b.must(other.Wait())
	b.must(unix.Removexattr(unit, "trusted.delegate"))
	find("in a unit without Delegate=yes", delegation{}, "vmrun's cgroup, "+unit+", was not delegated to it")
	b.must(unix.Setxattr(unit, "user.delegate", []byte("1"), 0)) // as systemd marks it for those without privileges
	find("in a unit of a user's", delegation{dir: unit, controllers: all}, "<nil>")
}

// What cannot be limited is started all the same, and says so.
func TestLimitsNotGiven(t *testing.T) {
	b := newBench(t)
	g := b.spec("free", "", "[limits]", `memory = "auto"`)
	r := b.mustStart(g, order{Paused: true}) // in the test's own cgroup, which is not the supervisor's alone
	s := b.observe(g)
	if s.Limits != nil || !strings.HasPrefix(s.Unlimited, "limits: nothing limits QEMU: ") || !strings.HasSuffix(s.Unlimited, giveCgroup) || !slices.Contains(r.Warnings, s.Unlimited) {
		t.Errorf("warnings %q, status %q, %+v", r.Warnings, s.Unlimited, s.Limits)
	}
	p, err := PlanFor(context.Background(), g, b.base, PlanOptions{})
	b.must(err)
	if !hasSystemd() && p.Unlimited != s.Unlimited {
		t.Errorf("the plan says %q, the start %q", p.Unlimited, s.Unlimited)
	}
	b.kill(g.Name)
	b.clean("free")
}

// What an older vmrun did not write down of limits is the kernel's to know.
func TestLimitsOfOldRecord(t *testing.T) {
	c := &cgroup{Dir: t.TempDir()}
	if got := c.limits(); got != (configs.Limits{}) {
		t.Errorf("without a cgroup: %+v", got)
	}
	for file, text := range map[string]string{"memory.max": "104857600\n", "cpu.max": "150000 100000\n", "pids.max": "max\n"} {
		path := filepath.Join(c.qemu(), file)
		if err := errors.Join(os.MkdirAll(c.qemu(), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	want := configs.Limits{Memory: 100 << 20, CPUs: 1.5}
	if got := c.limits(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := c.with(want).limits(); got != want || c.Limits != (configs.Limits{}) {
		t.Errorf("%+v, %+v", got, c)
	}
}
