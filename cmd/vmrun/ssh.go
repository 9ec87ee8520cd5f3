package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

// sshFailed is ssh(1)'s exit status for failures of its own.
const sshFailed = 255

// sshOptions are the words of vmrun ssh.
type sshOptions struct {
	user string
	port uint16
	wait time.Duration
}

func (a *app) sshCmd() *cobra.Command {
	var opts sshOptions
	cmd := &cobra.Command{
		Use:   "ssh [flags] GUEST [--] [COMMAND [ARGUMENT...]]",
		Short: "Log in to a guest by ssh, or run a command there",
		Long: `Log in to a guest by ssh, or run a command there.

It becomes ssh(1), with an address of the guest at which an ssh server answers: one
of its spec, or one that it has used on a NIC. The host reaches a guest with
host_access = true under [[nic]], which can be changed while it runs; without it
the host does so only where the network brings its frames back. A guest that was
just started is waited for.

For ssh the guest is the host vmrun-GUEST, in ~/.ssh/config too, whatever address it
has. Its host key is kept the first time; another one later is refused. Root's are
in known_hosts in the guest's state directory, others' where ssh has them. Under
sudo the keys of the user who called it are offered as well.

The exit status is ssh's: that of the command, or 255 where ssh or vmrun failed.`,
		Example: `  vmrun start web1.toml && vmrun ssh --user=debian web1
  vmrun ssh web1 -- journalctl -b -p warning
  vmrun ssh web1 -- tar -C /etc -c . >etc.tar`,
		GroupID:           "look",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		Annotations:       map[string]string{ownFailures: strconv.Itoa(sshFailed)},
		RunE: func(cmd *cobra.Command, args []string) error {
			name, words, err := a.guestAndWords(args)
			if err != nil {
				return err
			}
			return a.ssh(cmd.Context(), name, words, opts)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVarP(&opts.user, "user", "l", "", "log in as `USER`; without it the first that cloud_init.users names, or ssh's own choice")
	cmd.Flags().Uint16VarP(&opts.port, "port", "p", 22, "the port of the guest's ssh server")
	cmd.Flags().DurationVar(&opts.wait, "wait", time.Minute, "wait this long for an address with an ssh server; 0 tries once")
	return cmd
}

// ssh becomes ssh(1).
func (a *app) ssh(ctx context.Context, name string, words []string, opts sshOptions) error {
	program, err := exec.LookPath("ssh")
	if err != nil {
		return errors.New("there is no ssh on this host: apt-get install openssh-client")
	}
	addr, err := a.sshAddress(ctx, name, opts)
	if err != nil {
		return err
	}
	if opts.user == "" {
		opts.user = launcher.SeedUser(a.runDir, name)
	}
	known := ""
	if os.Geteuid() == 0 {
		if known, err = launcher.KnownHosts(a.runDir, name); err != nil {
			return err
		}
	}
	return syscall.Exec(program, sshCommand(name, addr, known, callersKeys(), words, opts), os.Environ())
}

// sshCommand is ssh's command line. known is the file of host keys, "" for ssh's own.
func sshCommand(name string, addr netip.Addr, known string, keys, words []string, opts sshOptions) []string {
	alias := "vmrun-" + name
	argv := []string{"ssh", "-o", "HostName=" + addr.String(), "-o", "HostKeyAlias=" + alias, "-o", "StrictHostKeyChecking=accept-new"}
	if known != "" {
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(known)
		argv = append(argv, "-o", `UserKnownHostsFile="`+quoted+`"`)
	}
	for _, key := range keys {
		argv = append(argv, "-i", key)
	}
	if opts.port != 22 {
		argv = append(argv, "-p", strconv.Itoa(int(opts.port)))
	}
	if opts.user != "" {
		argv = append(argv, "-l", opts.user)
	}
	return append(append(argv, "--", alias), words...)
}

// callersKeys are the private keys of the user who has called sudo, and those of
// root, which ssh does not offer by itself beside others. There are none without
// sudo: ssh finds its user's by itself.
func callersKeys() []string {
	caller, err := user.Lookup(os.Getenv("SUDO_USER"))
	if err != nil || os.Geteuid() != 0 {
		return nil
	}
	homes := []string{caller.HomeDir}
	if root, err := user.LookupId("0"); err == nil {
		homes = append(homes, root.HomeDir)
	}
	var keys []string
	for _, home := range homes {
		for _, kind := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
			key := filepath.Join(home, ".ssh", kind)
			if _, err := os.Stat(key); err == nil {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

const (
	sshPoll  = 300 * time.Millisecond
	sshProbe = 3 * time.Second  // for a server to take a connection and greet
	sshGrace = 10 * time.Second // for a guest that may be out of reach
)

// sshAddress waits for an address of the guest with an ssh server.
func (a *app) sshAddress(ctx context.Context, name string, opts sshOptions) (netip.Addr, error) {
	deadline := time.Now().Add(opts.wait)
	var told bool
	var known time.Time // since when there is an address that the host may not reach
	for {
		s, err := launcher.Observe(ctx, a.runDir, name)
		if err != nil {
			return netip.Addr{}, err
		}
		if err := s.AtRest(); err != nil {
			return netip.Addr{}, err
		}
		list := s.HostAddresses()
		i, err := probeSSH(ctx, list, opts.port)
		if err == nil {
			return list[i].IP, nil
		}
		outOfReach := len(list) > 0 && !list[0].Access && !errors.Is(err, errAnswers)
		if outOfReach && known.IsZero() {
			known = time.Now()
		}
		late := time.Now().After(deadline) || s.State == launcher.StatePaused
		if late || outOfReach && time.Since(known) > sshGrace {
			return netip.Addr{}, sshUnreached(s, list, err)
		}
		if !told {
			warn("waiting for an ssh server in %s", name)
			told = true
		}
		select {
		case <-time.After(sshPoll):
		case <-ctx.Done():
			return netip.Addr{}, fmt.Errorf("%s: no longer waited for", name)
		}
	}
}

// errAnswers says that somebody is at the address, but no ssh server, or not yet.
var errAnswers = errors.New("no ssh server answers")

// probeSSH returns the index of the first address with an ssh server. The error is
// that of the best one.
func probeSSH(ctx context.Context, list []launcher.HostAddress, port uint16) (int, error) {
	if len(list) == 0 {
		return 0, errors.New("no address of it is known")
	}
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, addr := range list {
		wg.Go(func() { errs[i] = greetsSSH(ctx, netip.AddrPortFrom(addr.IP, port)) })
	}
	wg.Wait()
	for i, err := range errs {
		if err == nil {
			return i, nil
		}
	}
	return 0, errs[0]
}

// greetsSSH reports whether an ssh server is at an address (RFC 4253, section 4.2).
func greetsSSH(ctx context.Context, addr netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, sshProbe)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr.String())
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s", errAnswers, addr)
	case err != nil:
		return fmt.Errorf("nobody answers at %s", addr)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(sshProbe))
	greeting := make([]byte, 4)
	if _, err := io.ReadFull(conn, greeting); err != nil || string(greeting) != "SSH-" {
		return fmt.Errorf("%w at %s", errAnswers, addr)
	}
	return nil
}

// sshUnreached says why a guest is not reached, and what to do.
func sshUnreached(s launcher.Status, list []launcher.HostAddress, err error) error {
	switch {
	case s.State == launcher.StatePaused:
		return fmt.Errorf("%s: %w: it is paused: vmrun resume %[1]s", s.Name, launcher.ErrState)
	case len(list) == 0:
		return noAddress(s)
	case list[0].Why != "":
		return fmt.Errorf("%s: the host has no way to %s: %s", s.Name, list[0].IP, list[0].Why)
	case errors.Is(err, errAnswers):
		return fmt.Errorf("%s: %w: is one installed and started there? vmrun console %s", s.Name, err, s.Name)
	case list[0].Access:
		return fmt.Errorf("%s: %w: vmrun console %s", s.Name, err, s.Name)
	}
	return fmt.Errorf("%s: %w: without host access a guest is reached from other machines alone: host_access = true under [[nic]], and for now: vmrun nic %s set %s host_access=true",
		s.Name, err, s.Name, list[0].NIC)
}
