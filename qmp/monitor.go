package qmp

import (
	"context"
	"encoding/json"
)

// The methods here are go-qemu's Monitor; vocabulary.go asserts it.

// Connect reports whether the connection lives; NewClient has made it.
func (c *Client) Connect() error { return c.Err() }

// Disconnect is Close.
func (c *Client) Disconnect() error { return c.Close() }

// Run executes a command given as a QMP request, {"execute": …}, and returns
// the answer as QMP: {"return": …}, with the request's id if it had one.
// There is no context: it waits until the answer or the connection's end.
func (c *Client) Run(command []byte) ([]byte, error) {
	in, refused := decodeRequest(command)
	if refused != nil {
		return nil, refused
	}
	var result json.RawMessage
	if err := c.Execute(context.Background(), in.command, in.arguments, &result); err != nil {
		return nil, err
	}
	return encodeReply(result, in.id)
}

// Events streams events until ctx or the connection ends; then the channel is
// closed.
func (c *Client) Events(ctx context.Context) (<-chan Event, error) {
	if err := c.Err(); err != nil {
		return nil, err
	}
	s := c.Subscribe()
	context.AfterFunc(ctx, s.Close)
	return s.Events(), nil
}
