package launcher

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startPlain starts a program with nothing open; it ends with the test.
func startPlain(t testing.TB, path string, args ...string) *process {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	child, err := startProcess(path, args, []*os.File{null, null, null})
	if err != nil {
		t.Fatal(err)
	}
	p, err := watchChild(child)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func awaitDone(t testing.TB, p *process) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		t.Fatalf("pid %d is not done", p.id.PID)
	}
}

func TestExitIsKnown(t *testing.T) {
	for _, tt := range []struct {
		script string
		want   syscall.WaitStatus
	}{{"exit 0", 0}, {"exit 7", 7 << 8}, {"kill -9 $$", 9}, {"kill -SEGV $$", 11}} {
		t.Run(tt.script, func(t *testing.T) {
			p := startPlain(t, "/bin/sh", "-c", tt.script)
			awaitDone(t, p)
			if got := p.exit.status &^ 0x80; !p.exit.known || got != tt.want {
				t.Errorf("known %t, status %#x; want %#x", p.exit.known, got, tt.want)
			}
			if err := p.signal(unix.SIGTERM); err != nil {
				t.Errorf("signal to a process that is gone: %v", err)
			}
			if err := p.kill(); err != nil {
				t.Errorf("kill of a process that is gone: %v", err)
			}
		})
	}
}

func TestStartProcessFails(t *testing.T) {
	if p, err := startProcess("/nonexistent/qemu", nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, %v", p, err)
	}
}

func TestFindProcess(t *testing.T) {
	p := startPlain(t, "/bin/sleep", "60")
	found, err := findProcess(p.id)
	if err != nil || found.id != p.id {
		t.Fatalf("%+v, %v; want %+v", found, err, p.id)
	}
	select {
	case <-found.done:
		t.Fatal("done while it lives")
	case <-time.After(50 * time.Millisecond):
	}
	for _, id := range []processID{{PID: p.id.PID, Start: p.id.Start + 1}, {PID: p.id.PID, Start: 1}, {PID: 0, Start: 1}, {PID: -1}, {PID: 1 << 30, Start: 1}} {
		if other, err := findProcess(id); !errors.Is(err, errGone) {
			t.Errorf("%+v: %+v, %v; want errGone", id, other, err)
		}
	}
	if err := found.kill(); err != nil {
		t.Fatal(err)
	}
	awaitDone(t, found)
	awaitDone(t, p)
	if found.exit.known {
		t.Error("the exit of somebody else's child is known")
	}
	if _, err := findProcess(p.id); !errors.Is(err, errGone) {
		t.Errorf("after its end: %v", err)
	}
}

// A pid that was given to another process does not stand for the first.
func TestReusedPIDIsToldApart(t *testing.T) {
	needRoot(t)
	first := startPlain(t, "/bin/true")
	awaitDone(t, first)
	second := startAs(t, first.id.PID)
	if _, err := findProcess(first.id); !errors.Is(err, errGone) {
		t.Errorf("the process of %+v was found again as %+v: %v", first.id, second, err)
	}
	rec := &record{BootID: bootID(), QEMU: first.id}
	if rec.alive() {
		t.Error("a record's QEMU is alive through a stranger")
	}
	if err := first.signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(second, 0); err != nil {
		t.Errorf("the stranger was killed: %v", err)
	}
}

// startAs starts a process with a pid that is free (clone3(2), set_tid) and a
// start time that is another.
func startAs(t *testing.T, pid int) int {
	t.Helper()
	time.Sleep(30 * time.Millisecond) // the clock of start times ticks every 10 ms
	for range 20 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			lack(t, "cannot choose a pid: the kernel needs CONFIG_CHECKPOINT_RESTORE")
		}
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		got := cmd.Process.Pid
		if got == pid {
			t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
			return pid
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	t.Skip("others start too many processes at the same time: run it alone")
	return 0
}

// A process that has ended and that nobody has waited for is gone.
func TestZombieIsGone(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	start, err := startTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	watched, err := findProcess(processID{PID: pid, Start: start})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	awaitDone(t, watched) // though nobody has reaped it
	if _, err := findProcess(processID{PID: pid, Start: start}); !errors.Is(err, errGone) {
		t.Errorf("%v, want errGone", err)
	}
	if (&record{BootID: bootID(), QEMU: processID{PID: pid, Start: start}}).alive() {
		t.Error("alive")
	}
	cmd.Wait()
}

func TestStartTimeOfOddNames(t *testing.T) {
	for _, name := range []string{"plain", "with blank", "a) R 1 1 1", "((", ") Z 1"} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.Symlink("/bin/sleep", path); err != nil {
			t.Fatal(err)
		}
		p := startPlain(t, path, "60")
		deadline := time.Now().Add(5 * time.Second)
		for { // until exec has given it its name
			if start, err := startTime(p.id.PID); err != nil || start != p.id.Start {
				t.Fatalf("%q: %d, %v; want %d", name, start, err, p.id.Start)
			}
			if comm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.id.PID), "comm")); err == nil && string(comm) == name+"\n" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%q: never has its name", name)
			}
		}
	}
	if start, err := startTime(os.Getpid()); err != nil || start == 0 {
		t.Errorf("of ourselves: %d, %v", start, err)
	}
}

// A signal that comes while the process ends hits it or nobody.
func TestSignalsRaceWithTheEnd(t *testing.T) {
	for range 30 {
		p := startPlain(t, "/bin/true")
		found, err := findProcess(p.id)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 50 {
					if err := p.signal(unix.SIGCONT); err != nil {
						t.Error(err)
					}
					if found != nil {
						if err := found.signal(unix.SIGCONT); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		awaitDone(t, p)
		if err == nil {
			awaitDone(t, found)
		}
	}
}

func TestFindOrphan(t *testing.T) {
	d := newRunDir(t)
	if err := d.make(); err != nil {
		t.Fatal(err)
	}
	if _, err := findOrphan(d); !errors.Is(err, errGone) {
		t.Errorf("without a log: %v", err)
	}
	log, err := os.Create(d.path(fileQEMULog)) // the mark of a QEMU that an earlier vmrun has started
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	wantOrphanBy(t, d, log)
	if err := unix.Mkfifo(d.path(fileStderr), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := openFIFO(d.path(fileStderr))
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	wantOrphanBy(t, d, pipe)
	wantOrphanBy(t, d, log)
}

// wantOrphanBy wants the process found that has mark as its standard error, and
// no other.
func wantOrphanBy(t *testing.T, d runDir, mark *os.File) {
	t.Helper()
	if _, err := findOrphan(d); !errors.Is(err, errGone) {
		t.Errorf("without a process: %v", err)
	}
	reader := exec.Command("sleep", "60") // has it open, but not as its standard error
	reader.ExtraFiles = []*os.File{mark}
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Process.Kill(); reader.Wait() })
	if p, err := findOrphan(d); !errors.Is(err, errGone) {
		t.Errorf("found %+v, %v", p, err)
	}
	orphan := exec.Command("sleep", "60")
	orphan.Stderr = mark
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { orphan.Process.Kill(); orphan.Wait() })
	p, err := findOrphan(d)
	if err != nil || p.id.PID != orphan.Process.Pid || p.id.Start == 0 {
		t.Fatalf("found %+v, %v; want pid %d", p, err, orphan.Process.Pid)
	}
	if found, err := findGuest(d, nil); err != nil || found.id != p.id {
		t.Errorf("findGuest: %+v, %v", found, err)
	}
	if err := p.kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := findOrphan(d); !errors.Is(err, errGone) {
		t.Errorf("after its end: %v", err)
	}
}

// FuzzParseStat has a process call itself anything: it does not become another.
func FuzzParseStat(f *testing.F) {
	for _, name := range []string{"qemu-system-x86", ") Z 1 1", "a) R 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 7 0 0", "\n", ""} {
		f.Add([]byte(name))
	}
	f.Fuzz(func(t *testing.T, name []byte) {
		stat := slices.Concat([]byte("4242 ("), name, []byte(") S 1 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 987654321 1048576 99 18446744073709551615 0 0\n"))
		if start, ended, err := parseStat(stat); start != 987654321 || ended || err != nil {
			t.Errorf("%q: start %d, ended %t, %v", name, start, ended, err)
		}
		parseStat(name) // as a whole: an error, and no panic
	})
}

// exiting tells a process that ends from one that lives.
func TestExiting(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, _, err := open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.pidfd.Close()
	if p.exiting() {
		t.Error("one that sleeps is on its way out")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); !p.exiting(); {
		if time.Now().After(deadline) {
			t.Fatal("one that was killed is not on its way out") // and is not waited for
		}
	}
	_ = cmd.Wait()
	if p.exiting() {
		t.Error("one that is gone is on its way out")
	}
}

// The number of a process that is gone may be a thread's by now.
func TestThreadIsNoProcess(t *testing.T) {
	threads := make(chan int)
	end := make(chan struct{})
	defer close(end)
	runtime.LockOSThread() // so that the goroutine has another one
	defer runtime.UnlockOSThread()
	for range 2 { // one of which is not the first
		go func() {
			runtime.LockOSThread()
			threads <- unix.Gettid()
			<-end
		}()
		if id := <-threads; id != os.Getpid() {
			if p, err := openProcess(id); !errors.Is(err, errGone) {
				t.Errorf("thread %d: %v, %v, want that it is gone", id, p, err)
			}
			return
		}
	}
	t.Error("both are the first thread")
}
