package launcher

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"vmrun/configs"
)

// line is a console with the test in QEMU's place.
type line struct {
	t    testing.TB
	dir  runDir
	cons *console
	qemu net.Conn
}

func newLine(t testing.TB, logSize configs.Size) *line {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "vmrun-") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	l := &line{t: t, dir: runDir(base)}
	listener, err := listenUnix(l.dir.path(fileSerial))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	l.cons, err = newConsole(context.Background(), l.dir, logSize, slog.New(slog.DiscardHandler), func([]byte) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.cons.Close() })
	if l.qemu, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.qemu.Close() })
	return l
}

func (l *line) print(text string) {
	l.t.Helper()
	l.qemu.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(l.qemu, text); err != nil {
		l.t.Fatal(err)
	}
}

// view attaches a viewer and waits until it is one.
func (l *line) view() net.Conn {
	l.t.Helper()
	before := l.viewers()
	conn, err := net.Dial("unix", l.dir.path(fileConsole))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close() })
	l.eventually("the viewer is served", func() bool { return l.viewers() > before })
	return conn
}

func (l *line) viewers() int {
	l.cons.mu.Lock()
	defer l.cons.mu.Unlock()
	return len(l.cons.viewers)
}

func (l *line) eventually(what string, is func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// readUntil reads from a viewer until it has seen text.
func readUntil(t testing.TB, conn net.Conn, text string) string {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	var seen bytes.Buffer
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		seen.Write(buf[:n])
		if all := seen.Bytes(); bytes.Contains(all[max(0, len(all)-n-len(text)):], []byte(text)) { // what is new
			return seen.String()
		}
		if err != nil {
			t.Fatalf("%v after %d bytes, that end with %q", err, seen.Len(), last(seen.String(), 200))
		}
	}
}

func last(s string, n int) string { return s[max(0, len(s)-n):] }

func TestConsoleShowsAllToAll(t *testing.T) {
	l := newLine(t, 1<<20)
	a, b := l.view(), l.view()
	l.print("hello\r\n")
	for _, viewer := range []net.Conn{a, b} {
		readUntil(t, viewer, "hello\r\n")
	}
	for i, viewer := range []net.Conn{a, b} {
		word := fmt.Sprintf("typed by %d\n", i)
		if _, err := io.WriteString(viewer, word); err != nil {
			t.Fatal(err)
		}
		readUntil(t, l.qemu, word)
	}
	a.Close()
	l.eventually("a viewer that left is forgotten", func() bool { return l.viewers() == 1 })
	l.print("still here\r\n")
	readUntil(t, b, "still here\r\n")
	log, err := os.ReadFile(l.dir.path(fileConsoleLog))
	if err != nil || string(log) != "hello\r\nstill here\r\n" {
		t.Errorf("log %q, %v", log, err)
	}
}

// A viewer that comes late is shown the last of what was there, and no more.
func TestConsoleReplay(t *testing.T) {
	for _, tt := range []struct {
		name       string
		print      int // bytes before the viewer comes
		wantReplay int
	}{{"nothing", 0, 0}, {"a little", 100, 100}, {"too much", 3 * replaySize, replaySize}} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLine(t, 1<<20)
			past := strings.Repeat("0123456789abcdef", tt.print/16+1)[:tt.print]
			l.print(past)
			l.eventually("the past was read", func() bool {
				info, err := os.Stat(l.dir.path(fileConsoleLog))
				return err == nil && info.Size() == int64(tt.print)
			})
			viewer := l.view()
			l.print("|now")
			seen := readUntil(t, viewer, "|now")
			if want := last(past, tt.wantReplay) + "|now"; seen != want {
				t.Errorf("saw %d bytes that end with %q, want %d", len(seen), last(seen, 20), len(want))
			}
		})
	}
}

const skipped = "[vmrun: this viewer was too slow, output was skipped]"

// A viewer that reads nothing for a while slows nobody, loses what it had no
// room for, and is told so.
func TestConsoleSlowViewer(t *testing.T) {
	l := newLine(t, 1<<20)
	slow, fast := l.view(), l.view()
	chunk := strings.Repeat("x", 256<<10)
	start := time.Now()
	for i := range 32 { // twice of what a queue and two sockets hold
		mark := fmt.Sprintf("|chunk %d", i)
		l.print(chunk + mark)
		if seen := readUntil(t, fast, mark); seen != chunk+mark {
			t.Fatalf("the fast viewer saw %d bytes, want %d", len(seen), len(chunk+mark))
		}
	}
	if took := time.Since(start); took > viewerTimeout {
		t.Errorf("it took %v beside a viewer that does not read", took)
	}
	stop := make(chan struct{})
	var printer sync.WaitGroup
	printer.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				l.qemu.Write([]byte("."))
			}
		}
	})
	seen := readUntil(t, slow, skipped)
	close(stop)
	printer.Wait()
	if !strings.Contains(seen, "|chunk 1") || strings.Contains(seen, "|chunk 31") {
		t.Errorf("it saw other output than the first that fitted: %d bytes, %q", len(seen), seen[max(0, len(seen)-200):])
	}
}

// A slow viewer is told, seen without a race: there is no room, and then there is.
func TestConsoleTellsOfSkippedOutput(t *testing.T) {
	v := &viewer{wake: make(chan struct{}, 1)}
	half := strings.Repeat("x", viewerRoom/2)
	for _, data := range []string{half, half, "three"} {
		v.send([]byte(data))
	}
	v.out = v.out[len(half):]
	v.send([]byte("four"))
	if !v.lagged || string(v.out) != half {
		t.Fatalf("lagged %t, %d bytes wait", v.lagged, len(v.out))
	}
	v.out = v.out[len(half)/2:]
	v.send([]byte("five"))
	v.send([]byte("six"))
	if got := string(v.out[len(half)/2:]); strings.Count(got, skipped) != 1 || !strings.HasSuffix(got, "\r\nfivesix") {
		t.Errorf("after the gap: %q", got)
	}
}

// However little is read at a time, only how much it is counts.
func TestConsoleKeepsManySmallReads(t *testing.T) {
	v := &viewer{wake: make(chan struct{}, 1)}
	for range 10_000 {
		v.send([]byte("."))
	}
	if v.lagged || len(v.out) != 10_000 {
		t.Errorf("lagged %t, %d bytes wait", v.lagged, len(v.out))
	}
}

// The guest's end does not wait for viewers: neither one that does not read nor
// one that reads slowly.
func TestConsoleClosesInTime(t *testing.T) {
	for _, tt := range []struct {
		name string
		seen bool // the end of the line, before Close
		read func(viewer net.Conn, stop <-chan struct{})
	}{
		{"nobody reads", false, func(net.Conn, <-chan struct{}) {}},
		{"nobody reads, QEMU has gone before", true, func(net.Conn, <-chan struct{}) {}},
		{"somebody reads slowly", false, func(viewer net.Conn, stop <-chan struct{}) {
			buf := make([]byte, 12<<10)
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
					viewer.Read(buf)
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLine(t, 1<<20)
			viewer := l.view()
			stop := make(chan struct{})
			defer close(stop)
			l.print(strings.Repeat("x", 4<<20))
			go tt.read(viewer, stop)
			l.qemu.Close()
			if tt.seen {
				l.eventually("the guest's end is seen", func() bool {
					l.cons.mu.Lock()
					defer l.cons.mu.Unlock()
					return l.cons.over
				})
			}
			start := time.Now()
			if err := l.cons.Close(); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("closed after %v", took)
			}
		})
	}
}

// What QEMU wrote last reaches log and viewers.
func TestConsoleLastWords(t *testing.T) {
	l := newLine(t, 1<<20)
	viewer := l.view()
	l.print("reboot: Power down\r\n")
	l.qemu.Close()
	if err := l.cons.Close(); err != nil {
		t.Fatal(err)
	}
	viewer.SetReadDeadline(time.Now().Add(10 * time.Second))
	seen, err := io.ReadAll(viewer)
	if err != nil || string(seen) != "reboot: Power down\r\n" {
		t.Errorf("the viewer saw %q, %v", seen, err)
	}
	if log, err := os.ReadFile(l.dir.path(fileConsoleLog)); err != nil || !bytes.Equal(log, seen) {
		t.Errorf("the log has %q, %v", log, err)
	}
}
