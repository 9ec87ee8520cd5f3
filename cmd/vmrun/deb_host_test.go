package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmrun/launcher"
	"vmrun/launcher/systemdtest"
)

// The package's life on a host: it is installed, two guests are started, one through
// its unit, a newer one is installed while they run, it cannot be removed as long as
// they do, and then leaves nothing.
func TestDebLife(t *testing.T) {
	if os.Getenv("VMRUN_TEST_ALL") != "1" {
		t.Skip("installs packages in a container and boots guests there: make test-all")
	}
	systemdtest.Require(t)
	packages := debs(t, nil, "v1.0.0", "v1.1.0")
	etc := map[string]string{
		"vmrun/web1.toml":  systemdtest.GuestSpec("vmrun.addr=eth0:192.0.2.11/24") + "[[nic]]\nparent = \"lab0\"\n",
		"guests/web2.toml": systemdtest.GuestSpec("vmrun.addr=eth0:192.0.2.12/24") + "[[nic]]\nparent = \"lab0\"\n",
	}
	for name, text := range labUnits {
		etc[name] = text
	}
	o := systemdtest.Options{Etc: etc, Packages: true}.WithGuests(t)
	delete(o.Binds, "/usr/local/bin")
	o.Binds["/srv/packages"] = filepath.Dir(packages[0])
	o.Binds["/srv/newer"] = filepath.Dir(packages[1])
	h := &unitHost{systemdtest.Boot(t, o), t}
	h.Run("ip", "address", "add", "192.0.2.1/24", "dev", "wire0")
	before := h.files()

	h.install("/srv/packages/" + filepath.Base(packages[0]))
	h.vmrun(0, `^vmrun v1\.0\.0 `, "version")
	for path, mode := range map[string]string{"/run/vmrun": "755 root", "/var/lib/vmrun": "700 root", "/etc/vmrun": "755 root"} {
		if got := h.Run("stat", "--format=%a %U", path); got != mode {
			t.Errorf("%s: %s, want %s", path, got, mode)
		}
	}
	if got := h.Run("getent", "passwd", "vmrun"); !strings.HasSuffix(got, "/nologin") {
		t.Errorf("the owner of guests' users: %s", got)
	}
	h.Run("systemctl", "enable", "--now", "vmrun@web1")
	h.vmrun(0, `\Aweb2: running: `, "start", "/etc/guests/web2.toml")
	h.booted("web1")
	h.booted("web2")

	h.upgrade("/srv/newer/" + filepath.Base(packages[1]))
	h.staysInstalled()
	h.vmrun(0, `^web2: stopped \(powerdown\)$`, "stop", "web2")
	h.Run("systemctl", "stop", "vmrun@web1")
	if log := h.Run("vmrun", "logs", "--console", "web1"); !strings.Contains(log, "vmrun-guest: power button") {
		t.Errorf("the guest in the unit saw no power button:\n%s", log)
	}

	h.Run("apt-get", "remove", "--yes", "vmrun")
	if got := h.show("vmrun@web1.service", "LoadState"); got != "not-found" {
		t.Errorf("removed, the unit is %s", got)
	}
	h.Run("rm", "/etc/vmrun/web1.toml")
	h.Run("apt-get", "purge", "--yes", "vmrun")
	if diff := cmp.Diff(before, h.files()); diff != "" {
		t.Errorf("after a purge (-before +after):\n%s", diff)
	}
}

func (h *unitHost) install(deb string) {
	h.t.Helper()
	h.Run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--no-install-recommends", deb)
}

// upgrade installs a newer package, which the guests do not notice.
func (h *unitHost) upgrade(deb string) {
	h.t.Helper()
	old := map[string]launcher.Status{"web1": h.guest("web1"), "web2": h.guest("web2")}
	pings := map[string]*strings.Builder{}
	var wait []func() error
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for name, address := range map[string]string{"web1": "192.0.2.11", "web2": "192.0.2.12"} {
		cmd := h.Command(ctx, "ping", "-q", "-i", "0.2", "-w", "100", "-c", "60", "-W", "5", address)
		pings[name] = &strings.Builder{}
		cmd.Stdout, cmd.Stderr = pings[name], pings[name]
		if err := cmd.Start(); err != nil {
			h.t.Fatal(err)
		}
		wait = append(wait, cmd.Wait)
	}
	h.install(deb)
	for _, w := range wait {
		_ = w() // it says how it went
	}
	h.vmrun(0, `^vmrun v1\.1\.0 `, "version")
	for name, before := range old {
		if !strings.Contains(pings[name].String(), "60 packets transmitted, 60 received") {
			h.t.Errorf("%s, meanwhile:\n%s", name, pings[name])
		}
		after := h.guest(name)
		if after.PID != before.PID || after.Supervisor != before.Supervisor || after.State != launcher.StateRunning {
			h.t.Errorf("%s: before the upgrade %+v\nafter it %+v", name, before, after)
		}
		if got := h.Run(fmt.Sprintf("/proc/%d/exe", after.Supervisor), "version"); !strings.HasPrefix(got, "vmrun v1.1.0 ") {
			h.t.Errorf("the supervisor of %s is %s", name, got)
		}
	}
	if got := h.Run("systemctl", "show", "--property=ActiveState,SubState,NRestarts", "vmrun@web1"); got != "NRestarts=0\nActiveState=active\nSubState=running" {
		h.t.Errorf("the unit:\n%s", got)
	}
	scope := fmt.Sprintf("vmrun-web2-%d-1.scope", old["web2"].Supervisor)
	if got := h.Run("cat", fmt.Sprintf("/proc/%d/cgroup", old["web2"].PID)); !strings.HasSuffix(got, "/machine.slice/"+scope) {
		h.t.Errorf("QEMU is not in %s:\n%s", scope, got)
	}
	if got := h.show(scope, "Controller"); !strings.HasPrefix(got, ":") {
		h.t.Errorf("%s has the controller %q", scope, got)
	}
}

// staysInstalled tries to remove the package while guests run.
func (h *unitHost) staysInstalled() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := h.Command(ctx, "apt-get", "remove", "--yes", "vmrun").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "vmrun: guests are running, and would be left with nobody to stop them: vmrun stop web1 web2") {
		h.t.Errorf("removed while guests run: %v\n%s", err, out)
	}
	if got := h.Run("dpkg-query", "--show", "--showformat=${db:Status-Status}", "vmrun"); got != "installed" {
		h.t.Errorf("the package is %s", got)
	}
	for _, name := range []string{"web1", "web2"} {
		if s := h.guest(name); s.State != launcher.StateRunning || s.Supervisor == 0 {
			h.t.Errorf("%s: %+v", name, s)
		}
	}
}

// files are all that a package may leave: not what the system itself writes as it
// runs, and not the user of guests, which stays so that nobody else gets its number.
func (h *unitHost) files() (names []string) {
	h.t.Helper()
	for name := range strings.Lines(h.Run("find", "/etc", "/usr", "/var", "/run", "/root", "/srv", "-xdev", "-name", "*vmrun*")) {
		if name = strings.TrimSpace(name); name != "/etc/vmrun" { // which the test has made
			names = append(names, name)
		}
	}
	return names
}
