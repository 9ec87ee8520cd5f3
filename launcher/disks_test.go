package launcher

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/launcher/guesttest"
)

// TestDisks boots a guest with a disk on every bus, writes in it, and finds
// what was written again after a restart: in the overlay, not in its base.
func TestDisks(t *testing.T) {
	b := newBench(t)
	b.files = guesttest.Options{Modules: []string{"virtio_scsi", "sd_mod"}}.Image(t)
	dir := t.TempDir()
	base := filepath.Join(dir, "base.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", base, "8M")
	iso := filepath.Join(dir, "seed, with comma.iso")
	if err := os.WriteFile(iso, []byte(strings.Repeat("I", 1<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	overlay, raw := filepath.Join(dir, "web1.qcow2"), filepath.Join(dir, "data.raw")
	g := b.spec("disks", "",
		fmt.Sprintf("[[disk]]\npath = %q\nbase = %q\nsize = \"16MiB\"\ncache = \"none\"\ndiscard = true", overlay, base),
		fmt.Sprintf("[[disk]]\npath = %q\nsize = \"4MiB\"\nbus = \"scsi\"\ncache = \"directsync\"", raw),
		fmt.Sprintf("[[disk]]\npath = %q\nsize = \"1MiB\"\nbus = \"ide\"", filepath.Join(dir, "ide.raw")),
		fmt.Sprintf("[[disk]]\npath = %q\ncdrom = true", iso),
		nic("bridge"))
	console := b.boot(g)[0]
	_, lines, err := console.Run(b.within(10*time.Second), "disks")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the guest sees: %v", lines)
	for _, want := range []string{"vda size=16777216", "sda size=4194304"} {
		if !strings.Contains(strings.Join(lines, "\n"), want) {
			t.Errorf("the guest sees %v, want %q among them", lines, want)
		}
	}
	b.say(console, "writedisk vda 4096 c0ffee")
	b.say(console, "writedisk sda 512 decade")
	b.stop(g, RungPowerdown)

	console = b.boot(g)[0]
	if got := b.say(console, "readdisk vda 4096 3"); !strings.Contains(got, "c0ffee") {
		t.Errorf("vda after a restart: %s", got)
	}
	if got := b.say(console, "readdisk sda 512 3"); !strings.Contains(got, "decade") {
		t.Errorf("sda after a restart: %s", got)
	}
	b.stop(g, RungPowerdown)
	if out := qemuImg(t, "map", "--output=json", "-f", "qcow2", base); strings.Contains(out, `"data": true`) {
		t.Errorf("the base was written: %s", out)
	}
	if out := qemuImg(t, "info", "-f", "qcow2", overlay); !strings.Contains(out, base) {
		t.Errorf("the overlay's base: %s", out)
	}
	b.clean("disks")
}

// TestDiskIsOneGuests has guests share images: a base as long as all only read it,
// and nothing else.
func TestDiskIsOneGuests(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	raw, base := filepath.Join(dir, "data.raw"), filepath.Join(dir, "base.qcow2")
	qemuImg(t, "create", "-q", "-f", "raw", raw, "1M")
	qemuImg(t, "create", "-q", "-f", "qcow2", base, "1M")
	overlay := func(name string) string {
		return fmt.Sprintf("[[disk]]\npath = %q\nbase = %q", filepath.Join(dir, name+".qcow2"), base)
	}
	first := b.spec("first", "", fmt.Sprintf("[[disk]]\npath = %q", raw), overlay("first"))
	b.mustStart(first, order{Paused: true})
	if said := readFile(t, guestDir(b.base, first.Name).path(fileQEMULog)); len(said) > 0 {
		t.Errorf("QEMU said: %s", said) // of a lock that it does without, for example
	}
	b.mustStart(b.spec("second", "", overlay("second")), order{Paused: true})
	for _, disk := range []string{raw, base, filepath.Join(dir, "first.qcow2")} {
		lines := fmt.Sprintf("[[disk]]\npath = %q", disk)
		if disk == filepath.Join(dir, "first.qcow2") {
			lines = overlay("first")
		}
		_, err := b.start(b.spec("third", "", lines), order{Paused: true})
		if err == nil || !strings.Contains(err.Error(), "a disk can be written by one guest at a time") {
			t.Errorf("%s, which others have: %v", disk, err)
		}
	}
}

// TestFailedStartRemovesItsDisk starts a guest whose QEMU refuses: the disk that
// was created for it goes again, one that was there stays.
func TestFailedStartRemovesItsDisk(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	made, kept := filepath.Join(dir, "made.qcow2"), filepath.Join(dir, "kept.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", kept, "1M")
	g := b.spec("fails", "", fmt.Sprintf("[[disk]]\npath = %q\nsize = \"1MiB\"\n[[disk]]\npath = %q", made, kept))
	b.rewrite(g, `qemu_args = ["-device", "no-such-device"]`)
	if _, err := b.start(mustLoad(t, g.Path), order{}); err == nil {
		t.Error("the start did not fail")
	}
	if _, err := os.Stat(made); !os.IsNotExist(err) {
		t.Errorf("the disk that was created: %v", err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("the disk that was there: %v", err)
	}
	b.clean("failed start")
}

func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestNICs boots a guest with several NICs, one of them with several queues and
// an MTU, one of another model, and looks at them from inside.
func TestNICs(t *testing.T) {
	b := newBench(t)
	b.files = guesttest.Options{Modules: []string{"vmxnet3"}}.Image(t)
	g := b.spec("nics", "192.0.2.11/24", nic("bridge", "queues = 2", "mtu = 1400"),
		nic("private", `mac = "02:00:00:00:00:02"`, "boot_index = 1"), nic("vepa", `model = "vmxnet3"`))
	b.rewrite(g, "cpus = 2")
	g = mustLoad(t, g.Path)
	console := b.boot(g)[0]
	_, lines, err := console.Run(b.within(10*time.Second), "links")
	if err != nil {
		t.Fatal(err)
	}
	links := strings.Join(lines, "\n")
	t.Log(links)
	status := b.observe(g)
	for i, want := range []string{"virtio_net", "virtio_net", "vmxnet3"} {
		line := ""
		for _, l := range lines {
			if strings.Contains(l, status.NICs[i].MAC) {
				line = l
			}
		}
		if !strings.Contains(line, want) {
			t.Errorf("nic %d (%s): %q, want driver %s", i, status.NICs[i].MAC, line, want)
		}
		if i == 0 && (!strings.Contains(line, "mtu=1400") || !strings.Contains(line, "/2")) {
			t.Errorf("nic 0: %q, want an MTU of 1400 and 2 queues", line)
		}
	}
	b.say(console, "queues eth0 2")
	if reply := b.say(console, "ping 192.0.2.1 5"); reply != "sent=5 received=5" {
		t.Errorf("ping over two queues: %s", reply)
	}
	b.stop(g, RungPowerdown)
	b.clean("NICs")
}

// TestDiskWorkIsWaitedFor has a disk being changed when the guest is to be suspended,
// and when its supervisor is to go on as another program.
func TestDiskWorkIsWaitedFor(t *testing.T) {
	for what, begin := range map[string]func(*life) error{
		"suspend": func(l *life) error { return l.suspend(t.Context()) },
		"reexec": func(l *life) error {
			_, err := l.serveReexec(t.Context(), json.RawMessage(fmt.Sprintf(`{"reads": %d}`, recordVersion)))
			return err
		},
	} {
		l := newLife(&configs.Guest{Name: "guest"}, Options{RunDir: t.TempDir(), Reexec: func() error { return nil }})
		close(l.nics.started)
		l.diskWork.Lock()
		done := make(chan error, 1)
		go func() { done <- begin(l) }()
		select {
		case err := <-done:
			t.Errorf("%s did not wait: %v", what, err)
			l.diskWork.Unlock()
			continue
		case <-time.After(200 * time.Millisecond):
		}
		l.diskWork.Unlock()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "the guest is starting") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
