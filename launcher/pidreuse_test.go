package launcher

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/netsetup/nettest"
)

// ownPIDsEnv marks the process that has a PID namespace of its own, and a mount
// namespace, by the mount namespace that it has left.
const ownPIDsEnv = "VMRUN_TEST_OWN_PIDS"

// TestPIDsAreReused gives the pids of dead QEMUs and supervisors to strangers, in
// a PID namespace where nobody else takes any. Nothing that vmrun does is done to
// a stranger.
func TestPIDsAreReused(t *testing.T) {
	nettest.Root(t)
	mounts, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	if left := os.Getenv(ownPIDsEnv); left == "" || left == mounts {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
			os.Args[0], "-test.run=^TestPIDsAreReused$", "-test.v")
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, reapedEnv+"=") }), ownPIDsEnv+"="+mounts)
		out, err := cmd.CombinedOutput()
		t.Logf("in a PID namespace:\n%s", out)
		if err != nil {
			t.Error(err)
		}
		return
	}
	hideTaps(t)
	b := newBench(t)
	g := b.spec("mortal", "", nic("bridge"))
	dir := guestDir(b.base, g.Name)
	// died is a stranger with the pid of the guest's QEMU, which has died unseen.
	died := func() (stranger int) {
		t.Helper()
		r := b.mustStart(g, order{Paused: true})
		b.killSupervisor(g.Name)
		b.dies(r.Status.PID)
		return startAs(t, r.Status.PID)
	}
	lives := func(what string, stranger int) {
		t.Helper()
		if _, err := startTime(stranger); err != nil {
			t.Errorf("%s ended a stranger", what)
		}
	}

	stranger := died()
	if s := b.observe(g); s.State != StateEnded || s.Ended.Reason != ReasonUnknown {
		t.Errorf("status: %+v", s)
	}
	if _, err := Stop(t.Context(), b.base, g.Name); !errors.Is(err, ErrState) {
		t.Errorf("stop: %v", err)
	}
	lives("stop", stranger)
	if _, err := Kill(t.Context(), b.base, g.Name); !errors.Is(err, ErrState) {
		t.Errorf("kill: %v", err)
	}
	lives("kill", stranger)
	if r := b.mustStart(g, order{Paused: true}); r.Adopted || r.Status.PID == stranger {
		t.Errorf("start: %+v", r)
	}
	lives("start", stranger)
	b.kill(g.Name)
	lives("kill of the next", stranger)

	stranger = died()
	if cleaned, err := Cleanup(t.Context(), b.base); err != nil || !slices.Equal(cleaned, []string{g.Name}) {
		t.Errorf("cleanup: %q, %v", cleaned, err)
	}
	lives("cleanup", stranger)

	// A supervisor that is no parent of QEMU's, and misses its end.
	pid := b.mustStart(g, order{Paused: true}).Status.PID
	b.killSupervisor(g.Name)
	b.must(syscall.Kill(b.mustStart(g, order{}).Status.Supervisor, syscall.SIGSTOP))
	b.dies(pid)
	stranger = startAs(t, pid)
	if s := b.observe(g); s.State == StateRunning || s.State == StatePaused {
		t.Errorf("status of a guest that has died unseen: %+v", s)
	}
	b.kill(g.Name)
	lives("kill of a guest that has died unseen", stranger)

	// A stranger with the supervisor's pid, which the lock file still names.
	r := b.mustStart(g, order{Paused: true})
	b.killSupervisor(g.Name)
	_, err = syscall.Wait4(r.Status.Supervisor, nil, 0, nil) // this process has started it
	b.must(err)
	stranger = startAs(t, r.Status.Supervisor)
	if s := b.observe(g); s.Supervisor != 0 || s.PID != r.Status.PID {
		t.Errorf("status without a supervisor: %+v", s)
	}
	b.stop(g, RungQuit)
	lives("stop without a supervisor", stranger)
	if pid, alive := dir.supervisor(); alive {
		t.Errorf("%d is a supervisor", pid)
	}
}

// hideTaps gives this mount namespace a /dev without the taps of others, whom it
// cannot see to tell whose they are.
func hideTaps(t *testing.T) {
	t.Helper()
	err := unix.Mount("dev", "/dev", "tmpfs", 0, "")
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "random": 8, "urandom": 9} {
		err = errors.Join(err, unix.Mknod("/dev/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// dies ends a QEMU by its pid and waits until that is free.
func (b *bench) dies(pid int) {
	b.t.Helper()
	b.must(syscall.Kill(pid, syscall.SIGKILL))
	b.eventually(5*time.Second, "the pid is free", func() string {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			return errText(err) + " for a signal"
		}
		return ""
	})
}
