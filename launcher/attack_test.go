package launcher

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestInputThatHangs starts a guest whose kernel is a FIFO that nobody writes
// to. The start fails at once and is in nobody's way.
func TestInputThatHangs(t *testing.T) {
	b := newBench(t)
	files := b.files
	b.files.Kernel = t.TempDir() + "/fifo"
	if err := unix.Mkfifo(b.files.Kernel, 0o600); err != nil {
		t.Fatal(err)
	}
	g := b.spec("fifo", "", nic("bridge"))
	b.files = files
	_, err := b.start(g, order{})
	if err == nil || !strings.Contains(err.Error(), "fifo: not a regular file") {
		t.Errorf("a FIFO as kernel: %v", err)
	}
	b.clean("FIFO")
}

// TestKillWhereAdoptionFails kills guests that no supervisor could take over.
func TestKillWhereAdoptionFails(t *testing.T) {
	b := newBench(t)
	for name, spoil := range map[string]func(dir runDir, r Report){
		"no console": func(dir runDir, _ Report) { os.Remove(dir.path(fileSerial)) },
		"no monitor": func(dir runDir, _ Report) { os.Remove(dir.path(fileMonitor)) },
		"frozen, and its backlog full": func(_ runDir, r Report) {
			b.signalQEMU(r, syscall.SIGSTOP)
			for range 3 {
				b.mustStart(mustLoad(t, r.Status.Spec), order{})
				b.killSupervisor(r.Status.Name)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := b.spec("orphan", "", nic("bridge"))
			r := b.mustStart(g, order{Paused: true})
			b.killSupervisor(g.Name)
			spoil(guestDir(b.base, g.Name), r)
			b.kill(g.Name)
			b.clean(name)
		})
	}
}

// TestStoppedSupervisor tells a supervisor that hangs from a QEMU that does, and
// ends both.
func TestStoppedSupervisor(t *testing.T) {
	b := newBench(t)
	g := b.spec("hung", "", nic("bridge"))
	r := b.mustStart(g, order{Paused: true})
	if err := syscall.Kill(r.Status.Supervisor, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := Stop(t.Context(), b.base, g.Name); !errors.Is(err, ErrUnresponsive) || !strings.Contains(err.Error(), silentSupervisor) {
		t.Errorf("stop: %v", err)
	}
	b.kill(g.Name)
	b.clean("kill")
}

// TestReconnect has a QEMU that could not be adopted in time be heard again by
// itself: how the guest ends is not missed.
func TestReconnect(t *testing.T) {
	b := newBench(t)
	g := b.spec("slow", "", nic("bridge"))
	r := b.mustStart(g, order{Paused: true})
	b.killSupervisor(g.Name)
	b.signalQEMU(r, syscall.SIGSTOP)
	b.mustStart(g, order{})
	b.signalQEMU(r, syscall.SIGCONT)
	time.Sleep(redialEvery + 2*commandTimeout) // without a question that would reconnect
	b.signalQEMU(r, syscall.SIGTERM)
	s := b.waitState(g, StateEnded, 5*time.Second)
	if s.Ended.Reason != ReasonSignal {
		t.Errorf("outcome %+v: the monitor was not connected again", s.Ended)
	}
	b.clean("reconnect")
}

// TestRunDirectoryRemoved takes a running guest's directory away and starts
// another of its name: the first one's end leaves the second one's files alone.
func TestRunDirectoryRemoved(t *testing.T) {
	b := newBench(t)
	g := b.spec("twin", "", nic("bridge", `mac = "02:00:00:00:00:01"`))
	first := b.mustStart(g, order{Paused: true})
	if err := guestDir(b.base, g.Name).remove(); err != nil {
		t.Fatal(err)
	}
	second := b.mustStart(b.spec("twin", "", nic("bridge", `mac = "02:00:00:00:00:02"`)), order{Paused: true})
	b.signalQEMU(first, syscall.SIGKILL)
	time.Sleep(300 * time.Millisecond)
	if s := b.observe(g); s.State != StatePaused || s.PID != second.Status.PID {
		t.Errorf("the second guest is %s with pid %d, want paused with %d", s.State, s.PID, second.Status.PID)
	}
	b.kill(g.Name)
	b.clean("twin")
}

// TestForeignUUID refuses to run a guest under an identity that it could not be
// found by.
func TestForeignUUID(t *testing.T) {
	b := newBench(t)
	g := b.spec("masked", "", nic("bridge"))
	b.rewrite(g, `qemu_args = ["-uuid", "6a5bc0f2-7b1c-4b4e-9a3a-2f3f0a1b2c3d"]`)
	if _, err := b.start(mustLoad(t, g.Path), order{}); err == nil || !strings.Contains(err.Error(), "set uuid in the spec") {
		t.Errorf("start: %v", err)
	}
	b.clean("uuid")
}

// TestStartTakenBack cancels a start at different moments: either nothing is
// there, or the start has succeeded.
func TestStartTakenBack(t *testing.T) {
	b := newBench(t)
	g := b.spec("back", "", nic("bridge"))
	for delay := 0 * time.Millisecond; delay < 200*time.Millisecond; delay += 15 * time.Millisecond {
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		_, err := b.startWithin(ctx, g, order{Paused: true})
		cancel()
		if err == nil {
			b.kill(g.Name)
		}
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if _, alive := guestDir(b.base, g.Name).supervisor(); !alive {
				break
			}
		}
		b.clean("cancelled after " + delay.String())
	}
}
