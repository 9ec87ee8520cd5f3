package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vmrun/launcher/guesttest"
)

// bootFiles lays out what a server of boot files has: the test guest's kernel,
// its initramfs, compressed for the way, and a script that boots the two.
func bootFiles(t *testing.T, cmdline string) (dir string) {
	t.Helper()
	files := guesttest.Image(t)
	dir = t.TempDir()
	kernel, err := os.ReadFile(files.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := os.ReadFile(files.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	var small bytes.Buffer
	w, _ := gzip.NewWriterLevel(&small, gzip.BestSpeed)
	if _, err = w.Write(initrd); err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	script := "#!ipxe\nkernel vmlinuz initrd=initrd.img " + cmdline + "\ninitrd initrd.img\nboot\n"
	for name, data := range map[string][]byte{"vmlinuz": kernel, "initrd.img": small.Bytes(), "boot.ipxe": []byte(script)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A guest without disk or kernel boots what a server on the wire gives it, over its
// macvtap: the firmware of its NIC asks for an address, a script, a kernel.
func TestNetworkBoot(t *testing.T) {
	h := newHost(t)
	dir := bootFiles(t, guesttest.Cmdline+" vmrun.addr=eth0:192.0.2.11/24")
	h.lab.ServeBoot(t, dir, "boot.ipxe")
	before := h.lab.Snapshot(t, h.run)
	start := time.Now()
	console := h.boot("pxe1", "memory = \"256MiB\"\naccel = \"tcg\"\n[[nic]]\nparent = \"lab0\"\nboot_index = 0\n")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	words, err := console.WaitReady(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %v: %s", time.Since(start).Round(time.Millisecond), words)
	if _, received, err := h.lab.Outside.Ping(ctx, netip.MustParseAddr("192.0.2.11"), 3, 0); received != 3 || err != nil {
		t.Errorf("%d of 3 answered, %v", received, err)
	}
	h.vmrun(0, `^pxe1 +running .*192\.0\.2\.11`, "ps")
	h.vmrun(0, `^pxe1: stopped`, "kill", "pxe1")
	if diff := before.Wait(3 * time.Second); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}
