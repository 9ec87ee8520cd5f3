package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/guesttest"
)

// What the verbs say of a guest that waits to be restarted, and do to it.
func TestRestartVerbs(t *testing.T) {
	h := newHost(t)
	spec := h.spec("lazarus", `policy = "on-failure"`, `delay = "5m"`, `max_delay = "5m"`)
	h.cleanup("lazarus")
	h.vmrun(0, `^lazarus: paused: lab0 bridge `, "start", "--paused", spec)
	h.killQEMU("lazarus")
	h.soon(launcher.StateRestarting, "lazarus")
	h.vmrun(4, `^vmrun: lazarus: timed out after 2s: it is restarting in 5m, at 20\S+: it ended at 20\S+: QEMU was killed by SIGKILL`, "wait", "--for=stopped", "--timeout=2s", "lazarus")
	h.vmrun(0, `^lazarus +restarting in [45]m\S* +- +- +lab0 bridge `, "ps")
	h.vmrun(0, `^state +restarting in .*: QEMU was killed by SIGKILL`, "status", "lazarus")
	h.vmrun(0, `^supervisor +pid [1-9]`, "status", "lazarus")
	var s launcher.Status
	if err := json.Unmarshal([]byte(h.vmrun(0, `^{`, "status", "--json", "lazarus")), &s); err != nil || s.State != launcher.StateRestarting || s.Restarts.Last.Reason != launcher.ReasonSignal || time.Until(s.Restarts.Next) < 4*time.Minute {
		t.Errorf("%+v, %v", s, err)
	}
	h.vmrun(3, `^vmrun: lazarus is restarting already: lazarus has a supervisor already`, "start", "lazarus")
	h.vmrun(3, `^vmrun: lazarus: not in the state needed: it is restarting in `, "ip", "lazarus")
	h.vmrun(3, `^vmrun: lazarus: not in the state needed`, "nsenter", "lazarus", "--", "true")
	h.vmrun(1, `^vmrun: lazarus: .*is being restarted$`, "resume", "lazarus")
	h.vmrun(0, `lazarus \(restarting\)`, "tree", "--interval=0")
	h.vmrun(0, ``, "doctor", "lazarus") // looks at its spec
	h.vmrun(0, `^lazarus: stopped before its restart: QEMU was killed by SIGKILL.*\n^lazarus: paused: `, "restart", "--paused", "lazarus")

	h.killQEMU("lazarus")
	h.soon(launcher.StateRestarting, "lazarus")
	h.vmrun(0, `^lazarus: stopped before its restart: QEMU was killed`, "stop", "lazarus")
	h.vmrun(0, `^lazarus: stopped before its restart: QEMU was killed`, "wait", "--for=stopped", "lazarus")
}

// Events go on over a restart, and vmrun run ends as its guest did last.
func TestRestartRun(t *testing.T) {
	h := newHost(t)
	spec := h.spec("lazarus", `policy = "on-failure"`, `delay = "100ms"`, "limit = 1")
	h.cleanup("lazarus")
	run := h.command("run", "--paused", spec)
	var said strings.Builder
	run.Stdout, run.Stderr = &said, &said
	if err := h.lab.Host.Do(run.Start); err != nil {
		t.Fatal(err)
	}
	h.soon(launcher.StatePaused, "lazarus")
	events := h.command("events", "--follow", "lazarus")
	out, err := events.StdoutPipe()
	if err == nil {
		err = events.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	state := func(want string) {
		t.Helper()
		for lines.Scan() {
			if regexp.MustCompile(want).MatchString(lines.Text()) {
				return
			}
		}
		t.Errorf("no event %q", want)
	}
	time.Sleep(200 * time.Millisecond) // so that it listens
	h.killQEMU("lazarus")
	state(`VMRUN_STATE {.*"state":"restarting"`)
	state(`VMRUN_STATE {"state":"starting"}`)
	state(`VMRUN_STATE {"state":"paused"}`)
	h.vmrun(0, `^restarts +1, the last 20\S+, after: QEMU was killed by SIGKILL`, "status", "lazarus")
	h.killQEMU("lazarus")
	state(`VMRUN_ENDED {.*not restarted again: its limit is 1 restart within`)
	for lines.Scan() {
		t.Errorf("after the end: %s", lines.Text())
	}
	if err := events.Wait(); err != nil {
		t.Errorf("events: %v", err)
	}
	if err := run.Wait(); err == nil || run.ProcessState.ExitCode() != 1 || !regexp.MustCompile(`\nvmrun: lazarus: QEMU was killed by SIGKILL.*; not restarted again: `).MatchString(said.String()) {
		t.Errorf("run: %v: %s", err, said.String())
	}
}

// spec writes the spec of a test guest with these lines about its restarts.
func (h *host) spec(name string, restart ...string) string {
	h.t.Helper()
	files := guesttest.Image(h.t)
	path := filepath.Join(h.t.TempDir(), name+".toml")
	text := fmt.Sprintf("memory = \"192MiB\"\naccel = \"tcg\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n[[nic]]\nparent = \"lab0\"\n[restart]\n%s\n",
		files.Kernel, files.Initrd, guesttest.Cmdline, strings.Join(restart, "\n"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// cleanup ends a guest with the test.
func (h *host) cleanup(name string) {
	before := h.lab.Snapshot(h.t, h.run)
	h.t.Cleanup(func() {
		h.command("kill", name).Run()
		h.vmrun(0, "", "cleanup")
		if diff := before.Wait(3 * time.Second); diff != "" {
			h.t.Errorf("left behind:\n%s", diff)
		}
	})
}

// command is vmrun with these words.
func (h *host) command(args ...string) *exec.Cmd {
	return exec.Command(h.bin, append([]string{"--run-dir", h.run}, args...)...)
}

// soon waits until a guest is in a state.
func (h *host) soon(want launcher.State, name string) {
	h.t.Helper()
	var s launcher.Status
	for deadline := time.Now().Add(30 * time.Second); s.State != want; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("%s is %s, want %s", name, s.State, want)
		}
		s, _ = launcher.Observe(h.t.Context(), h.run, name)
	}
}

func (h *host) killQEMU(name string) {
	h.t.Helper()
	pid := regexp.MustCompile(`(?m)^qemu +pid (\d+)`).FindStringSubmatch(h.vmrun(0, `^qemu`, "status", name))
	n, err := strconv.Atoi(pid[1])
	if err == nil {
		err = syscall.Kill(n, syscall.SIGKILL)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}
