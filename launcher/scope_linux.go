package launcher

import (
	"context"
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// leaveByScope has systemd move the process into a transient scope of its own
// (org.freedesktop.systemd1(5), StartTransientUnit).
func leaveByScope(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("systemd: %w", err)
	}
	defer conn.Close()
	done := make(chan string, 1)
	properties := []dbus.Property{
		dbus.PropDescription("Virtual machine " + name),
		dbus.PropPids(uint32(os.Getpid())),
		dbus.PropSlice("machine.slice"),
		{Name: "Delegate", Value: godbus.MakeVariant(true)}, // for limits
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
	}
	unit := fmt.Sprintf("vmrun-%s-%d.scope", dbus.PathBusEscape(name), os.Getpid())
	if _, err := conn.StartTransientUnitContext(ctx, unit, "fail", properties, done); err != nil {
		return fmt.Errorf("systemd: start %s: %w", unit, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("systemd: start %s: %s", unit, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("systemd: start %s: %w", unit, ctx.Err())
	}
}
