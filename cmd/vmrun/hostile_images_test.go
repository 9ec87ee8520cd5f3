package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestHostileImages starts guests on images as somebody may have made them who wants
// to read the host's files: each start is refused, or harmless.
func TestHostileImages(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	secret := at("secret.raw")
	if err := os.WriteFile(secret, []byte(strings.Repeat("secret of the host ", 1<<13)[:128<<10]), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-u", "-b", secret, "-F", "raw", "overlay.qcow2", "128K"},
		{"-u", "-b", at("loop2.qcow2"), "-F", "qcow2", "loop1.qcow2", "1M"},
		{"-u", "-b", at("loop1.qcow2"), "-F", "qcow2", "loop2.qcow2", "1M"},
		{"-u", "-b", at("loop1.qcow2"), "-F", "qcow2", "loop.qcow2", "1M"},
		{"-o", "preallocation=full", "whole.qcow2", "1M"},
		{"good.qcow2", "1M"},
	} {
		cmd := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %q: %v: %s", args, err, out)
		}
	}
	// What a guest could have written to its raw disk: the header of that overlay.
	overlay, err := os.ReadFile(at("overlay.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(at("whole.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"header.raw": append(overlay, make([]byte, 1<<20-len(overlay)%512)...), "cut.qcow2": whole[:len(whole)/2]} {
		if err := os.WriteFile(at(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	spec := func(disk string) string {
		path := filepath.Join(t.TempDir(), "web1.toml")
		if err := os.WriteFile(path, []byte("accel = \"tcg\"\nmemory = \"64MiB\"\n[[disk]]\n"+disk), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	before := h.lab.Snapshot(t, h.run)
	path := func(name string) string { return fmt.Sprintf("path = %q\n", at(name)) }
	h.vmrun(2, `web1\.toml:4: disk\[0\]\.path: .*overlay\.qcow2 is an overlay of ".*secret\.raw": declare it with base`, "start", spec(path("overlay.qcow2")))
	h.vmrun(2, `loop1\.qcow2 is its own base, by way of .*loop\.qcow2, .*loop1\.qcow2, .*loop2\.qcow2, .*loop1\.qcow2`, "start", spec(path("loop.qcow2")+fmt.Sprintf("base = %q\n", at("loop1.qcow2"))))
	h.vmrun(2, `cut\.qcow2 is truncated: its file has \d+ bytes, and .* ends at byte \d+: copy it again`, "start", spec(path("cut.qcow2")))
	h.vmrun(2, `header\.raw is an overlay of|declare it with base`, "start", spec(path("header.raw")+"format = \"qcow2\"\n"))

	t.Cleanup(func() { exec.Command(h.bin, "--run-dir", h.run, "kill", "web1").Run() })
	h.vmrun(0, `^web1: paused`, "start", "--paused", spec(path("header.raw")))
	var drives []struct {
		Inserted struct {
			Driver string `json:"drv"`
			Depth  int    `json:"backing_file_depth"`
			Image  struct {
				Size int64 `json:"virtual-size"`
			} `json:"image"`
		} `json:"inserted"`
	}
	if err := json.Unmarshal([]byte(h.vmrun(0, `^`, "qmp", "web1", "query-block")), &drives); err != nil {
		t.Fatal(err)
	}
	if d := drives[0].Inserted; d.Driver != "raw" || d.Depth != 0 || d.Image.Size <= 1<<20 {
		t.Errorf("QEMU has %+v: want the image as it is, with its header for the guest to read", d)
	}
	if open := h.opened("web1"); !strings.Contains(open, "header.raw") || strings.Contains(open, "secret.raw") {
		t.Errorf("QEMU has open:\n%s", open)
	}
	h.vmrun(0, `^web1: stopped`, "kill", "web1")

	// The other ways to read and write, within the same walls.
	h.vmrun(0, `^web1: paused`, "start", "--paused", spec(path("good.qcow2")+"io = \"io_uring\"\nthrottle.bps_total = \"1MiB\"\n"))
	h.vmrun(0, `^web1: stopped`, "kill", "web1")
	if left := before.Wait(3 * time.Second); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}
