package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// newBenchOn is a bench whose run directories are on a file system of their own.
func newBenchOn(t *testing.T, fs string) *bench {
	t.Helper()
	b := newBench(t)
	b.base = fs
	b.before = b.lab.Snapshot(t, b.base)
	return b
}

// fill takes all that a file system has left, but for so many bytes, until the
// result is called.
func fill(t testing.TB, fs string, spare int64) (free func()) {
	t.Helper()
	junk := filepath.Join(fs, ".junk")
	f, err := os.Create(junk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, endless{}); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err == nil {
		err = f.Truncate(at - spare)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(junk); err != nil {
			t.Error(err)
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestStartOnAFullFileSystem starts a guest where its run directory has ever more
// room, of either sort: each start that fails says why, and leaves nothing but
// logs.
func TestStartOnAFullFileSystem(t *testing.T) {
	const page, most = 4 << 10, 40
	fs := tmpfs(t, 1<<20)
	b := newBenchOn(t, fs)
	g := b.spec("full", "", nic("bridge"))
	var rows []string
	started := func(what string) bool {
		_, err := b.start(g, order{Paused: true})
		rows = append(rows, fmt.Sprintf("%s: %v", what, err))
		if err == nil {
			b.kill(g.Name)
		} else if !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("%s: %v", what, err)
		}
		b.clean(what)
		dir := guestDir(fs, g.Name)
		files, there := os.ReadDir(string(dir))
		if there == nil && len(files) == 0 {
			t.Errorf("%s: left behind: an empty directory", what)
		}
		for _, f := range files {
			if f.Name() != fileLock && !strings.Contains(f.Name(), ".log") && !(err == nil && f.Name() == fileState) {
				t.Errorf("%s: left behind: %s", what, f.Name())
			}
		}
		b.must(dir.remove())
		return err == nil
	}
	for pages := 0; ; pages++ {
		free := fill(t, fs, int64(pages*page))
		ok := started(fmt.Sprint(pages, " pages"))
		if free(); ok || pages == most {
			break
		}
	}
	for files := 2; ; files++ { // the first is the root
		b.must(unix.Mount("", fs, "", unix.MS_REMOUNT, fmt.Sprint("nr_inodes=", files)))
		if started(fmt.Sprint(files, " files")) || files == most {
			break
		}
	}
	t.Logf("starts by what the file system of the run directory has left:\n%s", strings.Join(rows, "\n"))
	if !strings.HasSuffix(rows[len(rows)-1], "<nil>") {
		t.Error("no start succeeded")
	}
}

// TestRunDirectoryFills fills a running guest's run directory. The guest can be
// looked at, changed, adopted and stopped, and its record is right when there is
// room.
func TestRunDirectoryFills(t *testing.T) {
	fs := tmpfs(t, 1<<20)
	b := newBenchOn(t, fs)
	g, idle := b.spec("fills", "", nic("bridge")), b.spec("idle", "", nic("bridge"))
	b.mustStart(idle, order{Paused: true})
	pid := b.mustStart(g, order{Paused: true}).Status.PID
	dir := guestDir(fs, g.Name)
	recorded := func() situation {
		rec, err := dir.readRecord()
		b.must(err)
		return rec.Situation
	}
	says := func(text string) func() string {
		return func() string {
			if log := string(readFile(t, dir.path(fileSupervisorLog))); !strings.Contains(log, text) {
				return log
			}
			return ""
		}
	}

	free := fill(t, fs, 0)
	b.must(b.control(g.Name).Cont(b.within(5 * time.Second)))
	b.waitState(g, StateRunning, 5*time.Second)
	if s := recorded(); s.Ran {
		t.Fatalf("the file system is not full: recorded %+v", s)
	}
	// Its last page has room for a line.
	b.eventually(5*time.Second, "the log says that the state file is out of date", says("the state file is out of date"))

	b.killSupervisor(g.Name)
	if s := b.observe(g); s.State != StateRunning || s.Supervisor != 0 {
		t.Errorf("without a supervisor, by an old record: %+v", s)
	}
	report := b.mustStart(g, order{})
	if !report.Adopted || report.Status.State != StateRunning || report.Status.PID != pid {
		t.Errorf("adopted by an old record: %+v", report)
	}
	if supervisor, _ := dir.supervisor(); supervisor != report.Status.Supervisor {
		t.Errorf("the lock names %d, the supervisor is %d", supervisor, report.Status.Supervisor)
	}
	free()
	b.eventually(2*rewriteEvery+5*time.Second, "the record is right", func() string {
		if s := recorded(); !s.Ran || s.Paused {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})

	free = fill(t, fs, 0)
	b.must(os.Remove(dir.path(fileState))) // and whoever looks does without
	if s := b.observe(g); s.State != StateRunning || s.PID != pid || len(s.NICs) != 1 {
		t.Errorf("without a state file: %+v", s)
	}
	b.stop(idle, RungQuit)
	b.kill(g.Name)
	b.clean("kill")
	free()
}

// TestReadOnlyRunDirectory has the run directories become read-only: nothing can
// be started in them; a guest that runs goes on, and can be stopped.
func TestReadOnlyRunDirectory(t *testing.T) {
	b := newBench(t)
	g, idle, late := b.spec("before", "", nic("bridge")), b.spec("idle", "", nic("bridge")), b.spec("after", "", nic("bridge"))
	b.mustStart(idle, order{Paused: true})
	r := b.mustStart(g, order{Paused: true})
	// A file system with files open for writing cannot be made read-only by hand;
	// to all who come by a path this is the same.
	b.must(unix.Mount(b.base, b.base, "", unix.MS_BIND, ""))
	writable := func() { b.must(unix.Unmount(b.base, unix.MNT_DETACH)) }
	if err := unix.Mount("", b.base, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		writable()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if unix.Access(b.base, unix.W_OK) != nil {
			writable()
		}
	})
	if _, err := b.start(late, order{}); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "run directory: ") {
		t.Errorf("start: %v", err)
	}
	b.must(b.control(g.Name).Cont(b.within(5 * time.Second)))
	b.waitState(g, StateRunning, 5*time.Second)
	b.must(b.control(g.Name).Stop(b.within(5 * time.Second)))
	b.waitState(g, StatePaused, 5*time.Second)
	log := string(readFile(t, guestDir(b.base, g.Name).path(fileSupervisorLog)))
	if n := strings.Count(log, "the state file is out of date"); n != 1 || !strings.Contains(log, "read-only file system") {
		t.Errorf("the log says %d times that the state file is out of date:\n%s", n, log)
	}
	b.stop(idle, RungQuit)
	b.kill(g.Name)
	if _, err := startTime(r.Status.PID); !errors.Is(err, errGone) && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("QEMU is still there: %v", err)
	}
	b.eventually(5*time.Second, "the supervisor has ended, which knows better", func() string {
		if _, err := startTime(r.Status.Supervisor); err == nil {
			return "it lives"
		}
		return ""
	})
	if s := b.observe(g); s.State != StateEnded || s.Ended.Reason != ReasonUnknown {
		t.Errorf("by a record that could not be written: %+v", s)
	}
	writable()
	if _, err := Cleanup(context.Background(), b.base); err != nil {
		t.Error(err)
	}
	b.clean("read-only")
}

// TestRunDirectoryGone removes a running guest's directory. The guest is still
// known by its mark, and can be stopped by a signal to its supervisor; for another
// guest of the name see TestRunDirectoryRemoved.
func TestRunDirectoryGone(t *testing.T) {
	b := newBench(t)
	g := b.spec("lost", "", nic("bridge"))
	r := b.mustStart(g, order{Paused: true})
	supervisor, err := findProcess(processID{PID: r.Status.Supervisor})
	b.must(err)
	b.must(guestDir(b.base, g.Name).remove())
	if s, err := Observe(t.Context(), b.base, g.Name); err != nil || s.State != StateUnresponsive || s.PID != r.Status.PID {
		t.Errorf("status: %+v, %v", s, err)
	}
	b.must(supervisor.signal(syscall.SIGTERM))
	awaitDone(t, supervisor)
	b.clean("lost")
	if files, err := os.ReadDir(b.base); err != nil || len(files) != 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

// TestConsoleOnAFullFileSystem has a console go on whose log cannot be written.
func TestConsoleOnAFullFileSystem(t *testing.T) {
	dir := runDir(tmpfs(t, 256<<10))
	listener, err := listenUnix(dir.path(fileSerial))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	l := &line{t: t, dir: dir}
	if l.cons, err = newConsole(t.Context(), dir, configs.Size(1<<20), slog.New(slog.DiscardHandler), func([]byte) {}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.cons.Close() })
	if l.qemu, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.qemu.Close() })
	var viewer net.Conn = l.view()
	l.print("before")
	readUntil(t, viewer, "before")
	free := fill(t, string(dir), 0)
	lost := strings.Repeat("x", 16<<10)
	l.print(lost + "|")
	readUntil(t, viewer, lost+"|")
	if _, err := io.WriteString(viewer, "typed"); err != nil {
		t.Fatal(err)
	}
	readUntil(t, l.qemu, "typed")
	free()
	l.print("after")
	readUntil(t, viewer, "after")
	l.eventually("the log goes on, and says what it lacks", func() bool {
		log := string(readFile(t, dir.path(fileConsoleLog)))
		return strings.HasSuffix(log, "after") && strings.Contains(log, "bytes could not be written here")
	})
}
