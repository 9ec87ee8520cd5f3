package launcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
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
	w := &walls{files: maxFiles, Confine: configs.Confine{User: true, Seccomp: true, Root: true, Namespaces: true, Landlock: true, RLimits: true},
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

// TestConfinement has a program run exactly as QEMU would be, with a guest's own
// descriptors, and try what no QEMU must be able to do. QEMU's own filter is not
// among its walls, so there is one more for QEMU.
func TestConfinement(t *testing.T) {
	b := newBench(t)
	disk := func(name string) string {
		path := filepath.Join(b.specs, name)
		b.must(os.WriteFile(path, make([]byte, 1<<20), 0o666))
		b.must(os.Chmod(path, 0o666)) // that the mode does not protect it
		return path
	}
	victimDisk, base, own := disk("victim.raw"), disk("base.raw"), disk("own.raw")
	victim := b.spec("victim", "", nic("bridge"), "[[disk]]", fmt.Sprintf("path = %q", victimDisk))
	other := b.mustStart(victim, order{Paused: true}).Status

	segment, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o666)
	b.must(err)
	t.Cleanup(func() { unix.SysvShmCtl(segment, unix.IPC_RMID, nil) })
	abstract := "@vmrun-test-" + filepath.Base(b.base)
	var l net.Listener
	b.must(b.lab.Host.Do(func() (err error) { l, err = net.Listen("unix", abstract); return err }))
	defer l.Close()
	secret := disk("secret")
	text, err := json.Marshal(prey{Secret: secret, RunDir: b.base, Disk: victimDisk, PID: other.PID, MAC: other.NICs[0].MAC,
		Socket: guestDir(b.base, victim.Name).path(fileControl), Abstract: abstract, Segment: segment})
	b.must(err)

	g := b.spec("probing", "", nic("bridge", "pin = \"mac\""),
		"[[disk]]", fmt.Sprintf("path = %q", base), "readonly = true", "[[disk]]", fmt.Sprintf("path = %q", own))
	b.rewrite(g, fmt.Sprintf("qemu = %q\nqemu_args = [%q]", b.installProbe(), text))
	if _, err := b.start(mustLoad(t, g.Path), order{}); err == nil {
		t.Fatal("a probe is no QEMU")
	}
	report, err := os.ReadFile(guestDir(b.base, g.Name).path(fileQEMULog))
	b.must(err)
	t.Logf("%d attempts\n%s", strings.Count(string(report), "\n"), report)
	for line := range strings.Lines(string(report)) {
		if !strings.HasPrefix(line, "refused ") {
			t.Error(line)
		}
	}
	if got, want := strings.Count(string(report), "\n"), len(attempts()); got != want {
		t.Errorf("%d attempts came to an end, of %d", got, want)
	}
	for _, path := range []string{victimDisk, base, own} {
		info, err := os.Stat(path)
		b.must(err)
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 || info.Mode().Perm() != 0o666 {
			t.Errorf("%s is user %d's, mode %v", path, st.Uid, info.Mode())
		}
	}
	b.kill(victim.Name)
	b.clean("the probe")
}

// TestCraftedImage gives the real QEMU images whose headers name a file of the
// host's, as a guest can write them.
func TestCraftedImage(t *testing.T) {
	b := newBench(t)
	secret := filepath.Join(b.specs, "secret.raw")
	b.must(os.WriteFile(secret, make([]byte, 1<<20), 0o666))
	for _, backing := range []string{secret, `json:{"driver":"raw","file":{"driver":"file","filename":"` + secret + `"}}`} {
		image := filepath.Join(b.specs, "image.raw")
		if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, image).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		g := b.spec("crafted", "", nic("bridge"), "[[disk]]", fmt.Sprintf("path = %q", image), `format = "raw"`)
		pid := b.mustStart(g, order{Paused: true}).Status.PID
		for _, e := range entries(t, fmt.Sprintf("/proc/%d/fd", pid)) {
			if target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name())); target == secret {
				t.Errorf("QEMU has opened %s, which %s names", secret, backing)
			}
		}
		b.kill(g.Name)
		g = b.spec("crafted", "", nic("bridge"), "[[disk]]", fmt.Sprintf("path = %q", image), `format = "qcow2"`)
		if _, err := b.start(g, order{Paused: true}); KindOf(err) != KindSpec {
			t.Errorf("a backing file that the spec does not declare: %v", err)
		}
	}
	b.clean("crafted images")
}

// TestSecurity holds the summary against guests with all walls and with none.
func TestSecurity(t *testing.T) {
	b := newBench(t)
	confined, open := b.spec("confined", "", nic("bridge")), b.spec("open", "", nic("bridge"), "[confine]",
		"user = false", "seccomp = false", "root = false", "namespaces = false", "landlock = false", "rlimits = false")
	for _, tt := range []struct {
		name     string
		want     string // those that do not stand
		warnings int
	}{
		{confined.Name, "", 0},
		{open.Name, "user capabilities seccomp mounts processes ipc root landlock rlimits", 6},
	} {
		report := b.mustStart(mustLoad(t, filepath.Join(b.specs, tt.name+".toml")), order{Paused: true})
		walls, err := Security(b.base, tt.name)
		b.must(err)
		var fallen []string
		for _, w := range walls {
			t.Logf("%-9s %-13s %t: %s", tt.name, w.Name, w.Stands, w.Text)
			if !w.Stands {
				fallen = append(fallen, w.Name)
			}
		}
		if got := strings.Join(fallen, " "); got != tt.want {
			t.Errorf("%s: %q do not stand, want %q", tt.name, got, tt.want)
		}
		if got := strings.Count(strings.Join(report.Warnings, "\n"), "for debugging only"); got != tt.warnings {
			t.Errorf("%s: %d of 6 warnings: %q", tt.name, got, report.Warnings)
		}
		b.kill(tt.name)
		if _, err := Security(b.base, tt.name); !errors.Is(err, ErrState) {
			t.Errorf("%s has ended: %v", tt.name, err)
		}
	}
	if _, err := Security(b.base, "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
	b.clean("security")
}

// TestSlotOfRoot has a guest run as root. Its number on the host stays its own all
// the same, and so does what it has in the host's network.
func TestSlotOfRoot(t *testing.T) {
	b := newBench(t)
	g := b.spec("asroot", "", nic("bridge", "host_access = true", `addresses = ["192.0.2.12"]`), "[confine]", "user = false")
	b.mustStart(g, order{Paused: true})
	slot, lease, err := takeSlot(g.Name)
	b.must(err)
	lease.Close()
	if own := b.record(g).Slot; slot == own {
		t.Errorf("slot %d is leased while %s has it", own, g.Name)
	}
	b.killSupervisor(g.Name)
	other := b.spec("other", "", nic("bridge"))
	b.mustStart(other, order{Paused: true}) // which repairs what dead guests left
	if b.shim() == "" {
		t.Error("the way to a guest that runs as root was taken for a dead guest's")
	}
	b.mustStart(g, order{Paused: true})
	b.kill(g.Name)
	b.kill(other.Name)
	b.clean("a guest that ran as root")
}

// Of a QEMU in a prefix of its own what belongs to that is shown, and nothing that
// whoever has the prefix leads to by a link.
func TestLoadedByPrefix(t *testing.T) {
	prefix := t.TempDir()
	for _, dir := range []string{"bin", "share/qemu", "real-lib"} {
		if err := os.MkdirAll(filepath.Join(prefix, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	qemu := filepath.Join(prefix, "bin", "qemu")
	if err := errors.Join(os.WriteFile(qemu, nil, 0o755), os.Symlink("/etc", prefix+"/lib"), os.Symlink("real-lib", prefix+"/lib64")); err != nil {
		t.Fatal(err)
	}
	shown := loadedBy(qemu)
	for path, want := range map[string]bool{qemu: true, prefix + "/share/qemu": true, prefix + "/lib64": true, prefix + "/lib": false} {
		if slices.Contains(shown, path) != want {
			t.Errorf("%s: shown %t, of %v", path, !want, shown)
		}
	}
}
