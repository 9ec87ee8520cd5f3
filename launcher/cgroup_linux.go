package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// cgroup is where a QEMU with limits is: a child of one that was delegated to
// vmrun (cgroups(7); systemd's CGROUP_DELEGATION.md). The supervisor has to leave
// that for another child, because a cgroup that hands out controllers has no
// processes of its own.
type cgroup struct {
	Dir   string   `json:"dir"`             // the delegated one
	Added []string `json:"added,omitempty"` // controllers that its children have because of this guest
	Moved bool     `json:"moved,omitempty"` // the supervisor has left it, and did not start in the child

	Limits configs.Limits `json:"limits,omitzero"` // those that hold
}

// The names of its children.
const (
	qemuGroup       = "qemu"
	supervisorGroup = "supervisor"
)

func (c *cgroup) qemu() string       { return filepath.Join(c.Dir, qemuGroup) }
func (c *cgroup) supervisor() string { return filepath.Join(c.Dir, supervisorGroup) }

// check says what no vmrun has written of a cgroup.
func (c *cgroup) check() error {
	switch {
	case c == nil:
		return nil
	case !filepath.IsAbs(c.Dir) || filepath.Clean(c.Dir) != c.Dir:
		return fmt.Errorf("cgroup %q: not a path", c.Dir)
	}
	for _, name := range c.Added {
		if !slices.Contains([]string{"memory", "cpu", "pids"}, name) {
			return fmt.Errorf("cgroup %s: no limit needs the controller %q", c.Dir, name)
		}
	}
	return nil
}

// findDelegation looks for the cgroup that is this process's to divide.
func findDelegation() delegation {
	own, err := cgroupOf(os.Getpid(), "")
	if err != nil {
		return delegation{err: err}
	}
	d := delegation{dir: own}
	if !isDelegated(own) {
		d.dir, d.leaf = filepath.Dir(own), true // systemd.resource-control(5), DelegateSubgroup=
		if filepath.Base(own) != supervisorGroup || !isDelegated(d.dir) {
			return delegation{err: fmt.Errorf("vmrun's cgroup, %s, was not delegated to it", own)}
		}
	}
	for _, pid := range readWords(d.dir, "cgroup.procs") {
		if d.leaf || pid != strconv.Itoa(os.Getpid()) {
			return delegation{err: fmt.Errorf("process %s is in the cgroup %s too, which can have no children then", pid, d.dir)}
		}
	}
	d.controllers = readWords(d.dir, "cgroup.controllers")
	return d
}

// scopeDelegation is what a supervisor in the background will find, when it has
// left for a scope of its own.
func scopeDelegation() delegation {
	root, _, err := cgroupMount("")
	if err != nil {
		return delegation{err: err}
	}
	return delegation{dir: "a scope of its own", controllers: readWords(root, "cgroup.controllers")}
}

// isDelegated reads the mark that systemd puts on what it has handed over.
func isDelegated(dir string) bool {
	for _, attr := range []string{"trusted.delegate", "user.delegate"} {
		var value [2]byte
		if n, err := unix.Getxattr(dir, attr, value[:]); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}

// cgroupOf is the directory of a process's cgroup: the one of a controller that
// has a hierarchy of its own, or with "" that of cgroup2 (cgroups(7)).
func cgroupOf(pid int, controller string) (string, error) {
	mount, root, err := cgroupMount(controller)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		field := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(field) == 3 && slices.Contains(strings.Split(field[1], ","), controller) {
			return filepath.Join(mount, strings.TrimPrefix(field[2], root)), nil
		}
	}
	return "", fmt.Errorf("process %d is in no cgroup", pid)
}

// cgroupMount finds where a hierarchy is mounted, and which of its directories is.
func cgroupMount(controller string) (dir, root string, err error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(text)) {
		left, right, _ := strings.Cut(line, " - ")
		place, kind := strings.Fields(left), strings.Fields(right)
		if len(place) < 5 || len(kind) < 3 {
			continue
		}
		fits := kind[0] == "cgroup2"
		if controller != "" {
			fits = kind[0] == "cgroup" && slices.Contains(strings.Split(kind[2], ","), controller)
		}
		if fits {
			return place[4], strings.TrimSuffix(place[3], "/"), nil
		}
	}
	return "", "", errors.New("no cgroup2 is mounted")
}

// readWords reads a file of a cgroup; one that cannot be read has none.
func readWords(dir, file string) []string {
	text, _ := readBounded(filepath.Join(dir, file), 1<<16)
	return strings.Fields(string(text))
}

// readNumber reads a file that holds one, after a key or alone; 0 stands for "max"
// and for one that cannot be read.
func readNumber(dir, file, key string) uint64 {
	list := readWords(dir, file)
	at := 0
	if key != "" {
		if at = slices.Index(list, key) + 1; at == 0 {
			return 0
		}
	}
	if at >= len(list) {
		return 0
	}
	n, _ := strconv.ParseUint(list[at], 10, 64)
	return n
}

func writeGroup(dir, file, text string) error {
	return os.WriteFile(filepath.Join(dir, file), []byte(text), 0)
}

// createCgroup is recorded first: whatever of it is there when the supervisor
// dies, the next one removes.
func (l *life) createCgroup(context.Context) error {
	files := limitFiles(l.plan.Limits)
	c := &cgroup{Dir: l.plan.cgroup.dir, Moved: !l.plan.cgroup.leaf, Limits: l.plan.Limits}
	on := readWords(c.Dir, "cgroup.subtree_control")
	for _, f := range files {
		if !slices.Contains(on, f.controller) && !slices.Contains(c.Added, f.controller) {
			c.Added = append(c.Added, f.controller)
		}
	}
	l.undo.push("cgroup", c.remove)
	err := l.update(func(r *record) {
		if r.Cgroup = c; l.plan.Limits.Memory != 0 {
			r.Kills = &kills{File: filepath.Join(c.qemu(), memoryEvents), Host: r.Kills.Host}
		}
	})
	if err != nil {
		return err
	}
	return c.create(files)
}

func (c *cgroup) create(files []limit) error {
	if c.Moved {
		if err := c.moveOut(); err != nil {
			return err
		}
	}
	if err := os.Mkdir(c.qemu(), 0o755); err != nil {
		return err
	}
	return c.limit(files)
}

// moveOut puts the supervisor into a cgroup of its own.
func (c *cgroup) moveOut() error {
	if err := os.Mkdir(c.supervisor(), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return writeGroup(c.supervisor(), "cgroup.procs", strconv.Itoa(os.Getpid()))
}

// limit hands the controllers out and sets the limits.
func (c *cgroup) limit(files []limit) error {
	for _, name := range c.Added {
		if err := writeGroup(c.Dir, "cgroup.subtree_control", "+"+name); err != nil {
			return fmt.Errorf("controller %s: %w", name, err)
		}
	}
	for _, f := range files {
		if err := writeGroup(c.qemu(), f.file, f.value); err != nil {
			return err
		}
	}
	return nil
}

// enterCgroup moves QEMU, or a companion, to QEMU's cgroup, right after its start: a thread without
// privileges, as the one that starts it, may start nothing in another cgroup
// (clone3(2), CLONE_INTO_CGROUP). What QEMU has taken by then, a few pages for
// its libraries, is on the supervisor's account.
func (l *life) enterCgroup(p *process) error {
	c := l.snapshot().Cgroup
	if c == nil {
		return nil
	}
	return writeGroup(c.qemu(), "cgroup.procs", strconv.Itoa(p.id.PID))
}

// adoptCgroup takes over the cgroup of a guest that runs. A QEMU without limits
// moves to its supervisor's, where that is of a unit: what systemd then does to
// the unit meets both. One with limits would lose its account by that.
func (l *life) adoptCgroup(context.Context) error {
	c := l.snapshot().Cgroup
	l.undo.push("cgroup", c.remove)
	in, err := cgroupOf(l.qemu.id.PID, "")
	switch {
	case c == nil && err == nil:
		l.follow(in)
	case c == nil:
	case in != c.qemu():
		l.log.Warn("QEMU is not in the cgroup that limits it any more", "limits", c.qemu(), "is in", in, "error", err)
	default:
		if limits := c.limits(); limits != c.Limits {
			_ = l.update(func(r *record) { r.Cgroup = c.with(limits) }) // which has been logged
		}
		if err := c.resume(); err != nil { // which is no reason to do without a supervisor
			l.log.Warn("the guest's limits do not hold any more", "limits", limitWords(c.Limits), "error", err)
		}
	}
	return nil
}

// follow moves QEMU from a cgroup to the supervisor's, if that was delegated.
func (l *life) follow(in string) {
	own, err := cgroupOf(os.Getpid(), "")
	if err != nil || own == in || !isDelegated(own) {
		return
	}
	if err := writeGroup(own, "cgroup.procs", strconv.Itoa(l.qemu.id.PID)); err != nil {
		l.log.Warn("QEMU stays in its cgroup: what ends that ends the guest without asking it", "cgroup", in, "error", err)
		return
	}
	for _, c := range l.snapshot().Companions {
		if l.dir.isCompanion(c.Process.PID) {
			_ = writeGroup(own, "cgroup.procs", strconv.Itoa(c.Process.PID)) // ends with QEMU anyway
		}
	}
	_ = l.update(func(r *record) { r.Kills = countKills(os.Getpid()) }) // which has been logged
}

// limits are those that hold, which an older vmrun has left to the kernel to know.
func (c *cgroup) limits() configs.Limits {
	if c.Limits != (configs.Limits{}) {
		return c.Limits
	}
	s := c.status()
	return configs.Limits{Memory: configs.Size(s.MemoryMax), CPUs: s.CPUMax, Tasks: int(s.TasksMax)}
}

// with is the cgroup as others do not see it yet.
func (c *cgroup) with(l configs.Limits) *cgroup {
	changed := *c
	changed.Limits = l
	return &changed
}

// suspend takes the controllers off, and with them the limits.
func (c *cgroup) suspend() error {
	if !isDelegated(c.Dir) {
		return nil // it is none of ours any more
	}
	var errs []error
	for _, name := range c.Added {
		if err := writeGroup(c.Dir, "cgroup.subtree_control", "-"+name); noGroup(err) != nil {
			errs = append(errs, fmt.Errorf("controller %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// resume makes up for suspend. The supervisor of a unit has been started in the
// delegated cgroup itself, and makes room first.
func (c *cgroup) resume() error {
	on := readWords(c.Dir, "cgroup.subtree_control")
	if !slices.ContainsFunc(c.Added, func(name string) bool { return !slices.Contains(on, name) }) {
		return nil
	}
	if !isDelegated(c.Dir) {
		return fmt.Errorf("%s is not delegated any more", c.Dir)
	}
	if own, err := cgroupOf(os.Getpid(), ""); err == nil && own == c.Dir {
		if err := c.moveOut(); err != nil {
			return err
		}
	}
	return c.limit(limitFiles(c.Limits))
}

// remove makes the delegated cgroup as it was: systemd, for one, starts nothing
// in one that has children with controllers.
func (c *cgroup) remove() error {
	if c == nil || !isDelegated(c.Dir) { // which it is no more when it is gone
		return nil
	}
	if err := removeGroup(c.qemu()); err != nil {
		return err
	}
	for _, name := range c.Added {
		if err := writeGroup(c.Dir, "cgroup.subtree_control", "-"+name); noGroup(err) != nil {
			return err
		}
	}
	if !c.Moved {
		return nil
	}
	if own, err := cgroupOf(os.Getpid(), ""); err == nil && own == c.supervisor() {
		if err := writeGroup(c.Dir, "cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
			return err
		}
	}
	return removeGroup(c.supervisor())
}

// removeGroup removes a cgroup whose last process may just be ending.
func removeGroup(dir string) error {
	err := unix.Rmdir(dir)
	for deadline := time.Now().Add(time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); err = unix.Rmdir(dir) {
		time.Sleep(5 * time.Millisecond)
	}
	if noGroup(err) != nil {
		return fmt.Errorf("remove the cgroup %s: %w", dir, err)
	}
	return nil
}

// noGroup is err, unless it only says that the cgroup is gone already: systemd
// removes that of a scope together with what is below.
func noGroup(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// removeCgroup removes what is left of the cgroup of a guest that is no more.
func (r *record) removeCgroup() error {
	if r == nil || r.BootID != bootID() {
		return nil
	}
	return r.Cgroup.remove()
}

// LimitsStatus is what QEMU may take of the host, 0 for no limit, and what it does.
type LimitsStatus struct {
	Cgroup     string  `json:"cgroup"`     // its directory
	MemoryMax  uint64  `json:"memory_max"` // bytes
	Memory     uint64  `json:"memory"`
	MemoryPeak uint64  `json:"memory_peak,omitempty"` // since Linux 5.19
	CPUMax     float64 `json:"cpu_max"`               // CPUs
	CPUTime    float64 `json:"cpu_time"`              // seconds
	TasksMax   uint64  `json:"tasks_max"`
	Tasks      uint64  `json:"tasks,omitempty"`
}

// status asks the kernel, which knows of changes by others too.
func (c *cgroup) status() *LimitsStatus {
	if c == nil {
		return nil
	}
	dir := c.qemu()
	s := &LimitsStatus{
		Cgroup:     dir,
		MemoryMax:  readNumber(dir, "memory.max", ""),
		Memory:     readNumber(dir, "memory.current", ""),
		MemoryPeak: readNumber(dir, "memory.peak", ""),
		CPUTime:    float64(readNumber(dir, "cpu.stat", "usage_usec")) / 1e6,
		TasksMax:   readNumber(dir, "pids.max", ""),
		Tasks:      readNumber(dir, "pids.current", ""),
	}
	if quota := readWords(dir, "cpu.max"); len(quota) == 2 && quota[0] != "max" {
		q, _ := strconv.ParseFloat(quota[0], 64)
		if period, _ := strconv.ParseFloat(quota[1], 64); period > 0 {
			s.CPUMax = q / period
		}
	}
	return s
}

// bootSize is how large the files are that a guest boots from.
func bootSize(b configs.Boot) (n configs.Size) {
	for _, path := range []string{b.Kernel, b.Initrd} {
		if info, err := os.Stat(path); path != "" && err == nil {
			n += configs.Size(info.Size())
		}
	}
	return n
}
