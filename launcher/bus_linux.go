package launcher

import (
	"context"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
)

// dialBus connects to the system's bus, within the time of ctx, after which the
// connection goes on until it is closed.
func dialBus(ctx context.Context) (*godbus.Conn, error) {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	conn, err := godbus.ConnectSystemBus(godbus.WithContext(lasting))
	if err == nil && !stop() {
		conn.Close()
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("the system's bus: %w", err)
	}
	return conn, nil
}
