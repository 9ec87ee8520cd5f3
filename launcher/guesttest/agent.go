package guesttest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// agentScripts are an agent guest's commands, for the console's exec, and programs
// that its agent runs.
var agentScripts = map[string]string{
	"/start-agent": `exec /usr/sbin/qemu-ga -d -m virtio-serial -p /dev/vport*p1 -f /run/qemu-ga.pid -t /run
`,
	"/stop-agent": `read pid </run/qemu-ga.pid
kill -9 $pid
`,
	// It writes to the port for ever and reads nothing.
	"/bad-agent": `exec 3<>$(echo /dev/vport*p1)
(while :; do printf '\377{"return":1}\n{"return":[{"hardware-address":"%s"}]}\n' "$1"; done >&3 2>/dev/null) >/dev/null 2>&1 &
echo $! >/run/qemu-ga.pid
`,
	// It has the port open and does nothing.
	"/hung-agent": `exec 3<>$(echo /dev/vport*p1)
sleep 1000 >/dev/null 2>&1 &
echo $! >/run/qemu-ga.pid
`,
	"/sbin/shutdown": `echo o >/proc/sysrq-trigger
`,
	"/sbin/hwclock": `exit 0
`,
}

// agentPrograms are the host's programs in it.
var agentPrograms = []string{"/bin/sh", "/bin/cat", "/bin/sleep", "/bin/date", "/usr/bin/head"}

// AgentImage is the image of a guest that has Debian's QEMU guest agent, which
// "exec /start-agent" on its console starts, and some programs for it to run. The
// test is skipped where fetch-agent.sh has not been run.
func AgentImage(t testing.TB) Files {
	t.Helper()
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(cache, "qemu-ga")
	if _, err := os.Stat(agent); err != nil {
		if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skipf("no agent for the test guest in %s: run launcher/guesttest/fetch-agent.sh %[1]s", cache)
	}
	files := map[string]string{"/usr/sbin/qemu-ga": agent}
	for _, program := range agentPrograms {
		files[program] = program
	}
	for _, program := range append([]string{agent}, agentPrograms...) {
		for _, library := range libraries(t, program) {
			files[library] = library
		}
	}
	dir := t.TempDir()
	for name, script := range agentScripts {
		path := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o600); err != nil {
			t.Fatal(err)
		}
		files[name] = path
	}
	return Options{Modules: []string{"virtio_console"}, Files: files}.Image(t)
}

// libraries are those that a program needs, the loader included.
func libraries(t testing.TB, program string) (list []string) {
	t.Helper()
	out, err := exec.Command("ldd", program).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("not found")) {
		t.Fatalf("ldd %s: %v\n%s", program, err, out)
	}
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/") {
			list = append(list, word)
		}
	}
	return list
}
