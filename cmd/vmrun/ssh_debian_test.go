package main

import (
	"bufio"
	"context"
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

	h.vmrun(0, `\A`, "disk", "resize", "web1", "disk0", "3GiB")
	h.vmrun(0, `^6291456$`, "exec", "web1", "--", "cat", "/sys/block/vda/size") // of 512 bytes
	h.sshSurvivesSuspension("web1")
	h.vmrun(0, `^alice web1$`, "ssh", "web1", "--", "echo $(id -un) $(hostname)")
	h.vmrun(0, `^web1: stopped \(agent\)$`, "stop", "web1")
}

// sshSurvivesSuspension suspends a guest under an open ssh connection, which goes on
// afterwards.
func (h *host) sshSurvivesSuspension(name string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 5*time.Minute)
	defer cancel()
	session := exec.CommandContext(ctx, h.bin, "--run-dir", h.run, "ssh", name, "--", "while read -r line; do echo got $line; done")
	in, err := session.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := session.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.lab.Host.Do(session.Start); err != nil {
		h.t.Fatal(err)
	}
	defer session.Wait()
	defer in.Close()
	answers := bufio.NewScanner(out)
	ask := func(word string) {
		h.t.Helper()
		if _, err := fmt.Fprintln(in, word); err != nil {
			h.t.Fatal(err)
		}
		if !answers.Scan() || answers.Text() != "got "+word {
			h.t.Fatalf("over the open connection: %q, %v; want an answer to %q", answers.Text(), answers.Err(), word)
		}
	}
	ask("before")
	h.vmrun(0, `^`+name+`: suspended`, "suspend", name)
	h.vmrun(0, `^`+name+` +suspended `, "ps", "--all")
	h.vmrun(0, `^`+name+`: resumed, running`, "resume", name)
	ask("after")
}

// TestDebianSecureBoot boots the same image by UEFI with secure boot, from its own boot
// loader, with a TPM that it sees.
func TestDebianSecureBoot(t *testing.T) {
	files := guesttest.Debian(t)
	needFirmware(t)
	h := newHost(t)
	h.patience = 10 * time.Minute
	spec := filepath.Join(t.TempDir(), "sealed.toml")
	text := "memory = \"512MiB\"\naccel = \"tcg\"\nfirmware = \"uefi\"\nsecure_boot = true\ntpm = true\nstop.timeout = \"2m\"\n" +
		files.Disk("sealed.qcow2") + "[[nic]]\nparent = \"lab0\"\nhost_access = true\naddresses = [\"192.0.2.12/24\"]\n[cloud_init]\nusers = [\"alice\"]\nssh_keys = []\n"
	if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.cleanup("sealed")
	h.vmrun(0, `^sealed: running`, "start", spec)
	sh, err := guesttest.DialShell(t.Context(), launcher.ConsoleSocket(h.run, "sealed"))
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	ctx, cancel := context.WithTimeout(t.Context(), h.patience)
	defer cancel()
	if out, err := sh.Run(ctx, cloudInitDone); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, tt := range []struct{ command, want string }{
		{"od -An -t u1 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c | awk '{print $NF}'", "1"},
		{"cat /sys/class/tpm/tpm0/tpm_version_major", "2"},
		{"test -c /dev/tpmrm0 && hostname", "sealed"},
	} {
		if out, err := sh.Run(ctx, tt.command); err != nil || out != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.command, out, err, tt.want)
		}
	}
	h.vmrun(0, `^sealed: stopped \(agent\)$`, "stop", "sealed")
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
