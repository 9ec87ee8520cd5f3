package launcher

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newLog is a log of 4 KiB.
func newLog(t testing.TB) *rotatingFile {
	t.Helper()
	r, err := openRotating(filepath.Join(t.TempDir(), "some.log"), 4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func (r *rotatingFile) mustWrite(t testing.TB, text string) {
	t.Helper()
	if n, err := r.Write([]byte(text)); n != len(text) || err != nil {
		t.Errorf("wrote %d of %d, %v", n, len(text), err)
	}
}

func readLog(t testing.TB, path string) string {
	t.Helper()
	log, err := OpenLog(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	text, err := io.ReadAll(log)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func sizeOf(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return -1
	}
	return info.Size()
}

func TestLogRotation(t *testing.T) {
	const mark = len(rotated)
	for _, tt := range []struct {
		name     string
		size     int64
		writes   []int
		now, old int // bytes in the log and its older part
	}{
		{"none kept", 0, []int{100, 100}, -1, -1},
		{"room left", 4096, []int{40, 40}, 80, -1},
		{"full", 4096, []int{4000, 96}, 4096, -1},
		{"one more", 4096, []int{4000, 96, 1}, mark + 1, 4096},
		{"not torn apart", 4096, []int{3000, 2000}, mark + 2000, 3000},
		{"larger than the log", 4096, []int{10000}, mark + 10000 - 4096 - (4096 - mark), 4096},
		{"many", 4096, []int{3000, 3000, 3000, 3000}, mark + 3000, mark + 3000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "some.log")
			r, err := openRotating(path, tt.size)
			if err != nil {
				t.Fatal(err)
			}
			all := ""
			for i, n := range tt.writes {
				text := strings.Repeat(string(rune('a'+i)), n)
				all += text
				r.mustWrite(t, text)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if now, old := sizeOf(path), sizeOf(path+olderPart); now != int64(tt.now) || old != int64(tt.old) {
				t.Errorf("%d bytes and %d older ones, want %d and %d", now, old, tt.now, tt.old)
			}
			if tt.size == 0 {
				return
			}
			if kept := strings.ReplaceAll(readLog(t, path), rotated, ""); !strings.HasSuffix(all, kept) {
				t.Errorf("kept %q, which is not the end of what was written", kept)
			}
			for _, file := range []string{path, path + olderPart} {
				if info, err := os.Stat(file); err == nil && info.Mode() != 0o600 {
					t.Errorf("%s has the mode %v", file, info.Mode())
				}
			}
		})
	}
}

// An adopting supervisor goes on with the log that is there.
func TestLogGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "some.log")
	for i := range 3 {
		r, err := openRotating(path, 4096)
		if err != nil {
			t.Fatal(err)
		}
		r.mustWrite(t, strings.Repeat(fmt.Sprint(i), 1500))
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	want := strings.Repeat("0", 1500) + strings.Repeat("1", 1500) + rotated + strings.Repeat("2", 1500)
	if got := readLog(t, path); got != want {
		t.Errorf("%d bytes, want %d: %q", len(got), len(want), got)
	}
}

// A log goes on after it could not be written, and says what is missing.
func TestLogSurvives(t *testing.T) {
	t.Run("no room on the disk", func(t *testing.T) {
		r := newLog(t)
		r.mustWrite(t, "before")
		disk := r.file
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer full.Close()
		r.file = full
		for range 2 {
			if n, err := r.Write([]byte("lost")); n != 0 || !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("wrote %d, %v", n, err)
			}
		}
		r.file = disk
		r.mustWrite(t, "after")
		if got, want := readLog(t, r.path), "before\n[vmrun: 8 bytes could not be written here]\nafter"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
	t.Run("no way to rotate", func(t *testing.T) {
		r := newLog(t)
		if err := os.Mkdir(r.path+olderPart, 0o700); err != nil {
			t.Fatal(err)
		}
		r.mustWrite(t, strings.Repeat("a", 4000))
		for range 3 {
			if _, err := r.Write(make([]byte, 1000)); err == nil {
				t.Error("more was written than there is room for")
			}
		}
		if err := os.Remove(r.path + olderPart); err != nil {
			t.Fatal(err)
		}
		r.mustWrite(t, "after")
		if got := readLog(t, r.path); !strings.HasSuffix(got, "[vmrun: 3000 bytes could not be written here]\nafter") {
			t.Errorf("%q", got)
		}
	})
	t.Run("its name is gone", func(t *testing.T) {
		r := newLog(t)
		if err := os.Remove(r.path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(r.path, []byte("another's"), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			r.mustWrite(t, strings.Repeat("a", 1000))
		}
		if info, err := r.file.Stat(); err != nil || info.Size() > r.max {
			t.Errorf("it has %d bytes, %v", info.Size(), err)
		}
		if got := readLog(t, r.path); got != "another's" {
			t.Errorf("the file that has its name now says %q", got)
		}
	})
	for name, size := range map[string]int64{"emptied by somebody": 0, "filled by somebody": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			r := newLog(t)
			r.mustWrite(t, strings.Repeat("a", 3000))
			if err := os.Truncate(r.path, size); err != nil {
				t.Fatal(err)
			}
			r.mustWrite(t, "after")
			if now, old := sizeOf(r.path), sizeOf(r.path+olderPart); now > 100 || old != -1 {
				t.Errorf("%d bytes and %d older ones", now, old)
			}
		})
	}
}

// Whoever reads a log while it is rotated sees lines in their order, and none
// twice.
func TestOpenLogWhileRotated(t *testing.T) {
	r := newLog(t)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				r.Write(fmt.Appendf(nil, "%09d\n", i))
			}
		}
	}()
	reads, parts := 0, 0
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline) || parts == 0; reads++ {
		last := -1
		for line := range strings.Lines(readLog(t, r.path)) {
			var i int
			if line == rotated {
				parts++
				continue
			}
			if _, err := fmt.Sscanf(line, "%09d\n", &i); err != nil || last >= 0 && i != last+1 {
				t.Fatalf("%q after %d", line, last)
			}
			last = i
		}
	}
	close(stop)
	<-done
	t.Logf("read %d times", reads)
	if _, err := OpenLog(r.path+" of nobody", -1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a log that is not there: %v", err)
	}
}

func init() { children["talkative supervisor"] = talk }

// talkText is what a talkative supervisor logs again and again.
var talkText = bytes.Repeat([]byte("talk "), 200)

// talk is a supervisor that logs 8 MiB, says a word where no log is, and panics.
func talk() error {
	log := SupervisorLog(filepath.Dir(os.Getenv(orderEnv)), filepath.Base(os.Getenv(orderEnv)))
	for range 8 << 20 / (len(talkText) + 1) {
		if _, err := log.Write(append(talkText, '\n')); err != nil {
			return err
		}
	}
	fmt.Println("a word on standard output")
	panic("out of words")
}

// supervisor.log stays bounded, and has what a supervisor says at its worst.
func TestSupervisorLogIsBounded(t *testing.T) {
	base := t.TempDir()
	dir := guestDir(base, "talker")
	g := fullRecord().Guest
	g.Name = "talker"
	s := Supervisor{Path: os.Args[0], Env: append(os.Environ(), childEnv+"=talkative supervisor", orderEnv+"="+string(dir))}
	for range 3 {
		_, err := Start(t.Context(), g, base, s)
		if err == nil || !strings.Contains(err.Error(), "panic: out of words") {
			t.Errorf("a supervisor that panicked: %.2000v", err)
		}
		path := dir.path(fileSupervisorLog)
		now, old := sizeOf(path), sizeOf(path+olderPart)
		t.Logf("%d bytes and %d older ones", now, old)
		if now < 0 || now > supervisorLogSize+8<<10 || old < supervisorLogSize/2 || old > supervisorLogSize {
			t.Errorf("that is not about %d", supervisorLogSize)
		}
		if text := readLog(t, path); !strings.Contains(text, "\na word on standard output\n") {
			t.Error("what was said on standard output is not there")
		}
	}
	if files, err := os.ReadDir(string(dir)); err != nil || len(files) != 2 {
		t.Errorf("the directory holds %v, %v", files, err)
	}
}
