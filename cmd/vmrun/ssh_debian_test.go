package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/guesttest"
)

// TestEnterDebian logs in to a real Debian guest, has its agent run commands and freeze
// its file systems around a snapshot, and stops it.
func TestEnterDebian(t *testing.T) {
	files := guesttest.Debian(t)
	h := newHost(t)
	h.patience = 13 * time.Minute
	dir := t.TempDir()
	h.agentWithKey(filepath.Join(dir, "key"))
	spec := filepath.Join(dir, "web1.toml")
	text := "memory = \"512MiB\"\naccel = \"tcg\"\nstop.timeout = \"2m\"\n" + files.Boot() + files.Disk("web1.qcow2") +
		fmt.Sprintf("[[nic]]\nparent = \"lab0\"\nhost_access = true\naddresses = [\"192.0.2.11/24\"]\n[cloud_init]\nusers = [\"alice\"]\nssh_keys = [%q]\n", filepath.Join(dir, "key.pub"))
	if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.vmrun(0, `^web1: running`, "start", spec)
	t.Cleanup(func() { h.vmrun(0, "", "cleanup") })
	t.Cleanup(func() { exec.Command(h.bin, "--run-dir", h.run, "kill", "web1").Run() })
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := exec.Command(h.bin, "--run-dir", h.run, "logs", "--console", "-n", "40", "web1").CombinedOutput()
			t.Logf("%s", out)
		}
	})
	h.vmrun(7, `^alice web1$`, "ssh", "--wait=12m", spec, "--", "echo $(id -un) $(hostname); exit 7")
	h.vmrun(0, `\A`, "ssh", "web1", "true") // by the key that is known now
	known, err := launcher.KnownHosts(h.run, "web1")
	if err == nil {
		_, err = os.Stat(known)
	}
	if err != nil {
		t.Error(err)
	}

	h.vmrun(0, `^(running|degraded)$`, "exec", "--timeout=5m", "web1", "--", "sh", "-c", "systemctl is-system-running --wait || :")
	h.vmrun(0, `\Auid=0\(root\)`, "exec", "web1", "id")
	h.vmrun(0, `"filesystems": [1-9]`, "qmp", "web1", launcher.CommandSnapshot, `{"disk": "disk0", "snapshot": "s1"}`)
	h.vmrun(0, `\A\z`, "exec", "web1", "--", "sh", "-c", "echo 1 >/root/thawed; sync")

	h.vmrun(0, `^web1: stopped \((agent|powerdown)\)$`, "stop", "web1") // by the latter where the machine is too busy for an agent
}

// agentWithKey makes a key that ssh offers, for as long as the test runs.
func (h *host) agentWithKey(path string) {
	h.t.Helper()
	socket := filepath.Join(h.run, "ssh-agent")
	h.t.Setenv("SSH_AUTH_SOCK", socket)
	agent := exec.Command("ssh-agent", "-D", "-a", socket)
	if err := agent.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { agent.Process.Kill(); agent.Wait() })
	h.eventually("there is an ssh-agent", func() string {
		if _, err := os.Stat(socket); err != nil {
			return err.Error()
		}
		return ""
	})
	for _, words := range [][]string{{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path}, {"ssh-add", "-q", path}} {
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			h.t.Fatalf("%v: %v\n%s", words, err, out)
		}
	}
}
