package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/guesttest"
)

// fleet writes a file of a database and n nodes that come after it, all of them
// test guests on lab0.
func (h *host) fleet(n int) (path, text string) {
	files := guesttest.Image(h.t)
	text = fmt.Sprintf(`[defaults]
memory = "192MiB"
accel  = "tcg"
[defaults.boot]
kernel  = %q
initrd  = %q
cmdline = "%s vmrun.addr=eth0:${address}/24"

[template.database]
memory = "160MiB"
[[template.database.nic]]
parent    = "lab0"
addresses = ["192.0.2.10"]

[[guest]]
name = "db"
from = "database"
[[guest]]
name  = "node%%02d"
count = %d
after = ["db"]
nic   = [{ parent = "lab0", addresses = ["192.0.2.11-192.0.2.99"] }]
`, files.Kernel, files.Initrd, guesttest.Cmdline, n)
	path = filepath.Join(h.t.TempDir(), "lab.toml")
	h.write(path, text)
	return path, text
}

func (h *host) write(path, text string) {
	h.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// leaveNothing ends the guests of a file with the test, and wants nothing of them
// to be left.
func (h *host) leaveNothing(path string) {
	before := h.lab.Snapshot(h.t, h.run)
	h.t.Cleanup(func() {
		h.command("down", "--force", path).Run()
		h.vmrun(0, "", "cleanup")
		if diff := before.Wait(5 * time.Second); diff != "" {
			h.t.Errorf("left behind:\n%s", diff)
		}
	})
}

// guests are those that live, by name.
func (h *host) guests() map[string]launcher.Status {
	h.t.Helper()
	list, err := launcher.List(h.t.Context(), h.run)
	if err != nil {
		h.t.Fatal(err)
	}
	guests := map[string]launcher.Status{}
	for _, s := range list {
		if s.State != launcher.StateEnded {
			guests[s.Name] = s
		}
	}
	return guests
}

// TestFleet is a lab's day: up, interrupted and given again; addresses; one key of
// a template; three QEMUs that are killed; down. VMRUN_SOAK=1 has it with 30 guests,
// which take minutes to boot without KVM.
func TestFleet(t *testing.T) {
	h := newHost(t)
	nodes, kills := 3, 2
	if os.Getenv("VMRUN_SOAK") == "1" {
		nodes, kills, h.patience = 29, 3, 20*time.Minute
	}
	path, text := h.fleet(nodes)
	h.leaveNothing(path)
	defer h.pingAll(nodes)()
	watch := h.stopwatch()

	h.interruptUp(path, 2)
	h.vmrun(0, fmt.Sprintf(`^%s: %d running; \d+ started`, path, nodes+1), "up", path)
	watch("up, interrupted, and up again")
	h.vmrun(0, fmt.Sprintf(`\A%s: %d running; nothing was done\n\z`, path, nodes+1), "up", path)
	h.vmrun(0, `(?s)db: 192\.0\.2\.10`, "wait", "--for=ip", "--timeout=20m", path)
	addresses := h.vmrun(0, ``, "ps")
	for i := range nodes + 1 {
		if want := fmt.Sprintf(` 192.0.2.%d\n`, 10+i); !regexp.MustCompile(want).MatchString(addresses) {
			t.Errorf("nobody has %s:\n%s", want, addresses)
		}
	}
	watch("all have their addresses")

	h.write(path, strings.Replace(text, "160MiB", "176MiB", 1))
	h.vmrun(0, fmt.Sprintf(`\A~ db: running with an older spec: .*\n    memory: "160MiB" -> "176MiB"\n= %d unchanged\n\n`, nodes), "plan", path)
	before := h.guests()
	h.vmrun(0, `^vmrun: with an older spec: db: .*up --recreate`, "up", path)
	h.sameExcept(before, nil)
	h.vmrun(0, fmt.Sprintf(`^%s: %d running; 1 restarted in`, path, nodes+1), "up", "--recreate", path)
	h.sameExcept(before, []string{"db"})
	watch("one restarted with another spec")

	before = h.guests()
	victims := slices.Collect(maps.Keys(before))
	rand.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	victims = victims[:kills]
	for _, name := range victims {
		syscall.Kill(before[name].PID, syscall.SIGKILL)
	}
	for _, name := range victims {
		h.soon(launcher.StateEnded, name)
	}
	h.vmrun(0, `^\+ \S+: is started again; it ended: QEMU was killed by SIGKILL`, "plan", path)
	h.vmrun(0, fmt.Sprintf(`^%s: %d running; %d started in`, path, nodes+1, kills), "up", path)
	h.sameExcept(before, victims)
	watch(fmt.Sprintf("%s killed and started again", strings.Join(victims, ", ")))

	h.vmrun(0, fmt.Sprintf(`^%s: %d stopped in`, path, nodes+1), "down", path)
	h.vmrun(0, fmt.Sprintf(`\A%s: no guest runs\n\z`, path), "down", path)
	watch("down")
}

// stopwatch says how long each part of a test took.
func (h *host) stopwatch() func(what string) {
	begun := time.Now()
	return func(what string) {
		h.t.Logf("%-45s %v", what, time.Since(begun).Round(100*time.Millisecond))
		begun = time.Now()
	}
}

// pingAll has the guests use their addresses: one that nobody uses cannot be known.
func (h *host) pingAll(nodes int) (stop func()) {
	ctx, cancel := context.WithCancel(h.t.Context())
	pinged := make(chan struct{})
	go func() {
		defer close(pinged)
		for addr := netip.MustParseAddr("192.0.2.10"); ctx.Err() == nil; addr = addr.Next() {
			if addr == netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", 11+nodes)) {
				addr = netip.MustParseAddr("192.0.2.10")
			}
			h.lab.Outside.Ping(ctx, addr, 1, 50*time.Millisecond)
		}
	}()
	return func() { cancel(); <-pinged }
}

// interruptUp presses Ctrl-C when so many guests are there.
func (h *host) interruptUp(path string, after int) {
	h.t.Helper()
	up := h.command("up", path)
	var said bytes.Buffer
	up.Stdout, up.Stderr = &said, &said
	if err := h.lab.Host.Start(up); err != nil {
		h.t.Fatal(err)
	}
	for deadline := time.Now().Add(h.patience); len(h.guests()) < after && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	up.Process.Signal(os.Interrupt)
	err := up.Wait()
	if err == nil || up.ProcessState.ExitCode() != 1 || !regexp.MustCompile(`\nvmrun: interrupted: vmrun up \S+ goes on from here\n`).Match(said.Bytes()) {
		h.t.Errorf("interrupted: %v, and said:\n%s", err, said.String())
	}
	for name, s := range h.guests() {
		if s.State != launcher.StateRunning && s.State != launcher.StatePaused {
			h.t.Errorf("%s is %s after an interrupted up, neither there nor taken back", name, s.State)
		}
	}
}

// sameExcept wants all guests to be the same processes as before but those named.
func (h *host) sameExcept(before map[string]launcher.Status, changed []string) {
	h.t.Helper()
	now := h.guests()
	for name, s := range before {
		if same := now[name].PID == s.PID; same == slices.Contains(changed, name) {
			h.t.Errorf("%s had QEMU's pid %d, and has %d", name, s.PID, now[name].PID)
		}
	}
	if len(now) != len(before) {
		h.t.Errorf("%d guests, there were %d", len(now), len(before))
	}
}

// TestFleetWithoutBoot has guests that never run: what becomes of each does not hang
// on what is inside.
func TestFleetWithoutBoot(t *testing.T) {
	h := newHost(t)
	path, text := h.fleet(2)
	h.leaveNothing(path)
	h.vmrun(0, `(?m)^db +1 +160MiB +lab0 bridge 192\.0\.2\.10 +-\nnode01 +1 +192MiB +lab0 bridge 192\.0\.2\.11 +db$`, "check", path)
	h.vmrun(0, `(?s)\A\+ db: is started\n.*memory to be started +3 guests +0\.\d GiB\n`, "plan", path)

	// The order, and a file that the host's memory does not hold.
	h.write(path, strings.Replace(text, `"192MiB"`, `"4TiB"`, 1))
	h.vmrun(2, `(?s)memory to be started +3 guests +8\d\d\d\.\d GiB\n.*missing .*does not hold this, and nothing was done: --force`, "up", path)
	if len(h.guests()) != 0 {
		t.Error("something was started")
	}
	h.write(path, text)
	h.vmrun(0, fmt.Sprintf(`^%s: 3 paused; 3 started in`, path), "up", "--paused", "--parallel=3", path)
	guests := h.guests()
	if db, node := guests["db"], guests["node01"]; !db.Started.Before(node.Started) {
		t.Errorf("db was started at %v, and node01 that comes after it at %v", db.Started, node.Started)
	}

	// Who has lost his supervisor is adopted, and who is not in the file any more
	// stays until it is asked for.
	h.killSupervisor("node01")
	h.write(path, strings.Replace(text, "count = 2", "count = 1", 1))
	h.vmrun(0, `\A\+ node01: paused without a supervisor: is adopted\n- node02: paused, and not in the file any more: .*\n= 1 unchanged\n`, "plan", path)
	h.vmrun(0, `(?s)^node01: adopted, paused: .*: 2 paused; 1 adopted in .*not in the file any more: node02: up --prune`, "up", path)
	h.sameExcept(guests, nil)
	h.vmrun(0, `(?s)^node02: stopped \(quit\).*: 2 paused, 1 stopped; 1 stopped in`, "up", "--prune", path)

	// Verbs take the file for all of its guests, or want one.
	h.vmrun(0, `(?s)^db: .*^node01: `, "pause", path)
	h.vmrun(2, `is a fleet's, and this is for one guest: name it: db, node01$`, "status", path)
	h.vmrun(3, `^vmrun: db is paused already: `, "start", path)

	// A guest that others come after is waited for.
	h.write(path, strings.Replace(text, "[[guest]]\nname = \"db\"", "[[guest]]\nready.timeout = \"1s\"\nname = \"db\"", 1))
	h.vmrun(1, `(?s)^vmrun: db: timed out after 1s: it is paused: vmrun resume db\n.*node02: skipped: it comes after db\n.*: 1 paused, 1 failed, 1 skipped; nothing was done`, "up", path)

	// A guest of that name runs from elsewhere.
	other := filepath.Join(t.TempDir(), "other.toml")
	h.write(other, strings.Replace(text, "count = 2", "count = 1", 1))
	h.vmrun(1, fmt.Sprintf(`(?s)^vmrun: db: it runs from %s: .*: 2 failed; nothing was done`, path), "up", "--paused", other)
	h.vmrun(0, fmt.Sprintf(`^vmrun: left alone, for they run from another file: db, node01: vmrun plan %s shows which\n%[1]s: no guest runs$`, other), "down", other)

	// The file may go before its guests, and one of these may be slow to answer.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	pid := h.guests()["db"].PID
	syscall.Kill(pid, syscall.SIGSTOP)
	time.AfterFunc(3*time.Second, func() { syscall.Kill(pid, syscall.SIGCONT) })
	h.vmrun(0, fmt.Sprintf(`^%s: 2 stopped in`, path), "down", path)
	h.write(path, text)
}

// TestTwoUps has two ups of one file at the same time, named by two paths, of which
// one loses whoever reads of it.
func TestTwoUps(t *testing.T) {
	h := newHost(t)
	path, _ := h.fleet(2)
	h.leaveNothing(path)
	link := filepath.Join(t.TempDir(), "link.toml")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	piped := exec.Command("sh", "-c", `"$0" --run-dir "$1" up --paused "$2" | true`, h.bin, h.run, link)
	if err := h.lab.Host.Start(piped); err != nil {
		t.Fatal(err)
	}
	h.vmrun(0, fmt.Sprintf(`^%s: .*(paused|starting)`, path), "up", "--paused", path)
	if err := piped.Wait(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"db", "node01", "node02"} {
		h.soon(launcher.StatePaused, name)
	}
	h.vmrun(0, fmt.Sprintf(`\A%s: 3 paused; nothing was done\n\z`, link), "up", "--paused", link)
	h.vmrun(0, `\A= 3 unchanged\n\z`, "plan", link)
	h.vmrun(0, fmt.Sprintf(`^%s: 3 stopped in`, link), "down", link)
}

// TestFleetFailure has one guest fail: the others are started, but for the one that
// comes after it.
func TestFleetFailure(t *testing.T) {
	h := newHost(t)
	path, text := h.fleet(1)
	text += "[[guest]]\nname = \"broken\"\nnic = [{ parent = \"nosuch0\" }]\n[[guest]]\nname = \"last\"\nafter = [\"broken\"]\nnic = []\n"
	h.write(path, strings.Replace(text, "eth0:${address}/24", "", 1))
	h.leaveNothing(path)
	out := h.vmrun(1, fmt.Sprintf(`^%s: 2 paused, 1 failed, 1 skipped; 2 started in`, path), "up", "--paused", path)
	for _, want := range []string{
		fmt.Sprintf(`(?m)^vmrun: broken: %s:\d+: .*parent: this host has no link "nosuch0"`, path),
		`(?m)^vmrun: last: skipped: it comes after broken$`, `(?m)^db: paused: lab0 bridge`, `(?m)^node01: paused: `,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	h.vmrun(0, fmt.Sprintf(`^%s: 2 stopped in`, path), "down", path)
}

// An up on a terminal draws on it, and Ctrl-C leaves the terminal as it was.
func TestFleetOnATerminal(t *testing.T) {
	h := newHost(t)
	path, _ := h.fleet(5)
	h.leaveNothing(path)
	up := exec.Command("script", "-qec", h.bin+" --run-dir "+h.run+" up --paused "+path, "/dev/null")
	up.Env = append(os.Environ(), "TERM=xterm")
	in, err := up.StdinPipe()
	var out bytes.Buffer
	up.Stdout = &out
	if err == nil {
		err = h.lab.Host.Start(up)
	}
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(h.patience); len(h.guests()) < 2 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	in.Write([]byte{3}) // Ctrl-C
	up.Wait()
	in.Close()
	for _, want := range []string{`up \S+: \d of 6, \d under way  \ds`, `  db  starting  \ds`, `\x1b\[J\S+: \d paused, .*not begun; \d started in`, `vmrun: interrupted: `} {
		if !regexp.MustCompile(want).Match(out.Bytes()) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
	h.vmrun(0, fmt.Sprintf(`^%s: 6 paused; \d started in`, path), "up", "--paused", path)
}
