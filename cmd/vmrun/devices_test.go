package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmrun/launcher/guesttest"
)

// requireProgram skips a test without a program, or fails it where nothing may be skipped.
func requireProgram(t *testing.T, remedy string, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			return
		}
	}
	if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
		t.Fatalf("needs %s: %s", programs[0], remedy)
	}
	t.Skipf("needs %s: %s", programs[0], remedy)
}

// deviceGuest writes the spec of a guest with these lines in the end, and ends
// the guest with the test.
func (h *host) deviceGuest(name, top string, lines ...string) (spec string) {
	h.t.Helper()
	files := guesttest.Options{Modules: []string{"virtiofs"}}.Image(h.t)
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

func TestDevices(t *testing.T) {
	requireProgram(t, "apt-get install swtpm", "swtpm")
	requireProgram(t, "apt-get install qemu-system-common", "/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
	h := newHost(t)
	src := t.TempDir()
	spec := h.deviceGuest("web1", "tpm = true", fmt.Sprintf("[[share]]\npath = %q\ntag = \"src\"\n", src))
	h.vmrun(0, `^web1: running`, "start", spec)
	say := h.words("web1")
	t.Log(say("tpm 80010000000c000001440000"))
	t.Log(say("tpm 80010000000c0000017b0008"))
	t.Log(say("mount virtiofs src /src"))
	t.Log(say("file write /src/a hello"))
	t.Log(say("file read /src/a"))
	out, _ := exec.Command("sh", "-c", "ps axfwww | grep -A3 "+h.run+"; ls -la "+src+" "+h.run+".state/web1/tpm; cat "+h.run+"/web1/*.log").CombinedOutput()
	t.Logf("%s", out)
	h.vmrun(0, "", "status", "web1")
}
