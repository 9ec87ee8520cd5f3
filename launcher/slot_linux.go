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
// then is its mark. Nobody waits: a byte that is locked means the next one.
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
	if _, err := os.ReadDir("/proc"); err != nil { // without which every uid counts as in use
		f.Close()
		return 0, nil, fmt.Errorf("slots: %w", err)
	}
	for slot := range slotsFor(name, users.count) {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(slot), Len: 1}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
		if err := unexpectedLockError(err); err != nil {
			f.Close()
			return 0, nil, fmt.Errorf("slots: %w", err)
		}
		if err != nil || uidInUse(users.first+slot) {
			continue // a lock on a byte in use is given up with the file
		}
		return slot, f, nil
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
		if !uidInUse(users.first + slot) {
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

// uidInUse reports whether any process has uid, or the group of this number: that
// is what tells the slot of a QEMU that runs as root (confine.user). The owner of its directory in
// /proc would be quicker to read, and is root's for a process that chose not to
// be dumpable (proc(5)).
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

// statusSize is more than a process's status file has, but for one with hundreds of
// groups.
const statusSize = 8 << 10

// hasUID looks for uid among the four of a process's status file, and among its
// supplementary groups. A process that nobody has waited for yet has both, and holds
// nothing any more; one whose first thread alone has ended looks like it, but for the
// number of its threads. All processes of the host are looked at at a start, so a
// file is read by one call, into buf.
func hasUID(path, uid string, buf []byte) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) // or it has ended
	}
	n, err := unix.Read(fd, buf)
	unix.Close(fd)
	text := buf[:max(n, 0)]
	if n == len(buf) {
		text, err = os.ReadFile(path)
	}
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
