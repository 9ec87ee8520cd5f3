package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/guesttest"
)

// The verbs about disks, on a guest that runs and on one that does not: a chain of
// four images with all there is to set, and a drive whose CD is changed.
func TestDiskVerbs(t *testing.T) {
	h := newHost(t)
	files := guesttest.Options{Modules: []string{"virtio_scsi", "sd_mod", "sr_mod"}}.Image(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("base.raw"), bytes.Repeat([]byte("base"), 2<<20/4), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"one.iso", "two.iso"} {
		if err := os.WriteFile(at(name), bytes.Repeat([]byte{byte(0x11 * (i + 1))}, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.vmrun(0, `^`+at("mid.qcow2")+`: qcow2, 2MiB, on `+at("base.raw")+`$`, "disk", "create", at("mid.qcow2"), "--base", at("base.raw"))
	h.vmrun(0, `: qcow2, 2MiB, on `+at("mid.qcow2")+`$`, "disk", "create", at("top.qcow2"), "--base="+at("mid.qcow2"))
	h.vmrun(1, `top.qcow2 is there already$`, "disk", "create", at("top.qcow2"), "1MiB")
	h.vmrun(0, `: raw, 1MiB$`, "disk", "create", at("data"), "1MiB", "--format=raw")
	h.vmrun(0, `: 2MiB$`, "disk", "resize", at("data"), "2MiB", "--format=raw")
	h.vmrun(1, `data has 2MiB, and a disk is never shrunk: 1MiB is less$`, "disk", "resize", "--format", "raw", at("data"), "1MiB")

	specs := t.TempDir()
	write := func(name, disks string) string {
		path := filepath.Join(specs, name+".toml")
		text := fmt.Sprintf("memory = \"192MiB\"\naccel = \"tcg\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n%s", files.Kernel, files.Initrd, guesttest.Cmdline, disks)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root := fmt.Sprintf("[[disk]]\npath = %q\nbase = %q\n", at("web1.qcow2"), at("top.qcow2"))
	spec := write("web1", root+fmt.Sprintf("size = \"4MiB\"\nserial = \"web1-root\"\niothread = true\nthrottle = { bps_read = \"50MiB\", iops_write = 500 }\n"+
		"[[disk]]\npath = %q\nformat = \"raw\"\nsize = \"3MiB\"\ncache = \"none\"\nio = \"native\"\n[[disk]]\ncdrom = true\nbus = \"scsi\"\n", at("data")))
	before := h.lab.Snapshot(t, h.run)
	h.vmrun(0, `grow .*data from 2MiB to 3MiB`, "plan", spec)
	h.vmrun(0, `^web1: running`, "start", spec)
	t.Cleanup(func() { h.vmrun(0, "", "cleanup") })
	t.Cleanup(func() { exec.Command(h.bin, "--run-dir", h.run, "kill", "web1").Run() })
	dial := func() *guesttest.Console {
		c, err := guesttest.Dial(within(t, 5*time.Second), launcher.ConsoleSocket(h.run, "web1"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	console := dial()
	if _, err := console.WaitReady(within(t, time.Minute)); err != nil {
		t.Fatalf("%v\n%s", err, console.Transcript())
	}
	say := func(want, command string) {
		t.Helper()
		reply, lines, err := console.Run(within(t, 20*time.Second), command)
		if all := reply + "\n" + strings.Join(lines, "\n"); err != nil || !strings.Contains(all, want) {
			t.Errorf("%s: %v, %q, want %q", command, err, all, want)
		}
	}
	say("vda size=4194304 readonly=0 serial=web1-root", "disks")
	say("vdb size=3145728", "disks")
	say("62617365", "readdisk vda 4096 4") // "base", through all layers
	h.vmrun(0, `^ +2MiB +2MiB +raw +on `+at("base.raw")+`$`, "disk", "info", "web1")
	h.vmrun(0, `^disk2 +- +- +- +an empty drive$`, "disk", "info", "web1")
	h.vmrun(0, `^disk0: in use by guest web1, pid \d+ \(qemu-system-x86\)$`, "disk", "info", "web1")
	h.vmrun(0, `^web1 +disk|^web1`, "stats", "web1")

	// Who has a disk is named.
	h.vmrun(1, at("web1.qcow2")+` is in use by guest web1, pid \d+ \(qemu-system-x86\): a disk can be written by one guest`, "start", write("web2", root))
	h.vmrun(1, at("top.qcow2")+` is in use by guest web1, pid`, "start", write("web3", fmt.Sprintf("[[disk]]\npath = %q\nbase = %q\n", at("top.qcow2"), at("mid.qcow2"))))
	h.vmrun(1, at("base.raw")+` is in use by guest web1, pid`, "start", write("web4", fmt.Sprintf("[[disk]]\npath = %q\n", at("base.raw"))))
	h.vmrun(1, `is in use by guest web1`, "disk", "resize", at("base.raw"), "1GiB")

	h.vmrun(0, `^web1: disk0: 6MiB$`, "disk", "resize", "web1", "disk0", "6MiB")
	say("vda size=6291456", "disks")
	h.vmrun(1, `^vmrun: web1: .*web1.qcow2 has 6MiB, and a disk is never shrunk: 5MiB is less$`, "disk", "resize", "web1", "disk0", "5MiB")
	h.vmrun(0, `^web1: disk1: 8MiB$`, "disk", "resize", "web1", "disk1", "8MiB")
	say("vdb size=8388608", "disks")
	h.vmrun(2, `the guest has no disk "disk3": it has disk0 to disk2$`, "disk", "resize", "web1", "disk3", "1GiB")

	h.vmrun(0, `^web1: disk0: snapshot first$`, "disk", "snapshot", "web1", "disk0", "first")
	say("bytes=3", "writedisk vda 4096 c0ffee")
	h.vmrun(1, `has a snapshot "first" already$`, "disk", "snapshot", "web1", "disk0", "first")
	h.vmrun(3, `^vmrun: web1: .*it runs, and would not notice: vmrun stop web1$`, "disk", "rollback", "web1", "disk0", "first")
	h.vmrun(0, `^disk0: snapshot first, 20`, "disk", "info", "web1")
	h.vmrun(1, `^vmrun: web1: disk1: only a qcow2 image`, "disk", "snapshot", "web1", "disk1", "first")

	h.vmrun(1, `^vmrun: web1: disk0 is no CD-ROM drive`, "disk", "insert", "web1", "disk0", at("one.iso"))
	h.vmrun(0, `^web1: disk2: .*/one.iso$`, "disk", "insert", "web1", "disk2", at("one.iso"))
	say("11111111", "readdisk sr0 2048 4")
	h.killSupervisor("web1")
	h.vmrun(0, `^web1: `, "start", spec)
	console = dial()
	h.vmrun(0, `^disk2 +1MiB +1MiB +raw +`+at("one.iso")+`$`, "disk", "info", "web1")
	h.vmrun(0, `^web1: disk2: .*/two.iso$`, "disk", "insert", "web1", "disk2", at("two.iso"), "--force")
	say("22222222", "readdisk sr0 2048 4")
	h.vmrun(1, `no such file or directory$`, "disk", "insert", "web1", "disk2", at("nowhere.iso"))
	h.vmrun(0, `^web1: disk2: ejected$`, "disk", "eject", "web1", "disk2", "--force")
	h.vmrun(0, `^disk2 +- +- +- +an empty drive$`, "disk", "info", "web1")
	if open := h.opened("web1"); strings.Contains(open, ".iso") {
		t.Errorf("QEMU has a CD open that was taken out:\n%s", open)
	}

	h.vmrun(0, `^web1: stopped`, "stop", "web1")
	h.vmrun(3, `the guest does not run`, "disk", "eject", "web1", "disk2")
	h.vmrun(0, `^web1: disk0: snapshot second$`, "disk", "snapshot", "web1", "disk0", "second")
	h.vmrun(1, `has no snapshot "third": it has \["first" "second"\]$`, "disk", "rollback", spec, "disk0", "third")
	if got := content(t, at("web1.qcow2"), 4096, 3); got != "\xc0\xff\xee" {
		t.Errorf("before the rollback: %x", got)
	}
	h.vmrun(0, `^web1: disk0: as it was at first$`, "disk", "rollback", "web1", "disk0", "first")
	if got := content(t, at("web1.qcow2"), 4096, 4); got != "base" {
		t.Errorf("after the rollback: %x", got)
	}
	h.vmrun(0, `^web1: disk0: snapshot second deleted$`, "disk", "snapshot", "--delete", "web1", "disk0", "second")
	var list []launcher.DiskInfo
	if err := json.Unmarshal([]byte(h.vmrun(0, `^\[`, "disk", "info", "--json", spec)), &list); err != nil || len(list) != 3 ||
		len(list[0].Layers) != 4 || len(list[0].Snapshots) != 1 || list[0].Holder != "" || list[0].Size != 6<<20 {
		t.Errorf("%v, %+v", err, list)
	}
	h.vmrun(0, `^vmrun: web1: disk\[0\]\.size: .*web1.qcow2 has 6MiB by now, and a disk is not shrunk to 4MiB$`, "plan", spec)
	if left := before.Wait(3 * time.Second); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

func within(t *testing.T, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// killSupervisor kills a guest's supervisor, and waits until it is gone.
func (h *host) killSupervisor(name string) {
	h.t.Helper()
	s, err := launcher.Observe(h.t.Context(), h.run, name)
	if err != nil || s.Supervisor == 0 {
		h.t.Fatalf("%+v, %v", s, err)
	}
	if err := syscall.Kill(s.Supervisor, syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if s, err := launcher.Observe(h.t.Context(), h.run, name); err == nil && s.Supervisor == 0 {
			return
		}
	}
	h.t.Fatal("the supervisor does not die")
}

// opened lists the files that a guest's QEMU has open.
func (h *host) opened(name string) string {
	h.t.Helper()
	s, err := launcher.Observe(h.t.Context(), h.run, name)
	if err != nil {
		h.t.Fatal(err)
	}
	var list []string
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.PID))
	for _, link := range links {
		target, _ := os.Readlink(link)
		list = append(list, target)
	}
	return strings.Join(list, "\n")
}

// content reads bytes of the disk in a qcow2 image.
func content(t *testing.T, image string, offset int64, length int) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "content.raw")
	if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, length)
	if _, err := f.ReadAt(data, offset); err != nil {
		t.Fatal(err)
	}
	return string(data)
}
