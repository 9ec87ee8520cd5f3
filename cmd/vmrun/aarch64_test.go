package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/guesttest"
)

// testAll skips what takes long, unless all is to be tested.
func testAll(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("VMRUN_TEST_ALL") != "1" {
		t.Skip("takes long, or needs packages of its own: make test-all")
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatal(err)
		}
	}
}

// boot starts a guest and returns its console. The guest ends with the test.
func (h *host) boot(name, spec string) *guesttest.Console {
	h.t.Helper()
	path := filepath.Join(h.specs, name+".toml")
	if err := os.WriteFile(path, []byte(spec), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.vmrun(0, "^"+name+": running", "start", path)
	h.t.Cleanup(func() { h.vmrun(0, "", "cleanup") })
	h.t.Cleanup(func() { exec.Command(h.bin, "--run-dir", h.run, "kill", name).Run() })
	console, err := guesttest.Dial(h.t.Context(), launcher.ConsoleSocket(h.run, name))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		console.Close()
		if h.t.Failed() {
			h.t.Logf("%s:\n%s", name, console.Transcript())
		}
	})
	return console
}

// A guest of another architecture, with its UEFI, on a macvtap: it is reached, and
// powers off when it is asked to.
func TestARMGuest(t *testing.T) {
	testAll(t, "qemu-system-aarch64")
	h := newHost(t)
	files := guesttest.Options{ARM64: true}.Image(t)
	before := h.lab.Snapshot(t, h.run)
	start := time.Now()
	console := h.boot("arm1", fmt.Sprintf(`arch = "aarch64"
memory = "512MiB"
cpus = 2
display = "vnc"
boot = { kernel = %q, initrd = %q, cmdline = "%s vmrun.addr=eth0:192.0.2.11/24" }
nic = [{ parent = "lab0" }]
`, files.Kernel, files.Initrd, guesttest.CmdlineARM64))
	words, err := console.WaitReady(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %v: %s", time.Since(start).Round(time.Millisecond), words)
	sent, received, err := h.lab.Outside.Ping(t.Context(), netip.MustParseAddr("192.0.2.11"), 5, 100*time.Millisecond)
	if sent != 5 || received != 5 || err != nil {
		t.Errorf("%d of %d answered, %v", received, sent, err)
	}
	h.vmrun(0, `"arch": "aarch64"`, "qmp", "arm1", "query-target")
	h.vmrun(0, "", "screenshot", "arm1", filepath.Join(t.TempDir(), "arm1.png"))
	h.vmrun(0, `^arm1: stopped \(powerdown\)$`, "stop", "arm1")
	if diff := before.Wait(3 * time.Second); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}
