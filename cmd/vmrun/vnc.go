package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) vncCmd() *cobra.Command {
	var listen string
	var force bool
	cmd := &cobra.Command{
		Use:   "vnc GUEST",
		Short: "Show where a guest's screen can be seen, or bring it to a TCP port",
		Long: `Show where a guest's screen can be seen: a unix socket that speaks VNC, for root
and the members of the guest's group. Any number may look at once. The guest needs
a screen: display = "vnc" in its spec.

With --listen it is served on a TCP port of this host, without a password, until
the command is interrupted or the guest ends. An address that others can reach
takes --force.`,
		Example: `  vncviewer $(vmrun vnc web1)                            # TigerVNC
  ssh -L 5901:/run/vmrun/web1/vnc.sock root@host         # from afar; then: vncviewer localhost:5901
  vmrun vnc web1 --listen 127.0.0.1:5901`,
		GroupID:           "look",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := a.guestName(args[0])
			if err != nil {
				return err
			}
			socket, err := a.displaySocket(cmd.Context(), name)
			switch {
			case err != nil:
				return err
			case listen != "":
				return a.relay(cmd.Context(), name, socket, listen, force)
			case a.json:
				return printJSON(map[string]string{"socket": socket})
			}
			say("%s", socket)
			return nil
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "", "serve it on this `ADDRESS:PORT` of the host")
	cmd.Flags().BoolVar(&force, "force", false, "let --listen use an address that others can reach")
	a.jsonFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("listen", "json")
	return cmd
}

// displaySocket is the guest's, once it is clear that somebody is there.
func (a *app) displaySocket(ctx context.Context, name string) (string, error) {
	status, err := launcher.Observe(ctx, a.runDir, name)
	if err == nil {
		err = status.AtRest()
	}
	if err != nil {
		return "", err
	}
	socket := launcher.DisplaySocket(a.runDir, name)
	_, err = os.Stat(socket)
	switch {
	case status.Supervisor == 0:
		return "", fmt.Errorf("%s: %w: it has no supervisor: vmrun start %[1]s", name, launcher.ErrState)
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf(`%s: %w: it has no screen: display = "vnc" in its spec gives it one with its next start`, name, launcher.ErrState)
	}
	return socket, err
}

// relay serves the guest's screen on a TCP address, until ctx is over or the guest
// has ended.
func (a *app) relay(ctx context.Context, name, socket, address string, force bool) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return usageError{fmt.Errorf("--listen: %w: write it as 127.0.0.1:5901", err)}
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) && !force {
		return usageError{fmt.Errorf("--listen: others can reach %q, and use the guest without a password: take 127.0.0.1 and ssh -L, or --force", host)}
	}
	client, err := launcher.Control(ctx, a.runDir, name)
	if err != nil {
		return err
	}
	defer client.Close()
	var listening net.ListenConfig
	listener, err := listening.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	warn("%s: VNC on %s, until this is interrupted", name, listener.Addr())
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-client.Done():
		}
		listener.Close()
	})
	for {
		viewer, err := listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) && ctx.Err() == nil:
			return a.lost(ctx, name)
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			time.Sleep(50 * time.Millisecond) // out of descriptors; they come back
			continue
		}
		wg.Go(func() { join(ctx, viewer, socket) })
	}
}

// join copies between a viewer and the screen until one of them ends.
func join(ctx context.Context, viewer net.Conn, socket string) {
	defer viewer.Close()
	var d net.Dialer
	screen, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		warn("%v", err)
		return
	}
	defer screen.Close()
	hangUp := func() { viewer.Close(); screen.Close() }
	defer context.AfterFunc(ctx, hangUp)()
	var wg sync.WaitGroup
	for _, ends := range [][2]net.Conn{{viewer, screen}, {screen, viewer}} {
		wg.Go(func() {
			_, _ = io.Copy(ends[0], ends[1])
			hangUp()
		})
	}
	wg.Wait()
}
