package systemdtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// group is a control group for nspawn, which would otherwise make the
// container's in the test's own, by names that every container's share. It is in
// a mount of the unified hierarchy that only this process has: where this
// machine has mounted that, if anywhere, does not matter.
type group struct {
	mount *os.File
	dir   *os.File
	path  string
}

func newGroup() (*group, error) {
	own, err := ownGroup()
	if err != nil {
		return nil, err
	}
	mount, err := mountGroups()
	if err != nil {
		return nil, fmt.Errorf("control groups: %w", err)
	}
	path, err := os.MkdirTemp(fmt.Sprintf("/proc/self/fd/%d%s", mount.Fd(), own), "vmrun-test-")
	if err != nil {
		mount.Close()
		return nil, fmt.Errorf("control groups: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		err = errors.Join(err, os.Remove(path))
		mount.Close()
		return nil, fmt.Errorf("control groups: %w", err)
	}
	return &group{mount: mount, dir: dir, path: path}, nil
}

// ownGroup is the path of this process's group (cgroups(7), /proc/PID/cgroup).
func ownGroup() (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path, nil
		}
	}
	return "", errors.New("control groups: the kernel has no unified hierarchy")
}

func mountGroups() (*os.File, error) {
	ctx, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "cgroup2"), nil
}

// remove removes the group once nobody is in it any more; the kernel may take
// its time over the last of the dead.
func (g *group) remove(limit time.Duration) error {
	defer g.mount.Close()
	defer g.dir.Close()
	var dirs []string
	err := filepath.WalkDir(g.path, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	slices.Reverse(dirs)
	deadline := time.Now().Add(limit)
	for _, dir := range dirs {
		err := unix.Rmdir(dir)
		for ; err == unix.EBUSY && time.Now().Before(deadline); err = unix.Rmdir(dir) {
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			return fmt.Errorf("control groups: remove %s: %w", dir, err)
		}
	}
	return nil
}
