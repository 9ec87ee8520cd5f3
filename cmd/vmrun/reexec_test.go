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

	"vmrun/launcher"
)

// A supervisor goes on as the program that has replaced its own, and the guest
// notices nothing, as often as that happens.
func TestReexec(t *testing.T) {
	h := newHost(t)
	spec := filepath.Join(t.TempDir(), "web1.toml")
	if err := os.WriteFile(spec, []byte(bareSpec+"[[nic]]\nparent = \"lab0\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.vmrun(0, `^web1: running: `, "start", spec)
	t.Cleanup(func() { h.vmrun(0, "", "cleanup") })
	t.Cleanup(func() { exec.Command(h.bin, "--run-dir", h.run, "kill", "web1").Run() })
	before := h.status("web1")

	h.upgrade("9.1-test")
	for range 2 {
		h.vmrun(0, `\Aweb1: adopted, running: lab0 bridge \S+\n\z`, "reexec")
		after := h.status("web1")
		if after.PID != before.PID || after.Supervisor != before.Supervisor || after.State != launcher.StateRunning {
			t.Fatalf("before %+v\nafter %+v", before, after)
		}
		exe := fmt.Sprintf("/proc/%d/exe", after.Supervisor)
		if out, err := exec.Command(exe, "version").CombinedOutput(); err != nil || !strings.Contains(string(out), " 9.1-test ") {
			t.Errorf("the supervisor is %s, %v", out, err)
		}
	}

	// A program that cannot be executed takes nobody's place.
	if err := os.Link(h.bin, h.bin+".good"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.bin+".new", []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(h.bin+".new", h.bin); err != nil {
		t.Fatal(err)
	}
	h.bin += ".good"
	h.vmrun(1, `^vmrun: web1: exec \S+: exec format error$`, "reexec", "web1")
	if got := h.status("web1"); got.Supervisor != before.Supervisor || got.State != launcher.StateRunning {
		t.Errorf("%+v", got)
	}

	// QEMU is the supervisor's child still, and is waited for at its end.
	h.vmrun(0, `^web1: stopped \(quit\)$`, "stop", "web1")
	for _, pid := range []int{before.PID, before.Supervisor} {
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
				break
			}
			if time.Now().After(deadline) {
				stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
				t.Fatalf("process %d is left: %s", pid, stat)
			}
		}
	}
	h.vmrun(3, `^vmrun: web1: not in the state needed: it has ended`, "reexec", "web1")
}

// upgrade puts another version in place of the program, as dpkg(1) does.
func (h *host) upgrade(version string) {
	h.t.Helper()
	out, err := exec.Command("go", "build", "-ldflags=-X main.version="+version, "-o", h.bin+".new", ".").CombinedOutput()
	if err == nil {
		err = os.Rename(h.bin+".new", h.bin)
	}
	if err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
}

func (h *host) status(name string) launcher.Status {
	h.t.Helper()
	var s launcher.Status
	if err := json.Unmarshal([]byte(h.vmrun(0, `^{`, "status", "--json", name)), &s); err != nil {
		h.t.Fatal(err)
	}
	return s
}
