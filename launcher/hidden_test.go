package launcher

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These hide from whoever looks for the guest's QEMU, as soon as they are asked
// what guest they are.
func init() {
	children["qemu-closing"] = func() error {
		return runFake(func(f *fake) {
			_ = unix.Dup3(0, 2, 0) // its standard error is nobody's mark any more
			f.serve(sameID)
		})
	}
	children["qemu-headless"] = func() error {
		return runFake(func(f *fake) {
			endFirstThread()
			f.serve(sameID)
		})
	}
}

// endFirstThread makes the process look like a zombie.
func endFirstThread() {
	for range 20 { // of which one gets the first thread
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if unix.Gettid() == os.Getpid() {
				unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
			}
			time.Sleep(100 * time.Millisecond)
		}()
	}
	time.Sleep(200 * time.Millisecond)
}

// TestHiddenQEMU has QEMUs hide. They are found all the same, and ended by kill.
func TestHiddenQEMU(t *testing.T) {
	b := newBench(t)
	for _, kind := range []string{"qemu-closing", "qemu-headless"} {
		name := strings.TrimPrefix(kind, "qemu-")
		g := b.faked(name, kind, nic("bridge"))
		for _, recorded := range []bool{true, false} {
			pid := b.mustStart(g, order{Paused: true}).Status.PID
			b.killSupervisor(name)
			if recorded {
				if s := b.observe(g); s.PID != pid || s.Ended != nil {
					t.Errorf("%s: status: %+v", name, s)
				}
				if cleaned, err := Cleanup(b.within(5*time.Second), b.base); slices.Contains(cleaned, name) || err != nil {
					t.Errorf("%s: cleanup: %v, %v", name, cleaned, err)
				}
			} else {
				b.must(os.Remove(guestDir(b.base, name).path(fileState)))
			}
			if _, err := startTime(pid); err != nil {
				t.Fatalf("%s: it was ended: %v", name, err)
			}
			b.kill(name)
			if _, err := startTime(pid); !errors.Is(err, errGone) && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s, recorded %t: after kill: %v", name, recorded, err)
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			b.clean(name)
		}
	}
}

const markedUID = 1_899_999_999 // of no guest

func init() {
	mark := func() error { return syscall.Setgroups([]int{markedUID}) }
	children["marked"] = func() error { return errors.Join(mark(), nap()) }
	children["marked-headless"] = func() error {
		if err := mark(); err != nil {
			return err
		}
		endFirstThread()
		return nap()
	}
}

func nap() error { time.Sleep(time.Minute); return nil }

// TestUIDOfTheDead has processes with a guest's mark die that nobody waits for, as
// where process 1 is slow: what they had is free again. One that only looks dead has it.
func TestUIDOfTheDead(t *testing.T) {
	needRoot(t)
	until := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not %s", what)
			}
		}
	}
	for _, kind := range []string{"marked", "marked-headless"} {
		t.Run(kind, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+kind)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			state := func() string { return statusOf(t, fmt.Sprintf("/proc/%d", cmd.Process.Pid))["State"] }
			until("in use", func() bool { return uidInUse(markedUID) })
			if kind == "marked-headless" {
				until("without its first thread", func() bool { return strings.HasPrefix(state(), "Z") })
				if !uidInUse(markedUID) {
					t.Error("a process without its first thread is taken for dead")
				}
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			until("dead", func() bool { return strings.HasPrefix(state(), "Z") })
			until("free", func() bool { return !uidInUse(markedUID) })
		})
	}
}
