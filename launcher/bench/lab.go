package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"vmrun/launcher/guesttest"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest/wire"
)

const qemu = "qemu-system-x86_64"

// lab is a host, which is a network namespace with a name, a machine outside,
// which is one without, and a veth pair between them: lab0 is the host's NIC.
// All guests of all contenders are on that.
type lab struct {
	dir, host  string
	outside    *netsetup.Namespace
	server     *wire.Server // outside's, where streams end
	files      guesttest.Files
	contenders []*contender
}

func newLab(control bool) (*lab, error) {
	cache, err := guesttest.CacheDir()
	if err != nil {
		return nil, err
	}
	files, err := guesttest.Options{}.Build(cache)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "vmrun-bench-") // a socket's path has 107 bytes at most
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, files: files}
	if err := l.build(control); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *lab) build(control bool) (err error) {
	if err := command("go", "build", "-trimpath", "-o", l.path("vmrun"), "./cmd/vmrun"); err != nil {
		return err
	}
	host := fmt.Sprintf("vmrun-bench-%d", os.Getpid())
	if err := command("ip", "netns", "add", host); err != nil {
		return err
	}
	l.host = host
	if l.outside, err = netsetup.NewNamespace(); err != nil {
		return err
	}
	if err := l.outside.Do(l.wireUp); err != nil {
		return err
	}
	l.contenders, err = l.newContenders(control)
	return err
}

// wireUp makes the outside machine, from inside. Go asks lo whether there is IPv6,
// once (net/ipsock_posix.go, probe).
func (l *lab) wireUp() (err error) {
	for _, words := range [][]string{
		{"link", "add", "lab0", "netns", l.host, "type", "veth", "peer", "name", "wire0"},
		{"-n", l.host, "link", "set", "lab0", "up"},
		{"link", "set", "lo", "up"},
		{"link", "set", "wire0", "up"},
		{"address", "add", outside4 + "/24", "dev", "wire0"},
		{"address", "add", outside6 + "/64", "dev", "wire0", "nodad"},
	} {
		if err := command("ip", words...); err != nil {
			return err
		}
	}
	l.server, err = wire.ServeDiscard(port)
	return err
}

func (l *lab) path(names ...string) string {
	return filepath.Join(append([]string{l.dir}, names...)...)
}

func (l *lab) close() error {
	for _, c := range l.contenders {
		for _, g := range c.guests {
			_ = c.end(g) // if it is there: a start that failed may have left something
		}
	}
	if l.server != nil {
		_ = l.server.Close()
	}
	err := errors.Join(l.outside.Close(), os.RemoveAll(l.dir))
	if l.host != "" {
		err = errors.Join(err, command("ip", "netns", "del", l.host))
	}
	return err
}

// inside runs a program on the lab's host, with the words before it as its
// environment, and returns what it wrote to standard output.
func (l *lab) inside(env []string, name string, args ...string) (string, error) {
	return output(env, "ip", append([]string{"netns", "exec", l.host, name}, args...)...)
}

func command(name string, args ...string) error {
	_, err := output(nil, name, args...)
	return err
}

// patience is how long a program may take, and how long a guest to boot.
const patience = 2 * time.Minute

func output(env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	if err != nil {
		var stderr []byte
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			stderr = exit.Stderr
		}
		return "", fmt.Errorf("%s %v: %w\n%s", name, args, err, stderr)
	}
	return string(out), nil
}
