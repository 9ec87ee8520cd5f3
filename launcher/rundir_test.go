package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lack skips a test for want of something, or fails it where everything must
// be there.
func lack(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		lack(t, "not root: run go test as root")
	}
}

func newRunDir(t testing.TB) runDir {
	t.Helper()
	return runDir(filepath.Join(t.TempDir(), "run", "web1"))
}

func mustLock(t testing.TB, d runDir) *os.File {
	t.Helper()
	f, err := d.lock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestLock(t *testing.T) {
	d := newRunDir(t)
	if pid, alive := d.supervisor(); alive {
		t.Errorf("locked by %d before there is anything", pid)
	}
	f := mustLock(t, d)
	if info, err := os.Stat(string(d)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory's mode is %v, %v; want 0700", info.Mode(), err)
	}
	if pid, alive := d.supervisor(); !alive || pid != os.Getpid() {
		t.Errorf("supervisor %d, %t; want %d", pid, alive, os.Getpid())
	}
	_, err := d.lock()
	var busy *BusyError
	if !errors.As(err, &busy) || busy.PID != os.Getpid() || busy.Name != "web1" || KindOf(err) != KindState {
		t.Errorf("%v (%s), want a BusyError of %d", err, KindOf(err), os.Getpid())
	}
	if want := fmt.Sprintf("web1 has a supervisor already (pid %d)", os.Getpid()); err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	f.Close()
	if pid, alive := d.supervisor(); alive {
		t.Errorf("still locked by %d", pid)
	}
	mustLock(t, d)
}

func TestBusyErrorWithoutPID(t *testing.T) {
	if got, want := (&BusyError{Name: "web1"}).Error(), "web1 has a supervisor already"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// One of many wins, however they come.
func TestLockHasOneHolder(t *testing.T) {
	d := newRunDir(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var winners []*os.File
	for range 50 {
		wg.Go(func() {
			f, err := d.lock()
			var busy *BusyError
			if err != nil && !errors.As(err, &busy) {
				t.Error(err)
			}
			if f != nil && err == nil {
				mu.Lock()
				winners = append(winners, f)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(winners) != 1 {
		t.Errorf("%d holders", len(winners))
	}
	for _, f := range winners {
		f.Close()
	}
}

// A cleanup that has the lock for a moment is waited for.
func TestLockWaitsForCleanup(t *testing.T) {
	d := newRunDir(t)
	mustLock(t, d).Close() // which leaves a note
	brief, err := d.lockBriefly()
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { brief.Close() })
	mustLock(t, d)
	if _, err := d.lockBriefly(); KindOf(err) != KindState {
		t.Errorf("a cleanup of a guest with a supervisor: %v", err)
	}
}

// The lock belongs to the open file: who inherits it holds it, and it ends with
// the last of them.
func TestLockOutlivesItsProcess(t *testing.T) {
	d := newRunDir(t)
	f := mustLock(t, d)
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	f.Close()
	if _, alive := d.supervisor(); !alive {
		t.Error("the lock ended though a child has it")
	}
	if _, err := d.lock(); err == nil {
		t.Error("locked twice")
	}
	cmd.Process.Kill()
	cmd.Wait()
	mustLock(t, d)
}

// A program that is started does not inherit it by accident.
func TestLockIsNotInherited(t *testing.T) {
	d := newRunDir(t)
	f := mustLock(t, d)
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	f.Close()
	mustLock(t, d)
}

// A cleanup removes directories at any time; whoever locks then has the lock of
// the directory that is there, not of one that was.
func TestLockWhileTheDirectoryIsRemoved(t *testing.T) {
	d := newRunDir(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				os.RemoveAll(string(d))
				time.Sleep(50 * time.Microsecond)
			}
		}
	})
	for range 300 {
		f, err := d.lock()
		if err != nil {
			t.Errorf("%v", err)
			break
		}
		f.Close()
	}
	close(stop)
	wg.Wait()
	f := mustLock(t, d)
	if !sameFile(f, d.path(fileLock)) {
		t.Error("the lock is of a file that is gone")
	}
	if err := os.RemoveAll(string(d)); err != nil {
		t.Fatal(err)
	}
	mustLock(t, d) // the old one is of no directory any more
}

func TestLockOfImpossibleDirectories(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	dangling := filepath.Join(base, "dangling")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(filepath.Join(base, "nowhere"), dangling)); err != nil {
		t.Fatal(err)
	}
	for _, d := range []runDir{runDir(filepath.Join(file, "web1")), runDir(file), runDir(dangling)} {
		f, err := d.lock()
		if err == nil {
			f.Close()
		}
		if err == nil || !strings.HasPrefix(err.Error(), "run directory: ") {
			t.Errorf("%s: %v", d, err)
		}
	}
}

func slotOf(t *testing.T, name string) (int, *os.File) {
	t.Helper()
	slot, lease, err := takeSlot(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lease.Close() })
	return slot, lease
}

func TestTakeSlot(t *testing.T) {
	needRoot(t)
	first, lease := slotOf(t, "slot-test")
	if first < 0 || first >= maxSlots {
		t.Fatal(first)
	}
	if next, beside := slotOf(t, "slot-test"); next != (first+1)%maxSlots {
		t.Errorf("slot %d beside a lease of %d", next, first)
	} else {
		beside.Close()
	}
	lease.Close()
	p := startConfined(t, userOf(first), nil, "/bin/sleep", "60")
	next, lease := slotOf(t, "slot-test")
	if next != (first+1)%maxSlots {
		t.Errorf("slot %d beside a process with the uid of %d", next, first)
	}
	lease.Close()
	if err := p.kill(); err != nil {
		t.Fatal(err)
	}
	if freed, _ := slotOf(t, "slot-test"); freed != first {
		t.Errorf("slot %d after its process has ended, want %d", freed, first)
	}
}

func TestSlotsAreSpread(t *testing.T) {
	needRoot(t)
	seen := map[int]string{}
	for i := range 50 {
		name := fmt.Sprintf("guest-%d", i)
		slot, lease := slotOf(t, name)
		lease.Close()
		if other, ok := seen[slot]; ok {
			t.Logf("%s and %s begin at slot %d", other, name, slot)
		}
		seen[slot] = name
	}
	if len(seen) < 45 {
		t.Errorf("50 guests begin at %d slots", len(seen))
	}
}

func TestClear(t *testing.T) {
	committed := func(ended *Outcome) *record {
		r := fullRecord()
		r.Ended = ended
		return r
	}
	for _, tt := range []struct {
		name   string
		rec    *record
		record bool
		reason Reason
	}{
		{"no record", nil, false, ""},
		{"half started", &record{Version: recordVersion, Guest: fullRecord().Guest}, false, ""},
		{"ended while nobody watched", committed(nil), true, ReasonUnknown},
		{"ended", committed(&Outcome{Reason: ReasonPoweroff}), true, ReasonPoweroff},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newRunDir(t)
			mustLock(t, d)
			for _, file := range []string{fileControl, fileConsole, fileMonitor, fileSerial, fileQEMULog, fileConsoleLog} {
				if err := os.WriteFile(d.path(file), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tt.rec != nil {
				if err := d.writeRecord(tt.rec); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := d.clear(tt.rec); err != nil {
					t.Fatal(err)
				}
			}
			sockets, _ := filepath.Glob(d.path("*.sock"))
			logs, _ := filepath.Glob(d.path("*.log"))
			if len(sockets) != 0 || len(logs) != 2 {
				t.Errorf("left: %q, %q; want the logs alone", sockets, logs)
			}
			rec, err := d.readRecord()
			if (err == nil) != tt.record || (rec != nil && rec.Ended.Reason != tt.reason) {
				t.Errorf("record %+v, %v", rec, err)
			}
		})
	}
}

func TestCleanupIsIdempotent(t *testing.T) {
	base := t.TempDir()
	for name, rec := range map[string]*record{"ended": fullRecord(), "wreck": nil} {
		d := guestDir(base, name)
		mustLock(t, d).Close()
		if rec != nil {
			rec.Guest.Name = name
			if err := d.writeRecord(rec); err != nil {
				t.Fatal(err)
			}
		}
	}
	held := guestDir(base, "held")
	mustLock(t, held)
	if err := os.WriteFile(filepath.Join(base, "a file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for run, want := range []int{2, 0, 0} {
		cleaned, err := Cleanup(context.Background(), base)
		if err != nil || len(cleaned) != want {
			t.Errorf("run %d: cleaned %q, %v; want %d", run, cleaned, err, want)
		}
	}
	if _, alive := held.supervisor(); !alive {
		t.Error("a guest with a supervisor was cleaned up")
	}
	if cleaned, err := Cleanup(context.Background(), filepath.Join(base, "missing")); err != nil || len(cleaned) != 0 {
		t.Errorf("of no directory: %q, %v", cleaned, err)
	}
}

func TestListenUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.sock")
	for range 2 { // the second takes the place of the first's name
		l, err := listenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Mode != unix.S_IFSOCK|0o600 {
			t.Errorf("mode %o, %v; want a socket of 0600", st.Mode, err)
		}
	}
	long := filepath.Join(dir, strings.Repeat("x", 120))
	if _, err := listenUnix(long); err == nil || !strings.Contains(err.Error(), "choose a shorter --run-dir") {
		t.Errorf("%v", err)
	}
}
