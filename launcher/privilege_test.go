package launcher

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmrun/launcher/systemdtest"
)

// lackPrivilege has the calling process go on without one more privilege.
func lackPrivilege(name string) error {
	if name == "" {
		return nil
	}
	less := slices.DeleteFunc(slices.Clone(privileges), func(p privilege) bool { return p.name == name })
	if done, err := hasShed(less); done || err != nil {
		return err
	}
	return beginAnew(less)
}

// Each privilege is taken from a supervisor in turn, and each time something
// fails that works with it.
func TestEachPrivilegeIsNeeded(t *testing.T) {
	b := newBench(t)
	theirs := filepath.Join(b.specs, "theirs.img")
	b.must(os.WriteFile(theirs, make([]byte, 1<<20), 0o600))
	b.must(os.Chown(theirs, 4242, 4242))
	requireCompanions(t)
	share := fmt.Sprintf("[[share]]\npath = %q\ntag = \"src\"", t.TempDir())
	type need struct {
		line  string // of the spec, in the end
		group string
		adopt bool   // a guest that runs already
		kill  bool   // which works so far
		want  string // what is said of it
	}
	needs := map[string]need{
		"CAP_NET_ADMIN":    {want: `net0 create: .* not permitted`},
		"CAP_NET_RAW":      {want: `nics watch: .* not permitted`},
		"CAP_SYS_ADMIN":    {want: `namespace create: .* not permitted`},
		"CAP_SYS_PTRACE":   {adopt: true, want: `tell whether .* permission denied`},
		"CAP_MKNOD":        {want: `net0 open: .* mknod: .* not permitted`},
		"CAP_SETUID":       {want: `qemu start: setresuid .* not permitted`},
		"CAP_SETGID":       {want: `qemu start: setgroups: .* not permitted`},
		"CAP_SETPCAP":      {want: `qemu start: drop capability .* not permitted`},
		"CAP_KILL":         {adopt: true, kill: true, want: `signal QEMU: operation not permitted`},
		"CAP_CHOWN":        {group: lent, want: `control listen: .* not permitted`},
		"CAP_FOWNER":       {line: share, want: `share0 start: .*CAP_FOWNER`},
		"CAP_SYS_CHROOT":   {line: share, want: `share0 start: .*CAP_SYS_CHROOT`},
		"CAP_DAC_OVERRIDE": {line: fmt.Sprintf("[[disk]]\npath = %q\nformat = \"raw\"", theirs), want: `theirs\.img: permission denied`},
	}
	for i, p := range privileges {
		t.Run(p.name, func(t *testing.T) {
			n, ok := needs[p.name]
			if !ok {
				t.Fatalf("nobody knows what it is needed for: to %s", p.why)
			}
			g := b.spec(fmt.Sprintf("lacks%d", i), "", n.line, nic("bridge"))
			if n.group != "" {
				b.rewrite(g, fmt.Sprintf("group = %q", n.group))
				g = mustLoad(t, g.Path)
			}
			if n.adopt {
				b.mustStart(g, order{Paused: true})
				b.killSupervisor(g.Name)
			}
			_, err := b.start(g, order{Paused: true, Lack: p.name})
			if n.kill && err == nil {
				err = b.killInVain(g.Name)
			}
			if err == nil || !regexp.MustCompile(n.want).MatchString(err.Error()) {
				t.Errorf("without it: %v, want %q", err, n.want)
			}
			if n.adopt || n.line != "" || n.group != "" || i == 0 { // the others are all like the first
				b.mustStart(g, order{Paused: true})
				b.kill(g.Name)
			}
		})
	}
}

// killInVain has a supervisor try to kill its guest, and returns what it logs.
func (b *bench) killInVain(name string) error {
	err := b.control(name).Execute(b.within(time.Second), CommandKill, nil, nil)
	if err == nil {
		return nil
	}
	log, err := os.ReadFile(guestDir(b.base, name).path(fileSupervisorLog))
	b.must(err)
	b.killSupervisor(name)
	return errors.New(string(log))
}

// statusOf reads a process's, or a thread's, status file (proc(5)). It is nil for one
// that has just ended.
func statusOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	f, err := os.Open(dir + "/status")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	status := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		status[key] = strings.Join(strings.Fields(value), " ")
	}
	return status
}

// checkShed wants every thread of a supervisor to hold its privileges and
// nothing else.
func checkShed(t *testing.T, pid int) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(threads) < 3 {
		t.Fatalf("threads %q, %v", threads, err)
	}
	all, none, seen := fmt.Sprintf("%016x", maskOf(privileges)), strings.Repeat("0", 16), 0
	want := map[string]string{"CapInh": none, "CapPrm": all, "CapEff": all, "CapBnd": all, "CapAmb": none, "NoNewPrivs": "1", "Umask": "0077"}
	for _, thread := range threads {
		status := statusOf(t, thread)
		if status == nil {
			continue
		}
		seen++
		for key, value := range want {
			if status[key] != value {
				t.Errorf("%s: %s is %q, want %q", thread, key, status[key], value)
			}
		}
	}
	if seen < 3 {
		t.Errorf("%d threads were seen", seen)
	}
}

// The whole life of a guest that uses everything, by the program as it is
// installed: in the background, adopted, and in the foreground.
func TestSupervisorShedsPrivileges(t *testing.T) {
	b := newBench(t)
	vmrun := systemdtest.BuildVmrun(t)
	b.must(exec.Command("qemu-img", "create", "-q", "-f", "qcow2", b.specs+"/base.qcow2", "16M").Run())
	g := b.spec("shed", "", fmt.Sprintf("[[disk]]\npath = %q\nbase = %q\n", b.specs+"/new.qcow2", b.specs+"/base.qcow2"),
		nic("bridge", `host_access = true`, `addresses = ["192.0.2.77"]`, `pin = true`, `bandwidth = { inbound = "10mbit", outbound = "10mbit" }`),
		nic("private"))
	const secret = "VMRUN_TEST_SECRET=hunter2"
	command := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(b.within(60*time.Second), vmrun, append([]string{"--run-dir", b.base}, args...)...)
		cmd.Env = append(os.Environ(), secret)
		return cmd
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := b.lab.Host.Run(command(args...)); err != nil {
			t.Fatalf("vmrun %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("start", "--paused", g.Path)
	status := b.observe(g)
	checkShed(t, status.Supervisor)
	for _, pid := range []int{status.Supervisor, status.PID} {
		for _, file := range []string{"environ", "cmdline"} {
			if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file)); err != nil || strings.Contains(string(text), "hunter2") {
				t.Errorf("%s of %d: %q, %v", file, pid, text, err)
			}
		}
	}
	run("nic", "shed", "attach", "parent=lab0", "mode=vepa")
	run("nic", "shed", "set", "net2", "trust=mac")

	b.killSupervisor(g.Name)
	foreground := command("run", g.Path)
	b.must(b.lab.Host.Start(foreground))
	b.eventually(20*time.Second, "adopted in the foreground", func() string {
		if pid := b.observe(g).Supervisor; pid != foreground.Process.Pid {
			return strconv.Itoa(pid)
		}
		return ""
	})
	checkShed(t, foreground.Process.Pid)
	run("kill", "shed")
	if err := foreground.Wait(); err != nil {
		t.Errorf("vmrun run: %v", err)
	}
	b.clean("after all")
}
