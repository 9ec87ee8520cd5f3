package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is wrong with the words alone is wrong usage, whatever there is on the host, and
// makes nothing.
func TestWrongWords(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := unix.Mkfifo("pipe.img", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, words := range [][]string{
		{"snapshot", "nobody", "../x"},
		{"snapshot", "nobody", "12"},
		{"rollback", "nobody", "a\nb"},
		{"disk", "snapshot", "some.qcow2", ""},
		{"disk", "rollback", "some.qcow2", "../x"},
		{"disk", "create", "some.qcow2", "--base", "base"},
		{"exec", "--timeout=1us", "nobody", "--", "true"},
		{"init", "web1", "--parent=lo", "--image=pipe.img"},
	} {
		status := make(chan int, 1)
		go func() { status <- run(append([]string{"--run-dir", filepath.Join(t.TempDir(), "run")}, words...)) }()
		select {
		case got := <-status:
			want := 2
			if words[0] == "exec" {
				want = execFailed
			}
			if got != want {
				t.Errorf("%q ends with %d", words, got)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%q does not end", words)
		}
	}
	if list, err := os.ReadDir("."); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}
