package qmp

import (
	"context"
	"fmt"
	"net"
)

// Ask has the monitor that listens on the unix socket at path run one command, in
// one turn: it writes all that it has to say before it reads. Both ends are woken
// once, where Dial, Execute and Close take three turns, which tells where a
// hundred monitors are asked. ctx bounds the whole. args, result and the error are
// those of Execute; errors of the connect are net's.
func Ask(ctx context.Context, path, command string, args, result any) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer boundBy(ctx, conn.SetDeadline)()
	if err := askOver(conn, command, args, result); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%s: %s: %w", path, command, err)
	}
	return nil
}

func askOver(conn net.Conn, command string, args, result any) error {
	negotiation, err := encodeCommand(capabilities, nil, "1")
	if err != nil {
		return err
	}
	line, err := encodeCommand(command, args, "2")
	if err != nil {
		return err
	}
	// One who is refused is told so before the write fails.
	_, unsent := conn.Write(append(negotiation, line...))
	in := newFrames(conn, maxMessage)
	for {
		frame, err := in.next()
		switch {
		case unreadable(err):
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		case err != nil && unsent != nil:
			return closedError(unsent)
		case err != nil:
			return closedError(err)
		}
		m, err := decodeMessage(frame)
		switch {
		case err != nil:
			return err
		case m.Error != nil:
			return m.Error
		case m.Event == "" && string(m.ID) == `"2"`:
			return decodeResult(m.Return, result)
		}
	}
}
