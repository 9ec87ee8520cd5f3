package launcher

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The bytes of an image that QEMU locks (block/file-posix.c, RAW_LOCK_PERM_BASE and
// RAW_LOCK_SHARED_BASE): the first plus the number of a permission for each that it
// has, and the second plus that for each that it grants to nobody else.
const (
	lockHas   = 100
	lockAlone = 200

	permWrite  = 1 // BLK_PERM_WRITE
	permResize = 3 // BLK_PERM_RESIZE
)

// locked reports whether QEMU would fail to get its lock on an image.
func locked(path string, readonly bool) bool {
	f, err := openInput(path, os.O_RDONLY, unix.S_IFREG, unix.S_IFBLK)
	if err != nil {
		return false
	}
	defer f.Close()
	return lockedFile(f, readonly)
}

// lockedFile is locked for a file that is open, whose own locks do not count.
func lockedFile(f *os.File, readonly bool) bool {
	taken := func(at int64) bool {
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk) == nil && lk.Type != unix.F_UNLCK
	}
	return taken(lockHas+permWrite) || !readonly && taken(lockAlone+permWrite)
}

// lockImage takes the locks of somebody who writes an image and changes its size,
// as QEMU does. They go when f is closed.
func lockImage(f *os.File) error {
	for _, at := range resizeLocks {
		lk := unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
			return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
	}
	for _, at := range resizeLocks {
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err == nil && lk.Type != unix.F_UNLCK {
			return errLocked
		}
	}
	return nil
}

// unlockImage gives back what lockImage took.
func unlockImage(f *os.File) error {
	lk := unix.Flock_t{Type: unix.F_UNLCK, Start: lockHas, Len: 2 * (lockAlone - lockHas)}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
}

var resizeLocks = []int64{lockHas + permWrite, lockHas + permResize, lockAlone + permWrite, lockAlone + permResize}

var errLocked = errors.New("it is in use")

// refuseLocked says who has an image that QEMU could not lock, or returns nil.
func (l *life) refuseLocked(f *os.File, readonly bool) error {
	if !lockedFile(f, readonly) {
		return nil
	}
	return inUse(filepath.Dir(string(l.dir)), f.Name())
}

const oneWriter = "a disk can be written by one guest at a time"

// inUse says who has an image.
func inUse(base, path string) error {
	holder := describeLockers(base, path, 0)
	if holder == "" {
		holder = "somebody who cannot be seen from here, on another host for example"
	}
	return fmt.Errorf("%s is in use by %s: %s", path, holder, oneWriter)
}

// describeLockers names who keeps an image from others, besides the guest itself;
// "" for nobody.
func describeLockers(base, path string, self int) string {
	var words []string
	for _, pid := range lockers(path) {
		if pid == self || pid == os.Getpid() {
			continue
		}
		words = append(words, describeProcess(base, pid))
	}
	return strings.Join(words, ", ")
}

// lockers are the processes with a lock on an image: the kernel shows the locks of
// an open file with each of its descriptors (proc_pid_fdinfo(5)). Where it shows
// none, they are all that have the image open.
func lockers(path string) []int {
	want, err := os.Stat(path)
	if err != nil {
		return nil
	}
	all := holders(func(info os.FileInfo) bool { return os.SameFile(info, want) })
	locks := slices.DeleteFunc(slices.Clone(all), func(pid int) bool { return !holdsLock(pid, want) })
	if len(locks) > 0 {
		return locks
	}
	return all
}

func holdsLock(pid int, file os.FileInfo) bool {
	dir := fmt.Sprintf("/proc/%d", pid)
	entries, _ := os.ReadDir(filepath.Join(dir, "fd"))
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		info, err := os.Stat(filepath.Join(dir, "fd", e.Name()))
		if err != nil || !os.SameFile(info, file) {
			return false
		}
		text, err := os.ReadFile(filepath.Join(dir, "fdinfo", e.Name()))
		return err == nil && bytes.Contains(text, []byte("\nlock:"))
	})
}
