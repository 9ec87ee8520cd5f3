package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup/nettest"
)

// TestGuestAgent types what a guest's agent does for its owner: commands in the
// guest, its clock, and its end; and what is said where there is no agent, or no way
// to the guest.
func TestGuestAgent(t *testing.T) {
	h := newHost(t)
	files := guesttest.AgentImage(t)
	h.lab.AddNIC("lab1", nettest.NIC{})
	spec := filepath.Join(t.TempDir(), "web1.toml")
	text := fmt.Sprintf("memory = \"192MiB\"\naccel = \"tcg\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n[[nic]]\nparent = \"lab0\"\naddresses = [\"192.0.2.11\"]\n",
		files.Kernel, files.Initrd, guesttest.Cmdline+" vmrun.addr=eth0:192.0.2.11/24")
	if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	before := h.lab.Snapshot(t, h.run)
	h.vmrun(0, `^web1: running`, "start", spec)
	t.Cleanup(func() { h.vmrun(0, "", "cleanup") })
	t.Cleanup(func() { exec.Command(h.bin, "--run-dir", h.run, "kill", "web1").Run() })
	c := h.console("web1")
	h.vmrun(125, `^vmrun: web1: no agent answers in the guest: it may still boot`, "exec", "web1", "--", "/bin/true")
	h.say(c, "exec /start-agent")
	time.Sleep(time.Second)
	h.execs()

	h.vmrun(0, `paused$`, "pause", "web1")
	h.vmrun(125, `^vmrun: web1: the guest's CPUs stand still`, "exec", "web1", "--", "/bin/true")
	time.Sleep(3 * time.Second)
	h.vmrun(0, `running$`, "resume", "web1")
	h.eventually("the guest's clock is right after a pause", func() string {
		shown, err := strconv.ParseInt(strings.TrimSpace(h.vmrun(0, `^\d+$`, "exec", "web1", "--", "date", "+%s")), 10, 64)
		if off := time.Since(time.Unix(shown, 0)).Abs(); err != nil || off > 2*time.Second {
			return fmt.Sprintf("off by %v, %v", off, err)
		}
		return ""
	})

	h.vmrun(255, `^vmrun: web1: nobody answers at 192\.0\.2\.11:22: without host access .* vmrun nic web1 set net0 host_access=true$`, "ssh", "--wait=0", "web1")
	h.vmrun(0, `host_access=true$`, "nic", "web1", "set", "net0", "host_access=true")
	h.say(c, "tcp serve 22")
	h.eventually("the host reaches the guest", func() string {
		cmd := exec.Command(h.bin, "--run-dir", h.run, "ssh", "--wait=0", "web1", "true")
		out, err := h.lab.Host.Run(cmd)
		if !bytes.Contains(out, []byte("no ssh server answers at 192.0.2.11:22")) {
			return fmt.Sprintf("%v: %s", err, out)
		}
		return ""
	})
	h.vmrun(0, `^web1: stopped \(agent\)$`, "stop", "web1")

	h.vmrun(0, `^web1: running`, "start", spec)
	c = h.console("web1")
	h.say(c, "exec /hung-agent")
	time.Sleep(time.Second)
	began := time.Now()
	h.vmrun(0, `^web1: stopped \(powerdown\)$`, "stop", "web1")
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("an agent that hangs held the stop up: it took %v", took)
	}
	if diff := before.Wait(3 * time.Second); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// execs runs commands of all kinds in web1.
func (h *host) execs() {
	h.t.Helper()
	for _, test := range []struct {
		status int
		want   string
		args   []string
	}{
		{0, `\Aone two\n\z`, []string{"web1", "--", "/bin/sh", "-c", "echo one two"}},
		{7, `\Aout\nerr\n\z`, []string{"web1", "sh", "-c", "echo out; echo err >&2; exit 7"}},
		{143, `\A\z`, []string{"web1", "--", "sh", "-c", "kill -TERM $$"}},
		{127, `^vmrun: web1: the agent in the guest refuses: .*No such file`, []string{"web1", "--", "/bin/nothing"}},
		{126, `^vmrun: web1: the agent in the guest refuses: .*denied`, []string{"web1", "--", "/proc"}},
		{124, `^vmrun: web1: the command may go on in the guest, as process \d+ there: timed out$`, []string{"--timeout=1s", "web1", "--", "sleep", "5"}},
		{0, `\Ab /usr/local/sbin:.*\n\z`, []string{"--env=A=b", "web1", "--", "sh", "-c", "echo $A $PATH"}},
		{125, `^vmrun: web1: env: "A" is not NAME=VALUE$`, []string{"--env=A", "web1", "--", "sh"}},
		{125, `flags come before the guest`, []string{"web1", "--timeout=1s", "--", "sh"}},
		{125, `^vmrun: no2: no such guest`, []string{"no2", "--", "sh"}},
		{125, `^vmrun: see vmrun exec --help$`, []string{"web1"}},
		{125, `^vmrun: see vmrun exec --help$`, []string{"--no-such-flag", "web1"}},
	} {
		h.vmrun(test.status, test.want, append([]string{"exec"}, test.args...)...)
	}
	input := bytes.Repeat([]byte("0123456789\x00\xff\x1b[2J"), 6000)
	if out, err := h.exec(input, "cat"); err != nil || !bytes.Equal(out, input) {
		h.t.Errorf("input came back as %d bytes, %v", len(out), err)
	}
	if out, err := h.exec(bytes.Repeat([]byte{'x'}, launcher.MaxExecInput+1), "cat"); err == nil || !bytes.Contains(out, []byte("more than 128 KiB")) {
		h.t.Errorf("too much input: %v, %s", err, out)
	}
}

// exec runs a command in web1 and returns all that comes of it.
func (h *host) exec(input []byte, words ...string) ([]byte, error) {
	cmd := exec.Command(h.bin, slices.Concat([]string{"--run-dir", h.run, "exec", "--stdin", "--timeout=60s", "web1", "--"}, words)...)
	cmd.Stdin = bytes.NewReader(input)
	return h.lab.Host.Run(cmd)
}

// eventually waits until what is wrong is "".
func (h *host) eventually(what string, wrong func() string) {
	h.t.Helper()
	var why string
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if why = wrong(); why == "" {
			return
		}
	}
	h.t.Fatalf("%s: %s", what, why)
}
