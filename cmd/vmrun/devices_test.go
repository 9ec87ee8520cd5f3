package main

import (
	"encoding/json"
	"fmt"
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

// deviceGuest writes the spec of a guest with these lines at its top and end, and
// ends the guest with the test.
func (h *host) deviceGuest(name, top string, lines ...string) (spec string) {
	h.t.Helper()
	files := guesttest.Options{Modules: []string{"virtiofs", "virtio_balloon"}}.Image(h.t)
	spec = filepath.Join(h.t.TempDir(), name+".toml")
	text := fmt.Sprintf("memory = \"192MiB\"\naccel = \"tcg\"\n%s\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n%s\n",
		top, files.Kernel, files.Initrd, guesttest.Cmdline, strings.Join(lines, "\n"))
	if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.cleanup(name)
	return spec
}

// words returns what runs a command in a guest and returns its reply, or the
// error, as text.
func (h *host) words(name string) func(format string, args ...any) string {
	h.t.Helper()
	con := h.console(name)
	return func(format string, args ...any) string {
		reply, _, err := con.Run(h.t.Context(), fmt.Sprintf(format, args...))
		if err != nil {
			return err.Error()
		}
		return reply
	}
}

// companions are the processes beside a guest's QEMU, by name.
func (h *host) companions(name string) map[string]int {
	h.t.Helper()
	var s launcher.Status
	if err := json.Unmarshal([]byte(h.vmrun(0, `^{`, "status", "--json", name)), &s); err != nil {
		h.t.Fatal(err)
	}
	pids := map[string]int{}
	for _, c := range s.Companions {
		pids[c.Name] = c.PID
	}
	return pids
}

// awaitGone waits until none of the processes is there.
func (h *host) awaitGone(what string, pids map[string]int) {
	h.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := 0
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil {
				left++
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%s: %d of %v are still there", what, left, pids)
		}
	}
}

// primary has a TPM make the primary key of the endorsement hierarchy on P-256
// (TPM 2.0 Library, part 3, TPM2_CreatePrimary), which follows from its seed alone.
const primary = "8002" + "00000041" + "00000131" + "4000000b" + // tag, size, command, TPM_RH_ENDORSEMENT
	"00000009" + "40000009" + "0000" + "00" + "0000" + // an empty password
	"0004" + "0000" + "0000" + // no secrets
	"0018" + "0023" + "000b" + "00040472" + "0000" + // ECC, SHA-256, a key that signs, no policy
	"0010" + "0018" + "000b" + "0003" + "0010" + "0000" + "0000" + // no symmetric part, ECDSA, P-256, no KDF
	"0000" + "00000000" // nothing outside, no PCRs

// The TPM and the shares of a guest: what the guest sees, what is kept, who may do
// what, and that the processes behind them end with QEMU whoever else is there.
func TestCompanions(t *testing.T) {
	needs(t, "swtpm")
	h := newHost(t)
	outside := t.TempDir()
	src, docs := filepath.Join(outside, "src"), filepath.Join(outside, "docs")
	for path, text := range map[string]string{src + "/from-host": "good day", docs + "/page": "read me", outside + "/secret": "secret"} {
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("../secret", src+"/link")
	spec := h.deviceGuest("web1", "tpm = true", fmt.Sprintf("[[share]]\npath = %q\ntag = \"src\"\n[[share]]\npath = %q\ntag = \"docs\"\nreadonly = true", src, docs))
	h.vmrun(0, `^web1: running`, "start", spec)
	say := h.words("web1")
	want := func(reply, format string, args ...any) {
		t.Helper()
		if got := say(format, args...); !regexp.MustCompile(reply).MatchString(got) {
			t.Errorf("%s: %q, want %q", fmt.Sprintf(format, args...), got, reply)
		}
	}
	key := say("tpm %s", primary)
	if !strings.HasPrefix(key, "8002") || strings.HasPrefix(key[12:], "00000001") || len(key) < 200 {
		t.Errorf("the TPM's key: %s", key)
	}
	want(`^$`, "mount virtiofs src /src")
	want(`^$`, "mount virtiofs docs /docs")
	want(`^"good day"$`, "file read /src/from-host")
	want(`^$`, "file write /src/from-guest hello")
	want(`^$`, "file owner /src/from-guest 1234")
	want(`^$`, "file mode /src/from-guest 600")
	want(`not permitted`, "file mode /src/from-guest 4755")
	want(`denied|not permitted`, "file node /src/node")
	want(`no such file`, "file read /src/link") // which the guest follows in its own files
	want(`no such file`, "file read /src/../secret")
	want(`^"read me"$`, "file read /docs/page")
	want(`read-only`, "file write /docs/new x")
	want(`read-only|not permitted`, "file mode /docs/page 600")
	var st syscall.Stat_t
	if text, err := os.ReadFile(src + "/from-guest"); string(text) != "hello" || syscall.Stat(src+"/from-guest", &st) != nil || st.Uid != 1234 || st.Mode != syscall.S_IFREG|0o600 {
		t.Errorf("what the guest wrote: %q, %v, uid %d, mode %o", text, err, st.Uid, st.Mode)
	}
	h.vmrun(0, `^tpm +pid [1-9]\d*, swtpm`, "status", "web1")
	h.vmrun(1, `it has a \[\[share\]\], and virtiofsd`, "suspend", "web1")
	pids := h.companions("web1")
	if len(pids) != 3 {
		t.Fatalf("companions: %v", pids)
	}
	h.checkWalls(pids, map[string]string{"tpm": "0", "share0": "cb", "share1": "2"}) // CHOWN, DAC_OVERRIDE, FOWNER, SETGID and SETUID; DAC_OVERRIDE
	if seen := rootOf(t, pids["share0"]); !slices.Equal(seen, []string{"from-guest", "from-host", "link"}) {
		t.Errorf("share0's process sees %q", seen)
	}

	// The supervisor dies, and the next one goes on with all of it.
	h.killSupervisor("web1")
	h.vmrun(0, `^web1: adopted, running`, "start", spec)
	if now := h.companions("web1"); fmt.Sprint(now) != fmt.Sprint(pids) {
		t.Errorf("adopted with %v, were %v", now, pids)
	}
	syscall.Kill(pids["share1"], syscall.SIGKILL)
	h.becomes("share1's end", func() bool { return h.companions("web1")["share1"] == 0 })
	h.vmrun(0, `^share1 +dead`, "status", "web1")
	delete(pids, "share1")

	// Without a supervisor they end by themselves when QEMU does.
	h.killSupervisor("web1")
	h.killQEMU("web1")
	h.awaitGone("after QEMU's end", pids)

	h.vmrun(0, `^web1: running`, "start", spec)
	say = h.words("web1")
	if again := say("tpm %s", primary); again != key {
		t.Errorf("the TPM's key after a restart is\n%s, was\n%s", again, key)
	}
	pids = h.companions("web1")
	h.vmrun(0, `^web1: stopped`, "stop", "web1")
	h.awaitGone("after a stop", pids)
}

// checkWalls looks at companions as the kernel shows them; caps are the
// capabilities that each may hold.
func (h *host) checkWalls(pids map[string]int, caps map[string]string) {
	h.t.Helper()
	for name, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			h.t.Fatal(err)
		}
		for _, want := range []string{`NoNewPrivs:\s1`, `Seccomp:\s2`, `CapEff:\s0*` + caps[name] + `\n`} {
			if !regexp.MustCompile(want).Match(text) {
				h.t.Errorf("%s: no %q in\n%s", name, want, text)
			}
		}
		for _, ns := range []string{"net", "mnt", "pid", "ipc"} {
			its, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
			ours, _ := os.Readlink("/proc/self/ns/" + ns)
			if its == ours || its == "" {
				h.t.Errorf("%s shares the namespace %s", name, its)
			}
		}
	}
}

// rootOf lists the root directory that a process sees.
func rootOf(t *testing.T, pid int) (names []string) {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func (h *host) becomes(what string, is func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("%s: not in 15s", what)
		}
	}
}

// What becomes of a guest that does not feed its watchdog, and where its CPUs run.
func TestWatchdog(t *testing.T) {
	h := newHost(t)
	top := "cpus = 2\ntopology.sockets = 2\ncpu_affinity = [\"0\", \"1\"]\nemulator_affinity = \"1\""
	spec := h.deviceGuest("web1", top, "[watchdog]\naction = \"poweroff\"")
	h.vmrun(0, `^web1: running`, "start", spec)
	var s launcher.Status
	if err := json.Unmarshal([]byte(h.vmrun(0, `^{`, "status", "--json", "web1")), &s); err != nil {
		t.Fatal(err)
	}
	on := map[string]string{"CPU 0/TCG": "0", "CPU 1/TCG": "1", "qemu-system-x86": "1"}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", s.PID))
	for _, file := range threads {
		text, _ := os.ReadFile(file)
		name := regexp.MustCompile(`Name:\t(.*)\n`).FindSubmatch(text)
		cpus := regexp.MustCompile(`Cpus_allowed_list:\t(.*)\n`).FindSubmatch(text)
		if want, ok := on[string(name[1])]; ok && string(cpus[1]) != want {
			t.Errorf("%s runs on %s, want %s", name[1], cpus[1], want)
		} else if ok {
			delete(on, string(name[1]))
		}
	}
	if len(on) > 0 {
		t.Errorf("no threads %v", on)
	}
	if said := h.words("web1")("watchdog 200"); said != "" {
		t.Error(said)
	}
	h.vmrun(0, `^web1: the guest did not feed its watchdog`, "wait", "--for=stopped", "--timeout=60s", "web1")

	text, err := os.ReadFile(spec)
	if err == nil {
		err = os.WriteFile(spec, []byte(strings.Replace(string(text), "poweroff", "pause", 1)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.vmrun(0, `^web1: running`, "start", spec)
	if said := h.words("web1")("watchdog 200"); said != "" {
		t.Error(said)
	}
	h.soon(launcher.StatePaused, "web1")
	h.vmrun(0, `^state +paused: the guest has not fed its watchdog`, "status", "web1")
	h.vmrun(0, ``, "resume", "web1")
	h.soon(launcher.StateRunning, "web1")
}

// Memory of huge pages, where this host has some to give.
func TestHugepages(t *testing.T) {
	const file = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
	h := newHost(t)
	spec := h.deviceGuest("web1", "hugepages = true")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Skip(err)
	}
	if strings.TrimSpace(string(before)) == "0" {
		h.vmrun(2, `web1.toml:3: hugepages: the guest needs 96 pages of 2MiB, and 0 are free: reserve more: echo `, "start", spec)
	}
	t.Cleanup(func() { os.WriteFile(file, before, 0) })
	if out, err := exec.Command("sh", "-c", fmt.Sprintf("echo $(( $(cat %s) + 96 )) > %[1]s && cat %[1]s", file)).CombinedOutput(); err != nil {
		t.Skipf("this host has none to give: %v: %s", err, out)
	}
	free := func() string {
		text, _ := os.ReadFile(filepath.Dir(file) + "/free_hugepages")
		return strings.TrimSpace(string(text))
	}
	idle := free()
	h.vmrun(0, `^web1: running`, "start", spec)
	h.words("web1")
	if busy := free(); busy == idle {
		t.Errorf("%s huge pages are free, and were before", busy)
	}
	h.vmrun(0, `^web1: stopped`, "kill", "web1")
	h.becomes("huge pages given back", func() bool { return free() == idle })
}
