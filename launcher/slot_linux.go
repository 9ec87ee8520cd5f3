package launcher

import (
	"bufio"
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
	for _, e := range entries {
		if name := e.Name(); name[0] >= '0' && name[0] <= '9' && hasUID("/proc/"+name+"/status", fmt.Sprint(uid)) {
			return true
		}
	}
	return false
}

// hasUID looks for uid among the four of a process's status file, and among its
// supplementary groups. A process that nobody has waited for yet has both, and holds
// nothing any more; one whose first thread alone has ended looks like it, but for the
// number of its threads.
func hasUID(path, uid string) bool {
	f, err := os.Open(path)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) // or it has ended
	}
	defer f.Close()
	found, zombie := false, false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		switch key, rest, _ := strings.Cut(lines.Text(), ":"); key {
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
