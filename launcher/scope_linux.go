package launcher

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"vmrun/configs"
)

// leaveByScope has systemd move the process into a transient scope of its own
// (org.freedesktop.systemd1(5), StartTransientUnit). When that is to end, at the
// host's shutdown for example, systemd leaves it to the scope's controller, which
// is this process, and calls stop; without one it would signal QEMU too, which is
// a power cut. It does so until the process ends.
func leaveByScope(g *configs.Guest, after []string, stop func()) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	unit := scopeOf(g.Name, os.Getpid(), unitAround(os.Getpid()))
	controller, err := controlScope(ctx, unit, stop)
	if err != nil {
		return err
	}
	err = startScope(ctx, unit, []dbus.Property{
		dbus.PropDescription("Virtual machine " + g.Name),
		dbus.PropPids(uint32(os.Getpid())),
		dbus.PropSlice("machine.slice"),
		dbus.PropAfter(append(after, lasting...)...),
		{Name: "Delegate", Value: godbus.MakeVariant(true)}, // for limits
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
		{Name: "Controller", Value: godbus.MakeVariant(controller.Names()[0])},
		{Name: "TimeoutStopUSec", Value: godbus.MakeVariant(uint64(StopBound(g) / time.Microsecond))},
	})
	if err != nil {
		controller.Close()
		return fmt.Errorf("systemd: start %s: %w", unit, err)
	}
	return nil
}

// scopeOf names the scope of a supervisor that is in another unit so far. One that
// goes on as another program is not its scope's controller any more, and needs
// another scope.
func scopeOf(name string, pid int, in string) string {
	scope := fmt.Sprintf("vmrun-%s-%d", dbus.PathBusEscape(name), pid)
	if in == scope+".scope" {
		return scope + "-1.scope"
	}
	var times int
	if n, _ := fmt.Sscanf(in, scope+"-%d.scope", &times); n == 1 {
		return fmt.Sprintf("%s-%d.scope", scope, times+1)
	}
	return scope + ".scope"
}

const systemdName = "org.freedesktop.systemd1"

// lasting are units that go after a guest at the host's shutdown: what its NICs and
// disks may need, and what carries systemd's word to the controller.
var lasting = []string{"network.target", "remote-fs.target", "dbus.service"}

// controlScope connects as the controller of a scope.
func controlScope(ctx context.Context, unit string, stop func()) (*godbus.Conn, error) {
	conn, err := dialBus(ctx)
	if err != nil {
		return nil, err
	}
	signals := make(chan *godbus.Signal, 8)
	conn.Signal(signals) // systemd's is for this connection alone, and needs no match
	path := godbus.ObjectPath("/org/freedesktop/systemd1/unit/" + dbus.PathBusEscape(unit))
	go func() { // until the connection ends
		for s := range signals {
			if s.Name == systemdName+".Scope.RequestStop" && s.Path == path && isFrom(conn, s, systemdName) {
				stop()
			}
		}
	}()
	return conn, nil
}

// isFrom reports whether a signal is from the owner of a name: anybody may send
// one.
func isFrom(conn *godbus.Conn, s *godbus.Signal, name string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	var owner string
	err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, name).Store(&owner)
	return err == nil && owner == s.Sender
}

func startScope(ctx context.Context, unit string, properties []dbus.Property) error {
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	done := make(chan string, 1)
	if _, err := conn.StartTransientUnitContext(ctx, unit, "fail", properties, done); err != nil {
		return err
	}
	return awaitJob(ctx, done)
}

// awaitJob waits for the end of a job of systemd's.
func awaitJob(ctx context.Context, done <-chan string) error {
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("its job is %s", result)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unitAround is the unit that a process belongs to, or "".
func unitAround(pid int) string {
	if dir := unitDir(pid); dir != "" {
		return filepath.Base(dir)
	}
	return ""
}

// unitDir is that unit's cgroup.
func unitDir(pid int) string {
	dir, err := cgroupOf(pid, "")
	if err != nil {
		return ""
	}
	for ; len(dir) > 1; dir = filepath.Dir(dir) {
		if strings.HasSuffix(dir, ".scope") || strings.HasSuffix(dir, ".service") {
			return dir
		}
	}
	return ""
}
