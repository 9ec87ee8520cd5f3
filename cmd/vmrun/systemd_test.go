package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/systemdtest"
)

// machine is a host with systemd on which vmrun is installed.
type machine struct {
	*systemdtest.Container
	t *testing.T
}

// units are the files of configs/systemd, which name vmrun without a path.
func units(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	dir := filepath.Join("..", "..", "configs", "systemd")
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(filepath.Join(dir, path))
		files["systemd/system/"+path] = string(text)
		return err
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("no units: %v", err)
	}
	return files
}

// bareSpec is a guest with nothing to boot, which hears no power button.
const bareSpec = "memory = \"32MiB\"\naccel = \"tcg\"\nqemu_args = [\"-boot\", \"menu=off\"]\nstop.timeout = \"0s\"\n"

func bootMachine(t *testing.T, etc map[string]string) *machine {
	t.Helper()
	files := units(t)
	for name, text := range etc {
		files[name] = text
	}
	return &machine{t: t, Container: systemdtest.Boot(t, systemdtest.Options{Etc: files}.WithGuests(t))}
}

// A guest's life as a unit.
func TestUnit(t *testing.T) {
	nic := func(parent string) string { return fmt.Sprintf("[[nic]]\nparent = %q\n", parent) }
	m := bootMachine(t, map[string]string{
		"vmrun/web1.toml": systemdtest.GuestSpec("vmrun.addr=eth0:192.0.2.11/24") + nic("lab0") + "[ready]\nwhen = 'console:vmrun-guest: ready '\n",
		"vmrun/late.toml": bareSpec + nic("lab1"),
		"vmrun/bad.toml":  bareSpec + "[ready]\nwhen = \"soon\"\n",
		"vmrun/icy.toml":  bareSpec,
		"vmrun/mute.toml": bareSpec + "[ready]\nwhen = \"ip\"\ntimeout = \"2s\"\n",
		"vmrun/shy.toml":  bareSpec + "[ready]\nwhen = \"ip\"\n",
		"systemd/system/vmrun@icy.service.d/watchdog.conf": "[Service]\nWatchdogSec=3\n",
		"systemd/system/vmrun@mute.service.d/once.conf":    "[Service]\nRestart=no\n",
	})
	m.Run("sh", "-euc", `ip link add lab0 type veth peer name wire0
ip address add 192.0.2.1/24 dev wire0
ip link set wire0 up
ip link set lab0 up`)
	m.Run("systemctl", "start", "--no-block", "vmrun@web1", "vmrun@late", "vmrun@icy", "vmrun@mute") // which boot while the rest is looked at
	m.until(20*time.Second, "vmrun@web1", "StatusText", `^running, not ready: waiting for "vmrun-guest: ready " on the console$`)
	m.t.Run("files", func(t *testing.T) { m.with(t).files() })
	m.t.Run("bad spec", func(t *testing.T) { m.with(t).badSpec() })
	m.t.Run("late NIC", func(t *testing.T) { m.with(t).lateNIC() })
	m.t.Run("never ready", func(t *testing.T) { m.with(t).neverReady() })
	m.t.Run("watchdog", func(t *testing.T) { m.with(t).watchdog() })
	m.t.Run("ready", func(t *testing.T) { m.with(t).ready() })
	m.t.Run("reload", func(t *testing.T) { m.with(t).reload() })
	m.t.Run("killed", func(t *testing.T) { m.with(t).killed() })
	m.t.Run("stop", func(t *testing.T) { m.with(t).stop() })
}

func (m *machine) with(t *testing.T) *machine { return &machine{m.For(t), t} }

// show is a unit's property.
func (m *machine) show(unit, property string) string {
	m.t.Helper()
	return m.Run("systemctl", "show", "--value", "--property="+property, unit)
}

// until waits until a unit's property is like a pattern.
func (m *machine) until(limit time.Duration, unit, property, pattern string) string {
	m.t.Helper()
	like := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		got := m.show(unit, property)
		if like.MatchString(got) {
			return got
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: %s is %q after %v, want %q", unit, property, got, limit, pattern)
		}
	}
}

func (m *machine) status(name string) launcher.Status {
	m.t.Helper()
	var s launcher.Status
	if err := json.Unmarshal([]byte(m.Run("vmrun", "status", "--json", name)), &s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// journal is what a match finds, one entry's fields each.
func (m *machine) journal(match ...string) (entries []map[string]any) {
	m.t.Helper()
	out := m.Run("journalctl", append([]string{"--no-pager", "--output=json"}, match...)...)
	for line := range strings.Lines(out) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			m.t.Fatalf("%v: %s", err, line)
		}
		entries = append(entries, e)
	}
	return entries
}

// systemd finds nothing wrong with the units.
func (m *machine) files() {
	out, err := m.Command(m.within(60*time.Second), "systemd-analyze", "verify", "--man=no", "vmrun@web1.service", "vmrun.target").CombinedOutput()
	if err != nil || len(out) > 0 {
		m.t.Errorf("systemd-analyze verify: %v: %s", err, out)
	}
	m.t.Logf("systemd-analyze security:\n%s", m.Run("systemd-analyze", "security", "--no-pager", "vmrun@web1.service"))
}

// A spec that is wrong is told of, and not tried again.
func (m *machine) badSpec() {
	ctx, cancel := context.WithTimeout(m.t.Context(), 30*time.Second)
	defer cancel()
	if out, err := m.Command(ctx, "systemctl", "start", "vmrun@bad").CombinedOutput(); err == nil {
		m.t.Errorf("it started: %s", out)
	}
	if got := m.Run("systemctl", "show", "--property=ActiveState,Result,ExecMainStatus,NRestarts", "vmrun@bad"); got != "Result=exit-code\nNRestarts=0\nExecMainStatus=2\nActiveState=failed" {
		m.t.Errorf("the unit:\n%s", got)
	}
	told := m.journal("VMRUN_GUEST=bad")
	if len(told) != 1 || told[0]["PRIORITY"] != "3" || !strings.HasPrefix(fmt.Sprint(told[0]["MESSAGE"]), `/etc/vmrun/bad.toml:6: ready.when: "soon" is nothing`) {
		m.t.Errorf("told: %v", told)
	}
}

// A parent that is not there yet is waited for.
func (m *machine) lateNIC() {
	m.until(20*time.Second, "vmrun@late", "StatusText", `^waiting for lab1$`)
	if got := m.show("vmrun@late", "ActiveState"); got != "activating" {
		m.t.Errorf("while it waits it is %s", got)
	}
	m.Run("systemctl", "stop", "vmrun@late")
	if got := m.Run("systemctl", "show", "--property=ActiveState,Result", "vmrun@late"); got != "Result=success\nActiveState=inactive" {
		m.t.Errorf("stopped while it waits:\n%s", got)
	}
	m.Run("systemctl", "start", "--no-block", "vmrun@late")
	m.until(20*time.Second, "vmrun@late", "StatusText", `^waiting for lab1$`)
	m.Run("sh", "-euc", "ip link add lab1 type veth peer name wire1; ip link set lab1 up; ip link set wire1 up")
	m.until(20*time.Second, "vmrun@late", "ActiveState", `^active$`)
	m.until(5*time.Second, "vmrun@late", "StatusText", `^running: lab1 bridge `)
	// Who starts a guest by hand is not told that it was too often, which
	// systemd counts for units that it has loaded for good.
	m.Run("sh", "-euc", "cd /etc/systemd/system; mkdir vmrun@late.service.d; echo >vmrun@late.service.d/"+launcher.UnitDropIn+"; systemctl enable vmrun@late")
	for range 6 {
		m.Run("vmrun", "restart", "late")
	}
	m.Run("systemctl", "stop", "vmrun@late")
	if got := m.show("vmrun@late", "Result"); got != "success" {
		m.t.Errorf("stopped: %s", got)
	}
}

// A guest that does not become ready is stopped, and has failed to start.
func (m *machine) neverReady() {
	m.until(30*time.Second, "vmrun@mute", "ActiveState", `^failed$`)
	told := m.journal("VMRUN_GUEST=mute", "PRIORITY=3", "VMRUN_REASON=not-ready")
	if len(told) != 1 || told[0]["VMRUN_HOW"] != "not ready within 2s (an address): stopped (quit)" {
		m.t.Errorf("told: %v", told)
	}
	if s := m.status("mute"); s.State != launcher.StateEnded {
		m.t.Errorf("it is %s", s.State)
	}

	// One that is stopped before has not failed, and stays stopped.
	m.Run("systemctl", "start", "--no-block", "vmrun@shy")
	m.until(20*time.Second, "vmrun@shy", "StatusText", `^running, not ready: waiting for an address$`)
	m.Run("vmrun", "stop", "shy")
	m.until(10*time.Second, "vmrun@shy", "ActiveState", `^(inactive|failed)$`)
	if got := m.Run("systemctl", "show", "--property=ActiveState,Result,NRestarts", "vmrun@shy"); got != "Result=success\nNRestarts=0\nActiveState=inactive" {
		m.t.Errorf("stopped before it was ready:\n%s", got)
	}
}

// A QEMU that is frozen is ended, and another one started.
func (m *machine) watchdog() {
	m.until(20*time.Second, "vmrun@icy", "ActiveState", `^active$`)
	before := m.status("icy")
	m.Run("kill", "-STOP", strconv.Itoa(before.PID))
	m.until(30*time.Second, "vmrun@icy", "NRestarts", `^1$`)
	m.until(20*time.Second, "vmrun@icy", "ActiveState", `^active$`)
	after := m.status("icy")
	if after.PID == before.PID || after.State != launcher.StateRunning {
		m.t.Errorf("before %d, now %d, %s", before.PID, after.PID, after.State)
	}
	if _, err := os.Stat(m.Path(fmt.Sprintf("/proc/%d", before.PID))); err == nil {
		m.t.Errorf("the frozen QEMU is still there")
	}
	told := m.Run("journalctl", "--no-pager", "--output=cat", "--unit=vmrun@icy")
	for _, want := range []string{"QEMU does not answer: the watchdog hears nothing", "icy: ended after the unit's watchdog: stopped (kill)"} {
		if !strings.Contains(told, want) {
			m.t.Errorf("the journal lacks %q:\n%s", want, told)
		}
	}

	// Of a guest whose supervisor is killed amid its stop nothing is left either.
	m.Run("kill", "-STOP", strconv.Itoa(after.PID))
	m.Run("systemctl", "stop", "--no-block", "vmrun@icy")
	m.until(10*time.Second, "vmrun@icy", "StatusText", `^stopping \(quit\)$`)
	m.Run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "vmrun@icy")
	m.until(20*time.Second, "vmrun@icy", "ActiveState", `^(failed|inactive)$`)
	if s := m.status("icy"); s.State != launcher.StateEnded {
		m.t.Errorf("after the stop was cut it is %s, pid %d", s.State, s.PID)
	}
}

// A unit is active when its guest is ready, and not before.
func (m *machine) ready() {
	m.until(30*time.Second, "vmrun@web1", "ActiveState", `^active$`)
	var active int // microseconds, as in the journal
	path := "/org/freedesktop/systemd1/unit/vmrun_40web1_2eservice"
	word := m.Run("busctl", "get-property", "org.freedesktop.systemd1", path, "org.freedesktop.systemd1.Unit", "ActiveEnterTimestamp")
	if _, err := fmt.Sscanf(word, "t %d", &active); err != nil {
		m.t.Fatalf("%v: %s", err, word)
	}
	for _, e := range m.journal("VMRUN_GUEST=web1") {
		if e["MESSAGE"] != "guest is up" && e["VMRUN_BECAUSE"] == nil {
			continue
		}
		at, err := strconv.Atoi(fmt.Sprint(e["_SOURCE_REALTIME_TIMESTAMP"]))
		if err != nil || at > active || e["PRIORITY"] != "6" || e["SYSLOG_IDENTIFIER"] != "vmrun" {
			m.t.Errorf("active at %d, in the journal %v, %v", active, e, err)
		}
		if strings.HasPrefix(fmt.Sprint(e["MESSAGE"]), "time=") {
			m.t.Errorf("a time stamp of its own: %v", e)
		}
	}
	if !m.status("web1").Ready {
		m.t.Error("the status does not say that it is ready")
	}
	env, err := os.ReadFile(m.Path(fmt.Sprintf("/proc/%d/environ", m.status("web1").PID)))
	if err != nil || strings.Contains(string(env), "NOTIFY") || strings.Contains(string(env), "WATCHDOG") {
		m.t.Errorf("QEMU's environment: %q, %v", env, err)
	}
	m.Run("vmrun", "wait", "--for=ready", "web1")
	m.Run("ping", "-c", "1", "-W", "5", "192.0.2.11") // it has not used its address so far
	m.until(20*time.Second, "vmrun@web1", "StatusText", `^running: 192\.0\.2\.11 on lab0 bridge `)
}

// A supervisor that is killed costs the guest nothing; systemd starts another.
func (m *machine) killed() {
	before := m.status("web1")
	pings := m.Command(m.within(60*time.Second), "ping", "-i", "0.2", "-c", "25", "-W", "2", "192.0.2.11")
	var said strings.Builder
	pings.Stdout = &said
	if err := pings.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.Run("sh", "-euc", "cp /etc/vmrun/web1.toml /etc/vmrun/web1.good; echo nonsense = 1 >>/etc/vmrun/web1.toml") // for its next start
	m.Run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "vmrun@web1")
	m.until(20*time.Second, "vmrun@web1", "NRestarts", `^1$`)
	m.until(20*time.Second, "vmrun@web1", "ActiveState", `^active$`)
	m.Run("mv", "/etc/vmrun/web1.good", "/etc/vmrun/web1.toml")
	after := m.status("web1")
	if after.PID != before.PID || after.Supervisor == before.Supervisor || after.State != launcher.StateRunning || !after.Ready {
		m.t.Errorf("before %+v\nafter %+v", before, after)
	}
	if err := pings.Wait(); err != nil || !strings.Contains(said.String(), "25 packets transmitted, 25 received") {
		m.t.Errorf("meanwhile: %v\n%s", err, said.String())
	}
}

// A stop goes through the guest, and nothing is left.
func (m *machine) stop() {
	pid := m.status("web1").PID
	m.Run("systemctl", "stop", "vmrun@web1")
	if got := m.Run("systemctl", "show", "--property=ActiveState,Result", "vmrun@web1"); got != "Result=success\nActiveState=inactive" {
		m.t.Errorf("the unit:\n%s", got)
	}
	if log := m.Run("vmrun", "logs", "--console", "web1"); !strings.Contains(log, "vmrun-guest: power button") {
		m.t.Errorf("the guest saw no power button:\n%s", log)
	}
	if _, err := os.Stat(m.Path(fmt.Sprintf("/proc/%d", pid))); err == nil {
		m.t.Errorf("QEMU is still there")
	}
}

func (m *machine) within(limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(m.t.Context(), limit)
	m.t.Cleanup(cancel)
	return ctx
}

// What can be changed under a guest that runs is, and the rest is said.
func (m *machine) reload() {
	spec := m.Path("/etc/vmrun/web1.toml")
	before, err := os.ReadFile(spec)
	if err != nil {
		m.t.Fatal(err)
	}
	write := func(text string) {
		m.t.Helper()
		if err := os.WriteFile(spec, []byte(text), 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
	const later = `web1: memory: "192MiB" -> "256MiB": not before vmrun restart web1`
	pid := m.status("web1").PID
	ctx := m.within(60 * time.Second)

	write(string(before) + "[stop]\ntimeout = \"soon\"\n")
	if out, err := m.Command(ctx, "systemctl", "reload", "vmrun@web1").CombinedOutput(); err == nil {
		m.t.Errorf("a bad spec was taken: %s", out)
	}
	out, err := m.Command(ctx, "vmrun", "reload", "web1").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.HasPrefix(string(out), `/etc/vmrun/web1.toml:12: stop.timeout: "soon" is not a duration`) {
		m.t.Errorf("a bad spec: %v: %s", err, out)
	}
	m.until(5*time.Second, "vmrun@web1", "ActiveState", `^active$`)

	text := strings.Replace(string(before), "192MiB", "256MiB", 1)
	text = strings.Replace(text, "parent = \"lab0\"\n", "parent = \"lab0\"\nbandwidth.inbound = \"100mbit\"\n[[nic]]\nparent = \"lab0\"\nmode = \"private\"\n", 1)
	write(text + "[stop]\ntimeout = \"40s\"\n")
	m.Run("systemctl", "reload", "vmrun@web1")
	m.Run("journalctl", "--sync")
	said := m.Run("journalctl", "--no-pager", "--output=cat", "--unit=vmrun@web1")
	for _, want := range []string{
		`web1: stop.timeout: "1m" -> "40s"`, `web1: nic[0].bandwidth.inbound: unset -> "100mbit"`, `web1: nic[1].mode: unset -> "private"`, later,
	} {
		if !strings.Contains(said, want) {
			m.t.Errorf("a reload lacks %q:\n%s", want, said)
		}
	}
	s := m.status("web1")
	if s.PID != pid || len(s.NICs) != 2 || s.NICs[0].Bandwidth == nil || s.NICs[1].Mode != "private" {
		m.t.Errorf("after a reload: %+v", s)
	}
	if told := m.journal("VMRUN_GUEST=web1", "VMRUN_NIC=net1", "VMRUN_CHANGE=attached"); len(told) != 1 || told[0]["MESSAGE"] != "net1: attached to lab0: change attached" {
		m.t.Errorf("of the new NIC the journal has %v", told)
	}
	// Once more, only what takes a restart is left.
	if got := m.Run("vmrun", "reload", "web1"); got != later {
		m.t.Errorf("reloaded again: %s", got)
	}
	write(string(before))
	m.Run("vmrun", "reload", "web1")
	if s := m.status("web1"); len(s.NICs) != 1 || s.NICs[0].Bandwidth != nil {
		m.t.Errorf("after it was taken back: %+v", s)
	}
}
