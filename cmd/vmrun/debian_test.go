package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/guesttest"
)

// cloudInitDone waits for cloud-init, and fails when something went wrong in it. It is
// what "cloud-init status --wait" does, in less time than that takes to be loaded.
const cloudInitDone = `until [ -e /run/cloud-init/result.json ]; do sleep 1; done; grep -q '"errors": \[\]' /run/cloud-init/result.json`

// TestDebianSeed boots two clones of one Debian image with a seed each: one has its
// address from its spec, the other from a DHCP server. Each has its name, its users,
// their key and its credential, and nothing that tells who a machine is, is the same in
// both.
func TestDebianSeed(t *testing.T) {
	debian := guesttest.Debian(t)
	h := newHost(t)
	h.patience = 3 * time.Minute
	h.lab.ServeAddresses(t)
	dir := t.TempDir()
	key := filepath.Join(dir, "id")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "user-data"), []byte("#cloud-config\nwrite_files: [{path: /etc/from-file, content: hello}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	specs := map[string]string{
		"web1": "[cloud_init]\nusers = [\"alice\"]\nssh_keys = [\"id.pub\"]\nuser_data = \"user-data\"\n" +
			"[[credential]]\nname = \"greeting\"\nvalue = \"hello\"\n" +
			"[[nic]]\nparent = \"lab0\"\nhost_access = true\naddresses = [\"192.0.2.10/24\", \"2001:db8::10/64\"]\ngateways = [\"192.0.2.1\"]\n",
		"web2": "[cloud_init]\nhostname = \"second\"\nssh_keys = [\"id.pub\"]\n[[nic]]\nparent = \"lab0\"\n",
	}
	for _, name := range []string{"web1", "web2"} {
		text := fmt.Sprintf("memory = \"512MiB\"\naccel = \"tcg\"\nstop.timeout = \"2m\"\n%s%s%s", debian.Boot(), debian.Disk(name+".qcow2"), specs[name])
		if err := os.WriteFile(filepath.Join(dir, name+".toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h.cleanup(name)
	}
	for _, name := range []string{"web1", "web2"} {
		h.vmrun(0, `^`+name+`: running: lab0 bridge `, "start", filepath.Join(dir, name+".toml"))
	}
	shells := map[string]*guesttest.Shell{}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	for _, name := range []string{"web1", "web2"} {
		sh, err := guesttest.DialShell(ctx, launcher.ConsoleSocket(h.run, name))
		if err != nil {
			t.Fatal(err)
		}
		defer sh.Close()
		shells[name] = sh
		if out, err := sh.Run(ctx, cloudInitDone); err != nil {
			log, _ := sh.Run(ctx, "tail -n 30 /var/log/cloud-init-output.log; grep -i warn /var/log/cloud-init.log")
			t.Fatalf("%s: %v: %s\n%s", name, err, out, log)
		}
	}
	for _, tt := range []struct{ name, command, want string }{
		{"web1", "hostname", "web1"},
		{"web1", "cat /etc/from-file", "hello"},
		{"web1", "systemd-creds --system cat greeting", "hello"},
		{"web1", "ip -o -4 addr show scope global | awk '{print $4}'", "192.0.2.10/24"},
		{"web1", "ip -o -6 addr show scope global | grep -c ' 2001:db8::10/64 '", "1"},
		{"web1", "ip route show default | cut -d' ' -f1-3", "default via 192.0.2.1"},
		{"web1", "id -un alice; id -un debian 2>/dev/null || echo nobody", "alice\nnobody"},
		{"web2", "hostname", "second"},
		{"web2", "id -un debian", "debian"},
	} {
		out, err := shells[tt.name].Run(ctx, tt.command)
		if err != nil || out != tt.want {
			t.Errorf("%s: %s: %q, %v; want %q", tt.name, tt.command, out, err, tt.want)
		}
	}
	for _, what := range []string{"cat /etc/machine-id", "cat /etc/ssh/ssh_host_ed25519_key.pub", "cat /var/lib/cloud/data/instance-id", "ip -o -4 addr show scope global | awk '{print $4}'"} {
		first, err1 := shells["web1"].Run(ctx, what)
		second, err2 := shells["web2"].Run(ctx, what)
		if err1 != nil || err2 != nil || first == second || first == "" || second == "" {
			t.Errorf("%s: %q, %v and %q, %v", what, first, err1, second, err2)
		}
	}

	// In by ssh, with the key: from the host over its own way, and from outside.
	leased, err := shells["web2"].Run(ctx, "ip -o -4 addr show scope global | awk '{print $4}' | cut -d/ -f1")
	if err != nil {
		t.Fatal(err)
	}
	ssh := func(who string, run func(*exec.Cmd) ([]byte, error)) {
		t.Helper()
		out, err := run(exec.CommandContext(ctx, "ssh", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "ConnectTimeout=60", "-o", "BatchMode=yes", who, "sudo -n id -un; hostname"))
		if err != nil || !strings.Contains(string(out), "root\n") {
			t.Errorf("ssh %s: %v: %s", who, err, out)
		}
	}
	ssh("alice@192.0.2.10", h.lab.Host.Run)
	ssh("debian@"+leased, h.lab.Outside.Run)

	// Started again, it is the same instance, and has the same host key.
	before, err := shells["web1"].Run(ctx, "cat /var/lib/cloud/data/instance-id /etc/ssh/ssh_host_ed25519_key.pub /etc/machine-id")
	if err != nil {
		t.Fatal(err)
	}
	h.vmrun(0, `^web1: stopped`, "stop", "web1")
	h.vmrun(0, `^web1: running`, "start", filepath.Join(dir, "web1.toml"))
	sh, err := guesttest.DialShell(ctx, launcher.ConsoleSocket(h.run, "web1"))
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	if _, err := sh.Run(ctx, cloudInitDone); err != nil {
		t.Error(err)
	}
	if after, err := sh.Run(ctx, "cat /var/lib/cloud/data/instance-id /etc/ssh/ssh_host_ed25519_key.pub /etc/machine-id"); err != nil || after != before {
		t.Errorf("after another start: %q, %v; before: %q", after, err, before)
	}
	h.vmrun(0, `^web1: stopped`, "stop", "web1")
	h.vmrun(0, `^web2: stopped`, "stop", "web2")
}
