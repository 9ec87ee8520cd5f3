package netsetup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenTaps opens c.Queues queues of the child's tap, each a file of its own for
// QEMU's fds=. Every open adds a queue that takes its share of the flows.
//
// /dev/tapN is not used: N is an interface index, and two namespaces can each
// own a link of the same index. The device number is read from the namespace's
// own sysfs instead, the node is made where nobody else can reach it, and what
// was opened is asked for its name.
func (ns *Namespace) OpenTaps(c Child) ([]*os.File, error) {
	var taps []*os.File
	err := ns.Do(func() error {
		dev, err := tapNumber(c)
		if err != nil {
			return err
		}
		dir, err := detachedMount("tmpfs")
		if err != nil {
			return fmt.Errorf("tap node: %w", err)
		}
		defer unix.Close(dir)
		if err := unix.Mknodat(dir, "tap", unix.S_IFCHR|0o600, int(dev)); err != nil {
			return fmt.Errorf("tap node: mknod: %w", err)
		}
		for range c.Queues {
			tap, err := openTap(dir, c.Name, dev)
			if err != nil {
				return err
			}
			taps = append(taps, tap)
		}
		return nil
	})
	if err != nil {
		closeAll(taps)
		return nil, c.err("open tap", err)
	}
	return taps, nil
}

// tapNumber reads the device number of the child's tap from a sysfs mounted for
// the calling thread's namespace.
func tapNumber(c Child) (uint64, error) {
	sysfs, err := detachedMount("sysfs")
	if err != nil {
		return 0, err
	}
	defer unix.Close(sysfs)
	base := "class/net/" + c.Name + "/"
	index, err := readAt(sysfs, base+"ifindex")
	if err != nil {
		return 0, err
	}
	if index != strconv.Itoa(c.Index) {
		return 0, fmt.Errorf("the link has index %s, not %d: it is not the one that was made", index, c.Index)
	}
	text, err := readAt(sysfs, fmt.Sprintf("%s%s/tap%d/dev", base, c.kind(), c.Index))
	if err != nil {
		return 0, err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(text, "%d:%d", &major, &minor); err != nil {
		return 0, fmt.Errorf("device number %q: %w", text, err)
	}
	return unix.Mkdev(major, minor), nil
}

// openTap opens one queue through the node in dir and makes sure of what it got.
func openTap(dir int, name string, dev uint64) (*os.File, error) {
	// No O_CREAT: where the node is missing, a regular file must not take its place.
	fd, err := unix.Openat(dir, "tap", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("the tap has its %d queues already: %w", MaxQueues, err)
	}
	if err != nil {
		return nil, err
	}
	if err := verifyTap(fd, name, dev); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func verifyTap(fd int, name string, dev uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != dev {
		return fmt.Errorf("not the character device %d:%d", unix.Major(dev), unix.Minor(dev))
	}
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return fmt.Errorf("TUNGETIFF: %w", err)
	}
	if ifr.Name() != name {
		return fmt.Errorf("the device belongs to link %q, not %q", ifr.Name(), name)
	}
	return nil
}

// detachedMount mounts a file system that has no place in any mount namespace
// and vanishes with its descriptor (fsopen(2), fsmount(2)). sysfs shows the
// network namespace of the thread that mounts it.
func detachedMount(fstype string) (int, error) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("fsconfig %s: %w", fstype, err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", fstype, err)
	}
	return fd, nil
}

// readAt reads a small text file below dir, without the trailing newline.
func readAt(dir int, path string) (string, error) {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var buf [64]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return "", &os.PathError{Op: "read", Path: path, Err: err}
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
