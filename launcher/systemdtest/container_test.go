package systemdtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmrun/netsetup/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.M{M: m}.Run()) }

func TestBoot(t *testing.T) {
	dir := t.TempDir()
	program := "#!/bin/sh\necho $1 $$\n"
	if err := os.WriteFile(filepath.Join(dir, "probe"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	c := Boot(t, Options{
		Etc:   map[string]string{"systemd/system/probe.service": "[Service]\nType=oneshot\nExecStart=probe started\n"},
		Binds: map[string]string{"/usr/local/bin": dir},
	})
	c.Run("systemctl", "start", "probe.service")
	if got := c.Run("journalctl", "--unit=probe.service", "--output=cat"); !strings.Contains(got, "started ") {
		t.Errorf("the unit's journal:\n%s", got)
	}
	if name, err := os.ReadFile(c.Path("/proc/1/comm")); err != nil || string(name) != "systemd\n" {
		t.Errorf("PID 1 is %q, %v", name, err)
	}
	if got := c.Run("ip", "-brief", "link"); strings.Count(got, "\n") != 0 || !strings.HasPrefix(got, "lo ") {
		t.Errorf("the container's links:\n%s", got)
	}
}

func TestLogin(t *testing.T) {
	c := Boot(t, Options{})
	id := c.Login("lab", "sleep 600")
	if got := c.Run("loginctl", "show-session", id, "--property=Name", "--property=Service"); got != "Name=root\nService=login" {
		t.Errorf("the session is\n%s", got)
	}
	if again := c.Login("lab2", "sleep 600"); again == id {
		t.Errorf("both sessions are %s", id)
	}
}

// Two containers at once do not see each other, and of neither anything is left.
func TestNothingIsLeft(t *testing.T) {
	var names, roots []string // of namespaces, and directories
	t.Run("inner", func(t *testing.T) {
		for range 2 {
			c := Boot(t, Options{})
			for _, kind := range []string{"mnt", "net", "pid", "cgroup", "ipc", "uts"} {
				name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.leader, kind))
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, name)
			}
			for _, arg := range c.nspawn.Args {
				if root, ok := strings.CutPrefix(arg, "--directory="); ok {
					roots = append(roots, filepath.Dir(root))
				}
			}
			if got := c.Run("systemctl", "is-system-running"); got != "running" {
				t.Errorf("the container is %s", got)
			}
		}
		if found := inhabited(names); len(found) != len(names) {
			t.Errorf("of the namespaces %v only %v are found", names, found)
		}
	})
	for deadline := time.Now().Add(5 * time.Second); len(inhabited(names)) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("namespaces are left: %v", inhabited(names))
		}
	}
	for _, root := range roots {
		if _, err := os.Lstat(root); !os.IsNotExist(err) {
			t.Errorf("%s: %v", root, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		if strings.Contains(string(mounts), root) {
			t.Errorf("a mount below %s is left:\n%s", root, mounts)
		}
	}
}

// inhabited are those of the namespaces that a process lives in.
func inhabited(names []string) map[string]bool {
	found := make(map[string]bool)
	links, _ := filepath.Glob("/proc/[0-9]*/ns/*")
	for _, link := range links {
		name, _ := os.Readlink(link)
		for _, n := range names {
			if n == name {
				found[n] = true
			}
		}
	}
	return found
}
