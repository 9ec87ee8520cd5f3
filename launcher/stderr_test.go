package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
)

func init() { children["flood"] = flood }

const (
	floodSize = 50 << 20
	// dropped is the exit status of a flood of which there was no room for a part.
	dropped = 3
)

// flood is a QEMU that says 50 MiB on its standard error as fast as it can, and
// a last word when there is room for it.
func flood() error {
	line := []byte(strings.Repeat("words ", 16) + "\n")
	status := 0
	for range floodSize / len(line) {
		if n, _ := unix.Write(2, line); n < len(line) {
			status = dropped
		}
	}
	if os.Getenv(orderEnv) == "" { // somebody reads it
		if n, err := unix.Poll([]unix.PollFd{{Fd: 2, Events: unix.POLLOUT}}, 10_000); n == 0 || err != nil {
			return fmt.Errorf("no room for the last word: %v", err)
		}
	}
	fmt.Fprintln(os.Stderr, "the last word")
	os.Exit(status)
	return nil
}

// newPipe makes the pipe of a run directory that is a guest's, and returns its
// life and QEMU's end.
func newPipe(t *testing.T) (*life, *os.File) {
	t.Helper()
	l := newLife(&configs.Guest{Name: "web1"}, Options{RunDir: t.TempDir()})
	l.lock, l.plan = mustLock(t, l.dir), &Plan{}
	if err := l.openLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.closeFiles()
		if err := l.undo.run(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(l.dir.path(fileStderr)); !os.IsNotExist(err) {
			t.Errorf("the pipe is left: %v", err)
		}
	})
	return l, l.files[fileStderr]
}

// startFlood starts a flood and waits for its end, which nobody may delay.
func startFlood(t *testing.T, end *os.File, env ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), childEnv+"=flood"), env...)
	cmd.Stderr = end
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(60*time.Second, func() { cmd.Process.Kill() })
	defer stuck.Stop()
	err := cmd.Wait()
	status := cmd.ProcessState.ExitCode()
	t.Logf("the flood took %v, status %d", time.Since(began).Round(time.Millisecond), status)
	if status != 0 && status != dropped {
		t.Fatal(err)
	}
}

// wantBounded wants a run directory's qemu.log in two parts at most, of which
// none is too large.
func wantBounded(t *testing.T, dir runDir) (now, old int64) {
	t.Helper()
	path := dir.path(fileQEMULog)
	now, old = sizeOf(path), sizeOf(path+olderPart)
	if now > qemuLogSize || old > qemuLogSize {
		t.Errorf("%s has %d bytes, and %d older ones", path, now, old)
	}
	return now, old
}

// A QEMU that floods its standard error fills nothing, and its last words are
// known.
func TestFlood(t *testing.T) {
	l, end := newPipe(t)
	startFlood(t, end)
	words := l.lastWords()
	if len(words) == 0 || words[len(words)-1] != "the last word" {
		t.Errorf("the last words are %q", words)
	}
	if _, old := wantBounded(t, l.dir); old < qemuLogSize/2 {
		t.Errorf("of 50 MiB, %d older bytes are kept", old)
	}
	if err := l.stderr.close(); err != nil {
		t.Errorf("closed once more: %v", err)
	}
}

// What is missing in the log, it says.
func TestFloodIsToldOf(t *testing.T) {
	l, end := newPipe(t)
	if err := l.stderr.fifo.SetReadDeadline(time.Now()); err != nil { // as if it were stopped
		t.Fatal(err)
	}
	<-l.stderr.done
	startFlood(t, end, orderEnv+"=nobody reads")
	l.lastWords()
	text := readLog(t, l.dir.path(fileQEMULog))
	if said := strings.TrimSuffix(text, lossy); said == text || len(said) > pipeSize || len(said) < pipeSize*9/10 {
		t.Errorf("%d bytes, that end with %q", len(text), last(text, 100))
	}
}

// QEMU is never kept waiting, whatever it does to its end of the pipe, and the
// supervisor neither.
func TestPipeOfAHostileQEMU(t *testing.T) {
	for name, spoil := range map[string]func(fd int) error{
		"its end blocks": func(fd int) error { return unix.SetNonblock(fd, false) },
		"it makes packets": func(fd int) error {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_NONBLOCK|unix.O_DIRECT)
			return err
		},
		"the pipe is a large one": func(fd int) error {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1<<20)
			return err
		},
		"the pipe is a small one": func(fd int) error {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 4096)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, end := newPipe(t)
			fd, err := unix.Dup(int(end.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			if err := spoil(fd); err != nil {
				t.Fatal(err)
			}
			for range 1000 {
				if _, err := unix.Write(fd, []byte(strings.Repeat("x", 999)+"\n")); err != nil && err != unix.EAGAIN {
					t.Fatal(err)
				}
			}
			closed := make(chan struct{})
			go func() { l.lastWords(); close(closed) }()
			select {
			case <-closed:
			case <-time.After(10 * time.Second):
				t.Fatal("it is still being read")
			}
			unix.Close(fd)
			if now, _ := wantBounded(t, l.dir); now == 0 {
				t.Error("nothing was logged")
			}
		})
	}
}

// What was said while nobody looked is in the log, and said once.
func TestPipeIsAdopted(t *testing.T) {
	l, end := newPipe(t)
	fmt.Fprintln(end, "one")
	if err := l.stderr.close(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(end, "two")
	next := newLife(l.guest(), Options{RunDir: l.opts.RunDir})
	if err := next.adoptLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(end, "three")
	if words := strings.Join(next.lastWords(), " "); words != "one two three" {
		t.Errorf("%q", words)
	}
	older := newLife(l.guest(), Options{RunDir: t.TempDir()}) // of an earlier vmrun: there is no pipe
	if err := older.adoptLog(t.Context()); err != nil || older.stderr != nil {
		t.Errorf("%v, %v", older.stderr, err)
	}
	if words := older.lastWords(); words != nil {
		t.Errorf("%q", words)
	}
}

// TestQEMUFlooding has a real QEMU say every block of code that it runs, while
// its supervisor is well, stopped, killed, and another one.
func TestQEMUFlooding(t *testing.T) {
	b := newBench(t)
	g := b.spec("flood", "", nic("bridge"))
	b.rewrite(g, `qemu_args = ["-d", "exec,nochain"]`)
	g = mustLoad(t, g.Path)
	dir := guestDir(b.base, g.Name)
	b.mustStart(g, order{})
	qemu := b.observe(g).PID
	var info unix.Stat_t
	b.must(unix.Stat(fmt.Sprintf("/proc/%d/fd/2", qemu), &info))
	if info.Mode != unix.S_IFIFO|0o600 {
		t.Errorf("QEMU's standard error has the mode %o", info.Mode)
	}
	for fd := range 3 {
		if flags := fdFlags(t, qemu, fd); fd > 0 && flags&unix.O_NONBLOCK == 0 {
			t.Errorf("descriptor %d of QEMU has the flags %o: it can be kept waiting", fd, flags)
		}
	}
	works := func(when string) {
		t.Helper()
		before := cpuTime(qemu)
		b.eventually(20*time.Second, "QEMU works "+when, func() string {
			if cpuTime(qemu)-before < 200*time.Millisecond {
				return "it waits"
			}
			return ""
		})
	}
	logs := func(when string) {
		t.Helper()
		var before os.FileInfo
		b.eventually(20*time.Second, "there is a log "+when, func() string { // but for an instant of each rotation
			info, err := os.Stat(dir.path(fileQEMULog))
			if err != nil {
				return err.Error()
			}
			before = info
			return ""
		})
		b.eventually(20*time.Second, "the log is rotated "+when, func() string {
			wantBounded(t, dir)
			if now, err := os.Stat(dir.path(fileQEMULog)); err == nil && os.SameFile(before, now) {
				return fmt.Sprint(now.Size(), " bytes")
			}
			return ""
		})
	}
	logs("at first")
	works("at first")

	supervisor := b.observe(g).Supervisor
	b.must(syscall.Kill(supervisor, syscall.SIGSTOP))
	works("beside a supervisor that is stopped")
	b.must(syscall.Kill(supervisor, syscall.SIGCONT))
	logs("once it goes on")

	b.killSupervisor(g.Name)
	works("without a supervisor")
	if r := b.mustStart(g, order{}); !r.Adopted || r.Status.PID != qemu {
		t.Errorf("not adopted: %+v", r)
	}
	logs("by the next one")
	works("with the next one")
	if text := readLog(t, dir.path(fileQEMULog)); !strings.Contains(text, strings.TrimSpace(rotated)) {
		t.Error("the log does not say that it was rotated")
	}
	b.must(syscall.Kill(qemu, syscall.SIGTERM))
	b.waitState(g, StateEnded, 10*time.Second)
	b.clean("flood")
	if now, old := wantBounded(t, dir); now < 0 || old < 0 {
		t.Errorf("%d bytes, and %d older ones: the log is gone", now, old)
	}
}

// fdFlags are the flags of another process's descriptor (proc(5), fdinfo).
func fdFlags(t *testing.T, pid, fd int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
			if err != nil {
				t.Fatal(err)
			}
			return flags
		}
	}
	t.Fatalf("no flags in %q", text)
	return 0
}

func init() { children["earlier supervisor"] = superviseAsEarlier }

// superviseAsEarlier starts a guest as an earlier vmrun did, with qemu.log
// itself as QEMU's standard error, and is killed.
func superviseAsEarlier() error {
	reporter, err := NewReporter(os.Args[len(os.Args)-2])
	if err != nil {
		return err
	}
	g, err := configs.Load(os.Args[len(os.Args)-1])
	if err != nil {
		return err
	}
	l := newLife(g, Options{RunDir: os.Getenv(orderEnv), Paused: true, Ready: reporter.Ready})
	l.opts.step = func(when, step string) (err error) {
		if when == "after" && step == "log open" {
			l.stderr.close()
			l.files[fileStderr].Close()
			l.files[fileStderr], err = openAppend(l.dir.path(fileQEMULog))
			return errors.Join(err, os.Remove(l.dir.path(fileStderr)))
		}
		return nil
	}
	if l.lock, err = l.dir.lock(); err == nil {
		err = l.start(context.Background())
	}
	if err != nil {
		reporter.Failed(err)
		return err
	}
	l.ready(false)
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// TestAdoptedFromEarlierVmrun adopts such a guest.
func TestAdoptedFromEarlierVmrun(t *testing.T) {
	b := newBench(t)
	g := b.spec("earlier", "", nic("bridge"))
	dir := guestDir(b.base, g.Name)
	s := Supervisor{Path: os.Args[0], Env: append(os.Environ(), childEnv+"=earlier supervisor", orderEnv+"="+b.base)}
	var pid int
	b.must(b.lab.Host.Do(func() error {
		report, err := Start(b.within(30*time.Second), g, b.base, s)
		pid = report.Status.PID
		return err
	}))
	b.eventually(5*time.Second, "the supervisor is gone", func() string {
		if _, alive := dir.supervisor(); alive {
			return "it lives"
		}
		return ""
	})
	orphan, err := findOrphan(dir)
	if err != nil || orphan.id.PID != pid {
		t.Errorf("found by its log: %+v, %v; want pid %d", orphan, err, pid)
	}
	if r := b.mustStart(g, order{}); !r.Adopted || r.Status.PID != pid {
		t.Errorf("not adopted: %+v", r)
	}
	b.must(syscall.Kill(pid, syscall.SIGTERM))
	b.waitState(g, StateEnded, 10*time.Second)
	if words := strings.Join(tail(dir.path(fileQEMULog), quoted), "\n"); !strings.Contains(words, "terminating on signal 15") {
		t.Errorf("its last words are %q", words)
	}
	b.clean("earlier")
}
