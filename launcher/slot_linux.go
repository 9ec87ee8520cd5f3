package launcher

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// slotFile is where slots are leased, one byte each, among all guests of the
// host, whatever run directory they use.
const slotFile = "/run/vmrun.slots"

// takeSlot leases a slot whose uid no process has. The lease is a lock that ends
// when the file is closed; it is kept until a QEMU runs under the uid, which
// then is its mark. One that runs as root keeps the lease itself. Nobody waits: a
// byte that is locked means the next one.
func takeSlot(name string) (slot int, lease *os.File, err error) {
	f, err := os.OpenFile(slotFile, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, nil, fmt.Errorf("slots: %w", err)
	}
	users, err := guestUsers()
	if err != nil {
		f.Close()
		return 0, nil, err
	}
	for slot := range slotsFor(name, users.count) {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(slot), Len: 1}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
		if err := unexpectedLockError(err); err != nil {
			f.Close()
			return 0, nil, fmt.Errorf("slots: %w", err)
		}
		if err != nil {
			continue
		}
		if !hasProcesses(users.first + slot) {
			return slot, f, nil
		}
		lock.Type = unix.F_UNLCK // or it would last as long as the lease
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			f.Close()
			return 0, nil, fmt.Errorf("slots: %w", err)
		}
	}
	f.Close()
	return 0, nil, fmt.Errorf("slots: all %d are in use", users.count)
}

// freeSlot is the slot that takeSlot would lease if nobody leased one now. It
// takes nothing, and needs no privilege.
func freeSlot(name string) int {
	users, err := guestUsers()
	if err != nil {
		return 0 // which takeSlot does not leave at that
	}
	for slot := range slotsFor(name, users.count) {
		if !hasProcesses(users.first + slot) {
			return slot
		}
	}
	return 0
}

// slotsFor goes through all slots, from one that follows from the name: a guest
// mostly has the same at every start.
func slotsFor(name string, count int) iter.Seq[int] {
	hash := derive("slot", name)
	first := int(hash[0])<<8 | int(hash[1])
	return func(yield func(int) bool) {
		for i := range count {
			if !yield((first + i) % count) {
				return
			}
		}
	}
}

// hasProcesses reports whether a process runs as uid. The kernel finds the users of
// processes by their numbers (kernel/user.c, find_user), but counts those that nobody
// has waited for yet.
func hasProcesses(uid int) bool {
	_, err := unix.Getpriority(unix.PRIO_USER, uid)
	return !errors.Is(err, unix.ESRCH) && uidInUse(uid)
}

// uidInUse reports whether any process has uid, or the group of this number: that
// is what tells whose a QEMU is that runs as root (confine.user). The owner of its
// directory in /proc would be quicker to read, and is root's for a process that chose
// not to be dumpable (proc(5)).
func uidInUse(uid int) bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return true
	}
	word, buf := fmt.Sprint(uid), make([]byte, statusSize)
	for _, e := range entries {
		if name := e.Name(); name[0] >= '0' && name[0] <= '9' && hasUID("/proc/"+name+"/status", word, buf) {
			return true
		}
	}
	return false
}

// readInto reads a file of /proc into buf, where it fits: a start looks at all
// processes of the host.
func readInto(buf []byte, path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for size := 0; size < len(buf); {
		n, err := unix.Read(fd, buf[size:])
		if err != nil || n == 0 {
			return buf[:size], err
		}
		size += n
	}
	return os.ReadFile(path)
}

// statusSize is more than a process's status file has, but for one with hundreds of
// groups.
const statusSize = 8 << 10

// hasUID looks for uid among the four of a process's status file, and among its
// supplementary groups. A process that nobody has waited for yet has both, and holds
// nothing any more; one whose first thread alone has ended looks like it, but for the
// number of its threads.
func hasUID(path, uid string, buf []byte) bool {
	text, err := readInto(buf, path)
	if err != nil {
		return !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrNotExist)
	}
	if !bytes.Contains(text, []byte(uid)) {
		return false
	}
	found, zombie := false, false
	for line := range strings.Lines(string(text)) {
		switch key, rest, _ := strings.Cut(line, ":"); key {
		case "State":
			zombie = strings.HasPrefix(strings.TrimSpace(rest), "Z")
		case "Uid", "Groups":
			if found = found || slices.Contains(strings.Fields(rest), uid); found && !zombie {
				return true
			}
		case "NStgid": // what comes next
			if !found {
				return false
			}
		case "Threads":
			return strings.TrimSpace(rest) != "1"
		}
	}
	return false
}
