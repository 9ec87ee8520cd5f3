package qmp

import (
	"context"
	"errors"
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
	return s, err
}

// QueryUUID returns the guest's UUID, all zeros when it has none
// (query-uuid, qapi/machine.json).
func (c *Client) QueryUUID(ctx context.Context) (string, error) {
	var r struct {
		UUID string `json:"UUID"`
	}
	err := c.Execute(ctx, "query-uuid", nil, &r)
	return r.UUID, err
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
