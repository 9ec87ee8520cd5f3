package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup/nettest"
)

// host is a lab's host on which vmrun is typed.
type host struct {
	t   *testing.T
	lab *nettest.Lab
	bin string
	run string // the run directory

	specs string // where boot puts them

	patience time.Duration // that a command may take
}

// newHost builds vmrun and a lab for it.
func newHost(t *testing.T) *host {
	nettest.Root(t)
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil && os.Getenv("VMRUN_TEST_REQUIRE") != "1" {
		t.Skip("needs QEMU: apt-get install qemu-system-x86")
	}
	bin := filepath.Join(t.TempDir(), "vmrun")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run, err := os.MkdirTemp("/tmp", "vmrun-") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run); os.RemoveAll(run + ".state") })
	return &host{t, nettest.New(t), bin, run, t.TempDir(), 90 * time.Second}
}

// vmrun types a command, and wants this exit status and output that matches.
func (h *host) vmrun(status int, pattern string, args ...string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), h.patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.bin, args...)
	cmd.Env = append(os.Environ(), "VMRUN_RUN_DIR="+h.run)
	out, err := h.lab.Host.Run(cmd)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got, err = exit.ExitCode(), nil
	}
	if err != nil || got != status || !regexp.MustCompile("(?m)"+pattern).Match(out) {
		h.t.Fatalf("vmrun %s: %v, exit status %d, want %d and %q in:\n%s", strings.Join(args, " "), err, got, status, pattern, out)
	}
	return string(out)
}

// The verbs about NICs, on a guest that runs.
func TestNICVerbs(t *testing.T) {
	h := newHost(t)
	files := guesttest.Image(t)
	h.lab.AddNIC("lab1", nettest.NIC{})
	spec := filepath.Join(t.TempDir(), "web1.toml")
	text := fmt.Sprintf("memory = \"192MiB\"\naccel = \"tcg\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n[[nic]]\nparent = \"lab0\"\n",
		files.Kernel, files.Initrd, guesttest.Cmdline+" vmrun.addr=eth0:192.0.2.11/24,2001:db8::11/64")
	if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	before := h.lab.Snapshot(t, h.run)

	ctx, cancel := context.WithCancel(t.Context())
	pinged := make(chan struct{})
	go func() {
		defer close(pinged)
		for ctx.Err() == nil { // an address that nobody uses cannot be known
			h.lab.Outside.Ping(ctx, netip.MustParseAddr("192.0.2.11"), 5, 50*time.Millisecond)
		}
	}()
	defer func() { cancel(); <-pinged }()

	h.vmrun(0, `^web1: running: lab0 bridge `, "start", spec)
	t.Cleanup(func() { h.vmrun(0, "", "cleanup") })
	t.Cleanup(func() { exec.Command(h.bin, "--run-dir", h.run, "kill", "web1").Run() })
	h.vmrun(0, `^web1: running$`, "wait", "web1")
	h.vmrun(0, `\A192\.0\.2\.11\n\z`, "wait", "--for=ip", "web1")
	h.vmrun(0, `\A192\.0\.2\.11\n`, "ip", "web1")
	h.vmrun(0, `^web1 +running .*192\.0\.2\.11`, "ps")
	var addresses []launcher.GuestAddress
	if err := json.Unmarshal([]byte(h.vmrun(0, `^\[`, "ip", "--json", "web1")), &addresses); err != nil || addresses[0].NIC != "net0" || addresses[0].Source != "arp" {
		t.Errorf("%+v, %v", addresses, err)
	}

	h.vmrun(2, `^vmrun: mode: "brigde" is not a mode`, "nic", "web1", "attach", "parent=lab1", "mode=brigde")
	h.vmrun(0, `^web1: net1 attached to lab1, vepa, MAC 02:00:00:00:00:51$`, "nic", "web1", "attach", "parent=lab1", "mode=vepa", "mac=02:00:00:00:00:51")
	h.vmrun(0, `^web1: net1: bandwidth\.inbound=10mbit trust=mac$`, "nic", "web1", "set", "net1", "bandwidth.inbound=10mbit", "trust=mac")
	h.vmrun(2, `^vmrun: web1: addresses: missing`, "nic", "web1", "set", "net0", "pin=true")
	h.vmrun(0, `^web1: net1: link=down$`, "nic", "web1", "set", "net1", "link=down")
	h.vmrun(0, `^net1 +lab1 +vepa +02:00:00:00:00:51 +1500 +down +-`, "nic", "web1")
	h.vmrun(0, `^  link +down, by its owner: vmrun nic web1 set net1 link=up`, "status", "web1")
	h.vmrun(0, `^  bandwidth +10mbit to the guest, no limit from it$`, "status", "web1")
	h.vmrun(0, `^web1 +net0 +[1-9]`, "stats")

	tree := h.vmrun(0, `^   .- net1 02:00:00:00:00:51 +web1 .*! link: down$`, "tree", "--interval=2s")
	for _, want := range []string{`(?m)^lab0  MTU 1500  up  1 guest  host 192\.0\.2\.2/24`, `(?m)^   .- net0 \S+ +web1 +192\.0\.2\.11 .* in [1-9].* out [1-9]`} {
		if !regexp.MustCompile(want).MatchString(tree) {
			t.Errorf("no %q in:\n%s", want, tree)
		}
	}
	h.vmrun(0, `"nic lab1" -- "guest web1"`, "tree", "--dot", "--interval=0")

	h.vmrun(1, `^vmrun: web1: the guest has no NIC "net7": it has net0, net1$`, "nic", "web1", "detach", "net7")
	h.vmrun(0, `^web1: net1 detached$`, "nic", "web1", "detach", "net1")
	h.vmrun(4, `^vmrun: web1: timed out after 200ms: it is running: vmrun stop web1$`, "wait", "--for=stopped", "--timeout=200ms", "web1")
	h.vmrun(0, `^web1: stopped`, "kill", "web1")
	h.vmrun(0, `^web1: stopped \(kill\)$`, "wait", "--for=stopped", "web1")
	h.vmrun(3, `it has ended: vmrun start web1$`, "ip", "web1")
	if diff := before.Wait(3 * time.Second); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}
