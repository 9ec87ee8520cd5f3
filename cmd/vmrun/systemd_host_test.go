package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/systemdtest"
)

// unitHost is a machine with systemd on which vmrun is installed.
type unitHost struct {
	*systemdtest.Container
	t *testing.T
}

// labUnits make the NIC lab0 before the network is there.
var labUnits = map[string]string{
	"systemd/system/lab.service": "[Unit]\nWants=network.target\nBefore=network.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\n" +
		"ExecStart=ip link add lab0 type veth peer name wire0\nExecStart=ip link set wire0 up\nExecStart=ip link set lab0 up\n",
	"systemd/system/multi-user.target.d/lab.conf": "[Unit]\nWants=lab.service\n",
	"systemd/journald.conf":                       "[Journal]\nStorage=persistent\n",
}

// labSpec is a guest's spec, with further lines at its top.
func labSpec(top string) string {
	return top + "\n" + systemdtest.GuestSpec("") + "[[nic]]\nparent = \"lab0\"\n"
}

func bootUnitHost(t *testing.T, etc map[string]string) *unitHost {
	t.Helper()
	systemdtest.Require(t)
	for name, text := range labUnits {
		etc[name] = text
	}
	o := systemdtest.Options{Etc: etc}.WithGuests(t)
	o.Binds["/usr/local"] = installed(t)
	delete(o.Binds, "/usr/local/bin") // which is in there
	return &unitHost{systemdtest.Boot(t, o), t}
}

// vmrun types a command, and wants this exit status and output that matches.
func (h *unitHost) vmrun(status int, pattern string, args ...string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	out, err := h.Command(ctx, "vmrun", args...).CombinedOutput()
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got, err = exit.ExitCode(), nil
	}
	if err != nil || got != status || !regexp.MustCompile("(?m)"+pattern).Match(out) {
		h.t.Errorf("vmrun %s: %v, exit status %d, want %d and %q in:\n%s", strings.Join(args, " "), err, got, status, pattern, out)
	}
}

// show is one property of a unit.
func (h *unitHost) show(unit, property string) string {
	h.t.Helper()
	return h.Run("systemctl", "show", "--property="+property, "--value", unit)
}

// want waits for words that a command prints.
func (h *unitHost) want(what, pattern string, command ...string) {
	h.t.Helper()
	var out string
	for deadline := time.Now().Add(120 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if out = h.Run(command[0], command[1:]...); regexp.MustCompile("(?m)" + pattern).MatchString(out) {
			return
		}
	}
	h.t.Fatalf("%s: no %q in:\n%s", what, pattern, out)
}

// booted waits until a guest can hear its power button.
func (h *unitHost) booted(name string) {
	h.t.Helper()
	h.want(name, "vmrun-guest: ready", "cat", "/run/vmrun/"+name+"/console.log")
}

// A host with five guests boots, is used, and shuts down.
func TestSystemdHost(t *testing.T) {
	h := bootUnitHost(t, map[string]string{
		"vmrun/web.toml": strings.NewReplacer("[boot]", "[defaults.boot]", "[[nic]]", "[[defaults.nic]]").Replace("[defaults]"+labSpec("")) +
			"[[guest]]\nname = \"web%d\"\ncount = 2\nautostart = true\n",
		"vmrun/web_3.toml": labSpec("autostart = true"), // no name for machined
		"vmrun/bad.toml":   "autostart = true\nmemory = 12\n",
		"vmrun/odd.toml":   strings.Replace(labSpec(""), "/srv/kernel", "/srv/nothing", 1),
		"vmrun/4.toml":     labSpec(`name = "web4"`),
		"vmrun/web6.toml":  labSpec(""),
		"guests/web5.toml": labSpec(""),
	})
	state := h.Keep("/run/vmrun")
	journal := h.Keep("/var/log/journal")

	// What the generator has made of the specs.
	h.vmrun(0, `\ANAME.*\nweb1 +running.*\nweb2 +running.*\nweb_3 +running.*\n\z`, "ps")
	device := "sys-subsystem-net-devices-lab0.device"
	for property, want := range map[string]string{"Wants": device, "After": "network.target .*" + device, "TimeoutStopUSec": "^1min 30s$",
		"PartOf": "^vmrun.target$", "WantedBy": "^vmrun.target$", "SourcePath": "^/etc/vmrun/web.toml$"} {
		if got := h.show("vmrun@web1.service", property); !regexp.MustCompile(want).MatchString(sorted(got)) {
			t.Errorf("%s of web1's unit is %q, want %q", property, got, want)
		}
	}
	if got := h.show("vmrun@web1.service", "BindsTo") + h.show("vmrun@web1.service", "Requires"); strings.Contains(got, device) {
		t.Errorf("web1's unit goes with its NIC: %s", got)
	}
	if got := h.show("vmrun.target", "ActiveState"); got != "active" {
		t.Errorf("vmrun.target is %s", got)
	}

	h.byUnit()
	h.adHoc()

	for _, name := range []string{"web1", "web2", "web_3", "web4", "web5"} {
		h.booted(name)
	}
	h.PowerOff(60 * time.Second)
	asked := lastAsked(t, journal, filepath.Join(state, "web5/supervisor.log"))
	for _, name := range []string{"web1", "web2", "web_3", "web4", "web5"} {
		text, err := os.ReadFile(filepath.Join(state, name, "console.log"))
		if err != nil || !strings.Contains(string(text), "power button") {
			t.Errorf("%s was not asked to power off: %v\n%s", name, err, text)
		}
		var rec struct{ Ended launcher.Outcome }
		text, err = os.ReadFile(filepath.Join(state, name, "state"))
		if err == nil {
			err = json.Unmarshal(text, &rec)
		}
		if err != nil || rec.Ended.Rung != launcher.RungPowerdown {
			t.Errorf("%s ended thus: %+v, %v", name, rec.Ended, err)
		}
		if rec.Ended.At.Before(asked) {
			t.Errorf("%s had ended at %v, before the last was asked to at %v", name, rec.Ended.At, asked)
		}
	}
}

// byUnit starts and stops a guest through its unit, and through machined, which
// knows all whose names it can take.
func (h *unitHost) byUnit() {
	h.t.Helper()
	h.vmrun(0, `\Aweb4: started as vmrun@web4.service\nweb4: running: lab0 bridge \S+\n\z`, "start", "/etc/vmrun/4.toml")
	if got := h.show("vmrun@web4.service", "ActiveState"); got != "active" {
		h.t.Errorf("web4's unit is %s", got)
	}
	h.vmrun(3, `^vmrun: web4 is running already`, "start", "web4")
	h.want("machinectl", `(?s)^web1 +vm +vmrun .*^web2 +vm +vmrun .*^web4 +vm +vmrun `, "machinectl", "--no-pager", "list")
	h.want("machinectl status", `^\s*Unit: vmrun@web4.service$`, "machinectl", "--no-pager", "status", "web4")
	if got := h.Run("machinectl", "--no-pager", "list"); strings.Contains(got, "web_3") {
		h.t.Errorf("machined takes a name with a _ by now:\n%s", got)
	}
	h.booted("web4")
	h.Run("machinectl", "terminate", "web4")
	h.vmrun(0, `^web4: stopped \(powerdown\)$`, "wait", "--for=stopped", "web4")
	h.inactive("web4")
	if got := h.Run("machinectl", "--no-pager", "list"); strings.Contains(got, "web4") {
		h.t.Errorf("machined still knows a guest that has ended:\n%s", got)
	}
	h.vmrun(0, `^web4: started as vmrun@web4.service$`, "start", "web4")
	h.vmrun(0, `\Aweb4: stopped \(kill\)\n\z`, "kill", "web4")
	h.inactive("web4")

	// A spec that is another by now makes a unit that is another.
	spec := h.Path("/etc/vmrun/4.toml")
	text, err := os.ReadFile(spec)
	if err == nil {
		err = os.WriteFile(spec, append(text, "[stop]\ntimeout = \"40s\"\n"...), 0o644)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.vmrun(0, `^web4: started as vmrun@web4.service$`, "start", "/etc/vmrun/4.toml")
	if got := h.show("vmrun@web4.service", "TimeoutStopUSec"); got != "1min 10s" {
		h.t.Errorf("web4's unit has %s to stop", got)
	}

	h.vmrun(2, `\Avmrun: systemd did not start vmrun@odd.service: failed, exit status 2; it logged:\n\t/etc/vmrun/odd.toml:\d+: boot.kernel: `, "start", "odd")
	h.vmrun(2, `^/etc/vmrun/bad.toml:2: memory: `, "start", "bad")
	h.vmrun(0, `\Aweb6: paused: `, "start", "--paused", "web6")
	h.inactive("web6")
	h.vmrun(0, `\Aweb6: stopped`, "kill", "web6")
}

// inactive wants a guest's unit to be neither up nor failed.
func (h *unitHost) inactive(name string) {
	h.t.Helper()
	h.want(name+"'s unit", `^inactive$`, "systemctl", "show", "--property=ActiveState", "--value", launcher.UnitOf(name))
}

// adHoc starts a guest that has no unit, and adopts it into another scope.
func (h *unitHost) adHoc() {
	h.t.Helper()
	h.vmrun(0, `\Aweb5: running: `, "start", "/etc/guests/web5.toml")
	h.inScope("web5")
	supervisor := fmt.Sprint(h.guest("web5").Supervisor)
	h.Run("kill", "-KILL", supervisor)
	h.Run("timeout", "10", "tail", "--pid="+supervisor, "-f", "/dev/null") // until it has ended, and its lock with it
	h.vmrun(0, `\Aweb5: adopted, running: `, "start", "web5")
	h.inScope("web5")
}

// inScope wants a guest in the scope of its supervisor, with that as its controller.
func (h *unitHost) inScope(name string) {
	h.t.Helper()
	s := h.guest(name)
	scope := fmt.Sprintf("vmrun-%s-%d.scope", name, s.Supervisor)
	if got := h.Run("cat", fmt.Sprintf("/proc/%d/cgroup", s.PID)); !strings.HasSuffix(got, "/machine.slice/"+scope) {
		h.t.Errorf("QEMU is not in %s:\n%s", scope, got)
	}
	if got := h.show(scope, "Controller"); !strings.HasPrefix(got, ":") {
		h.t.Errorf("%s has the controller %q", scope, got)
	}
	h.want(name+"'s machine", `^\s*Unit: `+regexp.QuoteMeta(scope)+`$`, "machinectl", "--no-pager", "status", name)
}

func (h *unitHost) guest(name string) launcher.Status {
	h.t.Helper()
	var s launcher.Status
	if err := json.Unmarshal([]byte(h.Run("vmrun", "status", "--json", name)), &s); err != nil {
		h.t.Fatal(err)
	}
	return s
}

// lastAsked is when the last of the guests was asked to end: those in units by the
// journal, the other by its supervisor's log.
func lastAsked(t *testing.T, journal, log string) (last time.Time) {
	t.Helper()
	const words = "asked to end the guest"
	out, err := exec.Command("journalctl", "--directory="+journal, "--merge", "--output=json", "--unit=vmrun@*").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var entry struct {
			Message any   `json:"MESSAGE"`
			At      int64 `json:"__REALTIME_TIMESTAMP,string"` // microseconds
		}
		if err := dec.Decode(&entry); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if text, _ := entry.Message.(string); strings.Contains(text, words) {
			last = time.UnixMicro(entry.At)
		}
	}
	text, err := os.ReadFile(log)
	if err != nil || last.IsZero() {
		t.Fatalf("no guest was asked to end: %v", err)
	}
	found := regexp.MustCompile(`time=(\S+) .*`+words).FindAllStringSubmatch(string(text), -1)
	if len(found) == 0 {
		t.Fatalf("the guest without a unit was not asked to end:\n%s", text)
	}
	at, err := time.Parse(time.RFC3339, found[len(found)-1][1])
	if err != nil {
		t.Fatal(err)
	}
	if at.After(last) {
		return at
	}
	return last
}

func sorted(words string) string {
	list := strings.Fields(words)
	slices.Sort(list)
	return strings.Join(list, " ")
}
