package launcher

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
)

// startConfined starts a program as QEMU is started, in a namespace of its own;
// it ends with the test. Its standard output goes to out, if that is not nil.
func startConfined(t testing.TB, uid int, out *os.File, path string, args ...string) *process {
	t.Helper()
	needRoot(t)
	ns, err := netsetup.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if out == nil {
		out = null
	}
	w := &walls{Confine: configs.Confine{User: true, Seccomp: true, Root: true, Namespaces: true, Landlock: true, RLimits: true},
		uid: uid, groups: []int{4242}, mount: t.TempDir(), shown: loadedBy(path), threads: 64}
	child, err := w.start(ns, path, args, []*os.File{null, out, null})
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

// confined runs a program to its end and returns what it wrote.
func confined(t testing.TB, path string, args ...string) (string, *process) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p := startConfined(t, userOf(maxSlots-1), out, path, args...)
	<-p.done
	data, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(data), p
}

func TestConfined(t *testing.T) {
	text, _ := confined(t, "/bin/cat", "/proc/self/status")
	got := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			got[key] = strings.Join(strings.Fields(value), " ")
		}
	}
	id := fmt.Sprint(userOf(maxSlots - 1))
	none := strings.Repeat("0", 16)
	ids := strings.Join([]string{id, id, id, id}, " ") // real, effective, saved, file system
	want := map[string]string{
		"Uid": ids, "Gid": ids, "Groups": "4242", "NoNewPrivs": "1",
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
	}
	for key := range want {
		if diff := cmp.Diff(want[key], got[key]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", key, diff)
		}
	}
}

// What QEMU inherits is what it is given.
func TestConfinedInheritsNothing(t *testing.T) {
	leak, err := unix.Open("/dev/zero", unix.O_RDONLY, 0) // as a caller leaves it: not close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	open, _ := confined(t, "/bin/ls", "-1", "/proc/self/fd")
	if diff := cmp.Diff([]string{"0", "1", "2", "3"}, strings.Fields(open)); diff != "" { // 3 is ls's own
		t.Errorf("descriptors (-want +got):\n%s", diff)
	}
	env, _ := confined(t, "/usr/bin/env")
	if diff := cmp.Diff([]string{"PATH=/usr/bin:/bin", "LC_ALL=C"}, strings.Fields(env)); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	dir, _ := confined(t, "/bin/readlink", "/proc/self/cwd")
	if strings.TrimSpace(dir) != "/" {
		t.Errorf("started in %q", dir)
	}
	stat, p := confined(t, "/bin/cat", "/proc/self/stat")
	if fields := strings.Fields(stat); fields[5] != fmt.Sprint(p.id.PID) {
		t.Errorf("pid %d is in the session of %s", p.id.PID, fields[5])
	}
}

// The thread that was confined is thrown away: the rest of the process is as
// it was.
func TestConfinementIsOneThreads(t *testing.T) {
	startConfined(t, userOf(maxSlots-1), nil, "/bin/true")
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		confined := confinedThreads(t)
		if len(confined) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("confined for good: %s", confined)
		}
	}
}

func confinedThreads(t testing.TB) (list []string) {
	t.Helper()
	paths, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(data), "NoNewPrivs:\t1") {
			list = append(list, path)
		}
	}
	return list
}
