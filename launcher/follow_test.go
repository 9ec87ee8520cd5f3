package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLastLines(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	for _, tt := range []struct {
		name, older, newer string
		lines              int
		want               string
	}{
		{"all", "a\n", "b\n", -1, "a\nb\n"},
		{"none", "a\n", "b\n", 0, ""},
		{"one", "a\n", "b\nc\n", 1, "c\n"},
		{"all of the newer part", "a\n", "b\nc\n", 2, "b\nc\n"},
		{"of both", "z\na\n", "b\nc\n", 3, "a\nb\nc\n"},
		{"more than there are", "z\na\n", "b\nc\n", 9, "z\na\nb\nc\n"},
		{"without an end", "", "b\nc", 1, "c"},
		{"empty lines", "", "a\n\n\n", 2, "\n\n"},
		{"longer than a block", "", "a\n" + long + "\nb\n", 2, long + "\nb\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			for file, text := range map[string]string{path: tt.newer, path + olderPart: tt.older} {
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			log, err := OpenLog(path, tt.lines)
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			if got, err := io.ReadAll(log); err != nil || string(got) != tt.want {
				t.Errorf("%.100q, %v, want %.100q", got, err, tt.want)
			}
		})
	}
}

// A log that is followed is read whole and in order while it is rotated, over and
// over, by the guest's supervisor, and ends with what it had at the end.
func TestFollowLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log, err := FollowLog(ctx, path, -1) // before it is there
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	read := make(chan string)
	go func() {
		text, err := io.ReadAll(log)
		if err != nil {
			t.Error(err)
		}
		read <- string(text)
	}()
	r, err := openRotating(path, 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const lines = 1000
	for i := range lines {
		if _, err := fmt.Fprintf(r, "line %d of what is written\n", i); err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 { // less than a part between two looks, or a part is lost
			time.Sleep(2 * followSoon)
		}
	}
	cancel()
	next := 0
	text := strings.ReplaceAll(<-read, rotated, "")
	for line := range strings.Lines(text) {
		if line != fmt.Sprintf("line %d of what is written\n", next) {
			t.Fatalf("%q came as line %d", line, next)
		}
		next++
	}
	if next != lines {
		t.Errorf("%d lines, want %d", next, lines)
	}
}

// Whatever becomes of a log, its follower goes on with what is there.
func TestFollowChangedLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write := func(text string) {
		t.Helper()
		f, err := openAppend(path)
		if err == nil {
			_, err = f.WriteString(text)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	write("a\nb\n")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	log, err := FollowLog(ctx, path, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	want := func(text string) {
		t.Helper()
		got := make([]byte, len(text))
		if _, err := io.ReadFull(log, got); err != nil || string(got) != text {
			t.Fatalf("%q, %v, want %q", got, err, text)
		}
	}
	want("b\n")
	write("c\n")
	want("c\n")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	write("d\n")
	want("d\n")
	if err := os.Rename(path, path+olderPart); err != nil { // twice, between two looks
		t.Fatal(err)
	}
	write("e\n")
	if err := os.Rename(path, path+olderPart); err != nil {
		t.Fatal(err)
	}
	write("f\n")
	want("e\nf\n")
	if err := errors.Join(os.Remove(path), os.Remove(path+olderPart)); err != nil { // vmrun cleanup
		t.Fatal(err)
	}
	time.Sleep(2 * followSoon)
	write("g\n")
	want("g\n")
	cancel()
	if n, err := log.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
}
