package launcher

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What landlock can refuse, by the version of its interface that brought it
// (landlock(7), landlock_create_ruleset(2)).
var (
	landlockFS = []struct {
		abi    int
		access uint64
	}{
		{1, unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1}, // the first 13
		{2, unix.LANDLOCK_ACCESS_FS_REFER},
		{3, unix.LANDLOCK_ACCESS_FS_TRUNCATE},
		{5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
	}
	landlockNet    = struct{ abi, access uint64 }{4, unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP}
	landlockScopes = struct{ abi, access uint64 }{6, unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL}
)

const (
	landlockRead  = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	landlockWrite = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_REFER | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	landlockDevice = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

// landlockABI is the version of landlock that the kernel has, 0 for none.
func landlockABI() int {
	abi, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0
	}
	return int(abi)
}

// landlock lets the calling thread open what QEMU loads, and nothing else of any
// file system, connect to and listen on no TCP port, and signal nobody outside.
// Descriptors that are open already go on working. A kernel without landlock is
// no error: Security tells.
//
// The go-landlock library restricts whole processes only.
func landlock(parts []part) error {
	abi := landlockABI()
	if abi == 0 {
		return nil
	}
	var attr unix.LandlockRulesetAttr
	for _, fs := range landlockFS {
		if abi >= fs.abi {
			attr.Handled_access_fs |= fs.access
		}
	}
	if abi >= int(landlockNet.abi) {
		attr.Handled_access_net = landlockNet.access
	}
	if abi >= int(landlockScopes.abi) {
		attr.Scoped = landlockScopes.access
	}
	ruleset, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if e != 0 {
		return fmt.Errorf("create ruleset: %w", e)
	}
	defer unix.Close(int(ruleset))
	for _, p := range append(parts, part{real: "/proc", dir: true}) {
		access := uint64(landlockRead)
		switch {
		case p.image && p.device:
			access = landlockDevice | unix.LANDLOCK_ACCESS_FS_TRUNCATE
		case p.image:
			access = unix.LANDLOCK_ACCESS_FS_READ_FILE
		case p.write:
			access = landlockWrite
		case p.device:
			access = landlockDevice
		case !p.dir:
			access &^= unix.LANDLOCK_ACCESS_FS_READ_DIR
		}
		if err := allow(int(ruleset), p.place(), access&attr.Handled_access_fs); err != nil {
			return err
		}
	}
	if _, _, e := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0); e != 0 {
		return fmt.Errorf("restrict: %w", e)
	}
	return nil
}

// allow adds a rule for path and what is below it.
func allow(ruleset int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(fd)
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	if _, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); e != 0 {
		return fmt.Errorf("allow %s: %w", path, e)
	}
	return nil
}
