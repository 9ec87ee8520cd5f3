package qmp

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Status is the result of query-status; see StatusInfo and RunState in
// qapi/run-state.json.
type Status struct {
	Running bool   `json:"running"`
	Status  string `json:"status"` // "running", "paused", "prelaunch", "shutdown", …
}

// QueryStatus asks for the run state (query-status, qapi/run-state.json).
func (c *Client) QueryStatus(ctx context.Context) (Status, error) {
	var s Status
	err := c.Execute(ctx, "query-status", nil, &s)
	s.Status = short(s.Status)
	return s, err
}

// QueryUUID returns the guest's UUID, all zeros when it has none
// (query-uuid, qapi/machine.json).
func (c *Client) QueryUUID(ctx context.Context) (string, error) {
	var r struct {
		UUID string `json:"UUID"`
	}
	err := c.Execute(ctx, "query-uuid", nil, &r)
	return short(r.UUID), err
}

// QueryName returns the name given with -name, or "" (query-name,
// qapi/misc.json).
func (c *Client) QueryName(ctx context.Context) (string, error) {
	var r struct {
		Name string `json:"name"`
	}
	err := c.Execute(ctx, "query-name", nil, &r)
	return r.Name, err
}

// QueryVersion asks for QEMU's version (query-version, qapi/control.json).
// Version has it already, from the greeting.
func (c *Client) QueryVersion(ctx context.Context) (Version, error) {
	var v Version
	err := c.Execute(ctx, "query-version", nil, &v)
	return v, err
}

// QueryCommands returns the names of all commands this QEMU knows
// (query-commands, qapi/control.json).
func (c *Client) QueryCommands(ctx context.Context) ([]string, error) {
	var list []struct {
		Name string `json:"name"`
	}
	if err := c.Execute(ctx, "query-commands", nil, &list); err != nil {
		return nil, err
	}
	names := make([]string, len(list))
	for i, cmd := range list {
		names[i] = cmd.Name
	}
	return names, nil
}

// Cont lets the guest run (cont, qapi/misc.json). RESUME follows.
func (c *Client) Cont(ctx context.Context) error {
	return c.Execute(ctx, "cont", nil, nil)
}

// Stop pauses the guest (stop, qapi/misc.json). STOP follows.
func (c *Client) Stop(ctx context.Context) error {
	return c.Execute(ctx, "stop", nil, nil)
}

// SystemPowerdown presses the power button (system_powerdown,
// qapi/machine.json). The guest may take any time, or ignore it.
func (c *Client) SystemPowerdown(ctx context.Context) error {
	return c.Execute(ctx, "system_powerdown", nil, nil)
}

// SystemReset presses the reset button (system_reset, qapi/machine.json).
func (c *Client) SystemReset(ctx context.Context) error {
	return c.Execute(ctx, "system_reset", nil, nil)
}

// SystemWakeup wakes a suspended guest; it is an error in any other state
// (system_wakeup, qapi/machine.json).
func (c *Client) SystemWakeup(ctx context.Context) error {
	return c.Execute(ctx, "system_wakeup", nil, nil)
}

// Quit ends QEMU (quit, qapi/control.json). QEMU may go before it answers:
// when the peer ends the connection after the command was sent, that is the
// answer. It does not wait for the process.
func (c *Client) Quit(ctx context.Context) error {
	_, sent, err := c.roundTrip(ctx, "quit", nil, nil)
	ended := sent && errors.Is(err, ErrClosed)
	if ended && c.Err() != ErrClosed { // which alone is our own Close
		return nil
	}
	return err
}

// RxFilter is what a NIC's driver in the guest wants to receive; see
// RxFilterInfo in qapi/net.json.
type RxFilter struct {
	Promiscuous       bool     `json:"promiscuous"`
	Multicast         string   `json:"multicast"` // "none", "normal" (MulticastTable) or "all"
	MulticastOverflow bool     `json:"multicast-overflow"`
	MulticastTable    []string `json:"multicast-table"`
	UnicastOverflow   bool     `json:"unicast-overflow"`
	UnicastTable      []string `json:"unicast-table"` // further addresses of its own
	MainMAC           string   `json:"main-mac"`
}

// QueryRxFilter asks for the filter of the NIC with this device id. QEMU sends
// no further NIC_RX_FILTER_CHANGED for a NIC until it was asked
// (query-rx-filter, qapi/net.json). The error is an *Error for a device that has
// no such thing, as all but virtio-net.
func (c *Client) QueryRxFilter(ctx context.Context, device string) (RxFilter, error) {
	var list []RxFilter
	err := c.Execute(ctx, "query-rx-filter", map[string]any{"name": device}, &list)
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("query-rx-filter: %d answers for %s", len(list), device)
	}
	if err != nil {
		return RxFilter{}, err
	}
	return list[0], nil
}

// SetLink plugs and unplugs the cable of the NIC with this device id, as the
// guest sees it (set_link, qapi/net.json).
func (c *Client) SetLink(ctx context.Context, device string, up bool) error {
	return c.Execute(ctx, "set_link", map[string]any{"name": device, "up": up}, nil)
}

// GetFD hands QEMU a file under a name, for one command to come that takes it
// (getfd, qapi/misc.json).
func (c *Client) GetFD(ctx context.Context, name string, file *os.File) error {
	return c.ExecuteFiles(ctx, "getfd", map[string]any{"fdname": name}, nil, file)
}

// CloseFD takes a file back that no command has taken (closefd, qapi/misc.json).
func (c *Client) CloseFD(ctx context.Context, name string) error {
	return c.Execute(ctx, "closefd", map[string]any{"fdname": name}, nil)
}

// NetdevAdd adds a network backend (netdev_add, qapi/net.json).
func (c *Client) NetdevAdd(ctx context.Context, options map[string]any) error {
	return c.Execute(ctx, "netdev_add", options, nil)
}

// NetdevDel removes a network backend. For one that a NIC uses it says that it
// did, and leaves the NIC without (netdev_del, qapi/net.json).
func (c *Client) NetdevDel(ctx context.Context, id string) error {
	return c.Execute(ctx, "netdev_del", map[string]any{"id": id}, nil)
}

// DeviceAdd plugs a device in (device_add, qapi/qdev.json).
func (c *Client) DeviceAdd(ctx context.Context, options map[string]any) error {
	return c.Execute(ctx, "device_add", options, nil)
}

// DeviceDel asks the guest to give a device up. It is gone with
// DEVICE_DELETED, or never (device_del, qapi/qdev.json). The error is
// ErrDeviceNotFound where there is none.
func (c *Client) DeviceDel(ctx context.Context, id string) error {
	return c.Execute(ctx, "device_del", map[string]any{"id": id}, nil)
}
