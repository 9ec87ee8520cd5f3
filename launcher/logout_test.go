package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmrun/launcher/guesttest"
	"vmrun/launcher/systemdtest"
)

// loginScript is what a user does who logs in. The guest stays is started as
// users do. What must end with the session is beside it, as the proof that
// sessions end at all: the guest goes, whose supervisor was kept from seeing
// that there is a systemd and so is where it was started, and a process that
// left the terminal and nothing else.
const loginScript = `
ip link add lab0 type veth peer name wire0
ip address add 192.0.2.1/24 dev wire0
ip link set wire0 up
ip link set lab0 up
vmrun start stays
unshare --mount sh -euc 'mount -t tmpfs tmpfs /run/systemd; exec vmrun start --paused goes'
setsid sleep 3600 &
touch /run/done
until [ -e /run/leave ]; do sleep 0.1; done`

const (
	userSlice    = "/user.slice/user-0.slice"
	controlGroup = "/sys/fs/cgroup"
)

func TestGuestSurvivesLogout(t *testing.T) {
	for _, tt := range []struct {
		name, logind string
		logout       func(c *systemdtest.Container, session string)
	}{
		{"the session is terminated", "", func(c *systemdtest.Container, session string) {
			c.Run("loginctl", "terminate-session", session)
		}},
		// root is excluded unless somebody else is (logind.conf(5)).
		{"the user leaves and is cleaned up after", "KillUserProcesses=yes\nKillExcludeUsers=nobody\n",
			func(c *systemdtest.Container, _ string) { c.Run("touch", "/run/leave") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := bootHost(t, "[Login]\nUserStopDelaySec=0\n"+tt.logind)
			session := h.logIn()
			stays, goes := h.guests()["stays"], h.guests()["goes"]
			sessionGroup := userSlice + "/session-" + session + ".scope"
			guestGroup := fmt.Sprintf("/machine.slice/vmrun-stays-%d.scope", stays.Supervisor)
			h.checkGroup(sessionGroup, goes.Supervisor, goes.PID)
			h.checkGroup(guestGroup, stays.Supervisor, stays.PID)
			if got := h.Run("systemctl", "show", "--property=Delegate", filepath.Base(guestGroup)); got != "Delegate=yes" || !isDelegated(h.Path(controlGroup+guestGroup)) {
				t.Errorf("the guest's scope cannot be divided: %s", got)
			}
			mortal := h.processes(sessionGroup)
			console := h.console(stays)

			tt.logout(h.Container, session)
			h.waitGone(controlGroup+userSlice, 30*time.Second)
			for _, pid := range mortal {
				h.waitGone(fmt.Sprintf("/proc/%d", pid), 0)
			}

			after := h.guests()
			if got := after["stays"]; got.State != StateRunning || got.PID != stays.PID || got.Supervisor != stays.Supervisor {
				t.Errorf("after the logout: %+v\nbefore: %+v", got, stays)
			}
			if got, ok := after["goes"]; ok {
				t.Errorf("a guest that stayed in the session outlives it: %+v", got)
			}
			h.checkGroup(guestGroup, stays.Supervisor, stays.PID)
			if reply, _, err := console.Run(h.within(30*time.Second), "ping 192.0.2.1 3"); err != nil || reply != "sent=3 received=3" {
				t.Errorf("ping by the guest: %s, %v", reply, err)
			}
			if got := h.Run("vmrun", "stop", "stays"); got != "stays: stopped (powerdown)" {
				t.Errorf("stop: %s", got)
			}
			h.waitGone(fmt.Sprintf("/proc/%d", stays.Supervisor), 5*time.Second)
			h.waitGone(controlGroup+guestGroup, 5*time.Second)
		})
	}
}

// host is a machine with systemd, vmrun and two specs.
type host struct {
	*systemdtest.Container
	t *testing.T
}

func bootHost(t *testing.T, logind string) *host {
	t.Helper()
	spec := systemdtest.GuestSpec("vmrun.addr=eth0:192.0.2.11/24")
	return &host{t: t, Container: systemdtest.Boot(t, systemdtest.Options{Etc: map[string]string{
		"systemd/logind.conf": logind,
		"vmrun/stays.toml":    spec + nic("bridge"),
		"vmrun/goes.toml":     spec,
	}}.WithGuests(t))}
}

// logIn waits until the script has started everything, and returns the
// session's name.
func (h *host) logIn() (session string) {
	h.t.Helper()
	session = h.Login("lab-login", loginScript)
	deadline := time.Now().Add(60 * time.Second)
	for {
		if _, err := os.Stat(h.Path("/run/done")); err == nil {
			return session
		}
		if time.Now().After(deadline) || h.Run("systemctl", "show", "--property=ActiveState", "lab-login") != "ActiveState=active" {
			h.t.Fatal("the login did not get its guests started")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// guests are those that vmrun ps lists, by name.
func (h *host) guests() map[string]Status {
	h.t.Helper()
	var list []Status
	if err := json.Unmarshal([]byte(h.Run("vmrun", "ps", "--json")), &list); err != nil {
		h.t.Fatal(err)
	}
	byName := make(map[string]Status)
	for _, s := range list {
		byName[s.Name] = s
	}
	return byName
}

// console is the guest's, which serves commands.
func (h *host) console(g Status) *guesttest.Console {
	h.t.Helper()
	c, err := guesttest.Dial(h.within(30*time.Second), h.Path(ConsoleSocket(DefaultRunDir, g.Name)))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	if _, err := c.WaitReady(h.within(30 * time.Second)); err != nil {
		h.t.Fatalf("%v\n%s", err, c.Transcript())
	}
	return c
}

func (h *host) within(limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(h.t.Context(), limit)
	h.t.Cleanup(cancel)
	return ctx
}

// processes are the pids in a control group.
func (h *host) processes(group string) []int {
	h.t.Helper()
	var pids []int
	for _, word := range strings.Fields(h.Run("cat", controlGroup+group+"/cgroup.procs")) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			h.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// checkGroup checks which control group processes are in (cgroups(7),
// /proc/PID/cgroup).
func (h *host) checkGroup(want string, pids ...int) {
	h.t.Helper()
	for _, pid := range pids {
		if got := h.Run("sed", "-n", "s/^0:://p", fmt.Sprintf("/proc/%d/cgroup", pid)); got != want {
			h.t.Errorf("process %d is in %s, want %s", pid, got, want)
		}
	}
}

// waitGone waits until a path is no more.
func (h *host) waitGone(path string, limit time.Duration) {
	h.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		_, err := os.Stat(h.Path(path))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			h.t.Errorf("%s is still there after %v: %v", path, limit, err)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
