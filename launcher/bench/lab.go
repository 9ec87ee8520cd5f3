package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"vmrun/launcher/guesttest"
)

const qemu = "qemu-system-x86_64"

// lab is two network namespaces with a veth pair between them, and the files
// of a test guest.
type lab struct {
	dir, host, wire string
	files           guesttest.Files
}

func newLab() (*lab, error) {
	cache, err := guesttest.CacheDir()
	if err != nil {
		return nil, err
	}
	files, err := guesttest.Options{}.Build(cache)
	if err != nil {
		return nil, fmt.Errorf("%w: launcher/guesttest/fetch-kernel.sh %s", err, cache)
	}
	dir, err := os.MkdirTemp("/tmp", "vmrun-bench-")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, files: files}
	l.host, l.wire = fmt.Sprintf("vmrun-bench-%d", os.Getpid()), fmt.Sprintf("vmrun-wire-%d", os.Getpid())
	if err := l.build(); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *lab) build() error {
	if err := command("go", "build", "-trimpath", "-o", l.path("vmrun"), "./cmd/vmrun"); err != nil {
		return err
	}
	for _, words := range [][]string{
		{"netns", "add", l.host},
		{"netns", "add", l.wire},
		{"-n", l.host, "link", "add", "lab0", "type", "veth", "peer", "name", "wire0", "netns", l.wire},
		{"-n", l.host, "link", "set", "lab0", "up"},
		{"-n", l.wire, "link", "set", "wire0", "up"},
	} {
		if err := command("ip", words...); err != nil {
			return err
		}
	}
	spec := fmt.Sprintf("name = \"bench\"\nmemory = \"192MiB\"\naccel = \"tcg\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n[[nic]]\nparent = \"lab0\"\n",
		l.files.Kernel, l.files.Initrd, guesttest.Cmdline)
	return os.WriteFile(l.path("bench.toml"), []byte(spec), 0o600)
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) close() error {
	// A start that failed may have left its guest; one that ended left nothing.
	_ = l.inside(l.path("vmrun"), "--run-dir", l.path("run"), "kill", "bench")
	return errors.Join(
		command("ip", "netns", "del", l.host),
		command("ip", "netns", "del", l.wire),
		os.RemoveAll(l.dir))
}

// inside runs a program on the lab's host.
func (l *lab) inside(name string, args ...string) error {
	return command("ip", append([]string{"netns", "exec", l.host, name}, args...)...)
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
	}
	return nil
}
