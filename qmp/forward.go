package qmp

import (
	"context"
	"encoding/json"
)

// Forward returns a handler that runs every request on c. The answer's bytes
// are c's, untouched; a refusal keeps its class.
func Forward(c *Client) Handler {
	return func(ctx context.Context, req Request) (any, error) {
		var result json.RawMessage
		if err := c.Execute(ctx, req.Command, req.Arguments, &result); err != nil {
			return nil, err
		}
		return result, nil
	}
}
