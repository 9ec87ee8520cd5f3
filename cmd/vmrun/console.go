package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vmrun/launcher"
)

// escapeKey is Ctrl-], as of telnet(1) and virsh console.
const escapeKey = 0x1d

func (a *app) consoleCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "console GUEST",
		Short: "Attach to a guest's serial console; Ctrl-] leaves it",
		Long: `Attach to a guest's serial console; Ctrl-] leaves it.

What was printed last is shown first. Any number of people may be attached at
once: everybody sees everything and everybody may type. At the end of its input
the command stays attached, until the guest ends.

It is a terminal's line: what the guest writes reaches yours as it is, control
sequences too. vmrun logs --console shows the same without them.`,
		GroupID:           "look",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := a.guestName(args[0])
			if err != nil {
				return err
			}
			return a.console(cmd.Context(), name)
		},
	}
}

func (a *app) console(ctx context.Context, name string) error {
	status, err := launcher.Observe(ctx, a.runDir, name)
	if err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", launcher.ConsoleSocket(a.runDir, name))
	if err != nil && status.State.Rests() {
		return fmt.Errorf("%s: %w: it has ended: vmrun logs --console %s", name, launcher.ErrState, name)
	}
	if err != nil && status.Supervisor == 0 {
		return fmt.Errorf("%s: %w: it has no supervisor: vmrun start %s", name, launcher.ErrState, name)
	}
	if err != nil {
		return fmt.Errorf("%s: console: %w", name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
		warn("console of %s, Ctrl-] leaves it", name)
		old, err := term.MakeRaw(fd)
		if err != nil {
			return err
		}
		defer fmt.Fprintln(os.Stderr)
		defer term.Restore(fd, old)
	}
	go func() {
		if typeInto(conn, os.Stdin) {
			conn.Close()
		}
	}()
	_, err = io.Copy(os.Stdout, conn)
	switch {
	case errors.Is(err, net.ErrClosed): // by the escape key, or a signal
		return nil
	case err != nil:
		return fmt.Errorf("%s: console: %w", name, err)
	}
	return a.lost(ctx, name)
}

// typeInto copies what is typed, up to the escape key; it reports whether that
// was pressed. At the end of a file the console stays open for reading.
func typeInto(w io.Writer, r io.Reader) (escaped bool) {
	buf := make([]byte, 1024)
	for {
		n, err := r.Read(buf)
		typed, _, escaped := bytes.Cut(buf[:n], []byte{escapeKey})
		if _, werr := w.Write(typed); werr != nil || escaped {
			return escaped
		}
		if err != nil {
			return false
		}
	}
}
