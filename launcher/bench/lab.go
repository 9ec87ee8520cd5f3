package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"vmrun/launcher/guesttest"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest/wire"
)

const qemu = "qemu-system-x86_64"

// lab is a host, which is the network namespace of the bench, a machine outside,
// which is another, and a veth pair between them: lab0 is the host's NIC. All
// guests of all contenders are on that. It ends with the process.
type lab struct {
	dir      string
	outside  *netsetup.Namespace
	server   *wire.Server // outside's, where streams end
	files    guesttest.Files
	libvirtd *exec.Cmd
	prepared map[guest]bool

	vmrunC, libvirtC, handC, controlC, plainC *contender
}

func newLab(ctx context.Context, dir string, libvirt bool) (*lab, error) {
	cache, err := guesttest.CacheDir()
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, prepared: map[guest]bool{}}
	if l.files, err = (guesttest.Options{}).Build(cache); err != nil {
		return nil, err
	}
	for _, file := range []*string{&l.files.Kernel, &l.files.Initrd} {
		data, err := os.ReadFile(*file)
		if err != nil {
			return nil, err
		}
		*file = l.path(filepath.Base(*file))
		if err := os.WriteFile(*file, data, 0o644); err != nil {
			return nil, err
		}
	}
	if _, err := output([]string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", l.path("vmrun"), "./cmd/vmrun"); err != nil {
		return nil, err
	}
	if l.outside, err = netsetup.NewNamespace(); err != nil {
		return nil, err
	}
	if err := l.outside.Do(l.wireUp); err != nil {
		return nil, err
	}
	l.vmrunC, l.handC, l.controlC, l.plainC = l.vmrun(1), l.byHand("by hand", 2), l.byHand("control", 3), l.plain(4)
	if libvirt {
		l.libvirtC = l.libvirt(5)
		if err := l.startLibvirt(ctx); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// wireUp makes the outside machine, from inside. Go asks lo whether there is IPv6,
// once (net/ipsock_posix.go, probe). Its addresses stay when it is set down.
func (l *lab) wireUp() (err error) {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/keep_addr_on_down", []byte("1"), 0); err != nil {
		return err
	}
	for _, words := range [][]string{
		{"link", "add", "wire0", "type", "veth", "peer", "name", "lab0", "netns", strconv.Itoa(os.Getpid())},
		{"link", "set", "lo", "up"},
		{"link", "set", "wire0", "up"},
		{"address", "add", outside4 + "/15", "dev", "wire0"},
		{"address", "add", outside6 + "/64", "dev", "wire0", "nodad"},
	} {
		if _, err := output(nil, "ip", words...); err != nil {
			return err
		}
	}
	if _, err := output(nil, "nsenter", "--net=/proc/"+strconv.Itoa(os.Getpid())+"/ns/net", "sh", "-c", "ip link set lo up; ip link set lab0 up"); err != nil {
		return err
	}
	l.server, err = wire.ServeDiscard(port)
	return err
}

func (l *lab) path(names ...string) string {
	return filepath.Join(append([]string{l.dir}, names...)...)
}

// patience is how long a program may take, and how long a guest to boot.
const patience = 2 * time.Minute

// output runs a program on the lab's host, with words for its environment, and
// returns what it wrote to standard output.
func output(env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.WaitDelay = time.Second // of one that left its output to somebody else
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %.60q: %w\n%s%s", name, args, err, out.String(), stderr.String())
	}
	return out.String(), nil
}
