package guesttest

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// The Debian guest boots from its disk by BIOS, under a plain QEMU, and without a seed.
func TestDebian(t *testing.T) {
	files := Debian(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	console := filepath.Join(t.TempDir(), "console")
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35", "-cpu", "max",
		"-accel", "tcg,thread=multi", "-m", "512", "-snapshot", "-drive", "if=virtio,format=qcow2,file="+files.Image,
		"-serial", "unix:"+console+",server=on,wait=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		t.Log(stderr.String())
	}()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if matches, _ := filepath.Glob(console); matches != nil {
			break
		}
		if time.Since(start) > 30*time.Second {
			t.Fatal("QEMU makes no console")
		}
	}
	start := time.Now()
	sh, err := DialShell(ctx, console)
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	t.Logf("a shell after %v", time.Since(start).Round(time.Second))
	for command, want := range map[string]string{
		"systemctl is-system-running --wait": "running",
		"hostname; printf '%s' a; echo b":    "debian\nab",
		"cloud-init status":                  "status: disabled",
		"systemd-detect-virt":                "qemu",
		"wc -c </etc/machine-id":             "33",
		"ls /etc/ssh/ssh_host_*_key":         "/etc/ssh/ssh_host_ed25519_key",
	} {
		if got, err := sh.Run(ctx, command); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", command, got, err, want)
		}
	}
	blame, err := sh.Run(ctx, "systemd-analyze; systemd-analyze blame | head -n 15")
	t.Logf("%s, %v", blame, err)
}
