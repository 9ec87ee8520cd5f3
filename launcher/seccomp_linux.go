package launcher

import (
	"maps"
	"slices"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// refusedCalls are the system calls that no QEMU needs once its files are open,
// and that have helped others out of their walls. QEMU's own filter (-sandbox)
// refuses more later, processes and identities for example, but none of these
// beyond a few.
var refusedCalls = []string{
	// other processes
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "pidfd_open", "kcmp",
	// namespaces, mounts and roots
	"unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "fsopen", "fsconfig", "fsmount", "fspick",
	"move_mount", "open_tree", "open_tree_attr", "mount_setattr", "mknod", "mknodat", "quotactl", "quotactl_fd", "swapon", "swapoff",
	// files without a path, pages of files in a pipe, and what others do with files
	"open_by_handle_at", "name_to_handle_at", "splice", "tee", "vmsplice",
	"fanotify_init", "fanotify_mark", "inotify_init", "inotify_init1", "inotify_add_watch",
	// the kernel itself
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
	"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "syslog", "acct",
	"iopl", "ioperm", "modify_ldt", "lookup_dcookie", "personality", "vhangup",
	// keys
	"keyctl", "add_key", "request_key",
	// the host's clock and names
	"settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname",
}

// namespaceFlags are those of clone(2) that make namespaces: a user namespace
// holds every capability.
var namespaceFlags = []uint64{
	unix.CLONE_NEWNS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC,
	unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET,
}

// refusedIOCTLs are requests on descriptors that QEMU holds: another MAC for its
// tap, words put into somebody's terminal, and another file, or more of its file,
// for a loop device that is its disk (drivers/block/loop.c, lo_ioctl).
var refusedIOCTLs = []uint32{
	unix.SIOCSIFHWADDR, unix.TIOCSTI, unix.TIOCLINUX,
	unix.LOOP_SET_FD, unix.LOOP_CLR_FD, unix.LOOP_SET_STATUS, unix.LOOP_SET_STATUS64, loopChangeFD,
	unix.LOOP_SET_CAPACITY, unix.LOOP_SET_DIRECT_IO, unix.LOOP_SET_BLOCK_SIZE, unix.LOOP_CONFIGURE,
}

const loopChangeFD = 0x4c06 // linux/loop.h; the unix package lacks it

// serverCalls are for a virtiofsd alone: it unshares its threads' working
// directories, makes the shared directory its root, and makes pipes and sockets
// that the guest makes.
var serverCalls = []string{"unshare", "chroot", "mknod", "mknodat"}

// serverConditions refuse what is left of these beyond that, and a program that
// runs as its owner (S_ISUID): one of root's would be the host's root.
func serverConditions(native *arch.Info) (list []seccomp.NameWithConditions) {
	for _, flag := range namespaceFlags {
		list = append(list, seccomp.NameWithConditions{
			Name: "unshare", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsSet, Value: flag}},
		})
	}
	for _, mode := range []struct {
		name     string
		argument uint32
	}{{"chmod", 1}, {"fchmod", 1}, {"fchmodat", 2}, {"fchmodat2", 2}, {"mknod", 1}, {"mknodat", 2}} {
		if _, ok := native.SyscallNames[mode.name]; ok {
			list = append(list, seccomp.NameWithConditions{
				Name: mode.name, Conditions: seccomp.ArgumentConditions{{Argument: mode.argument, Operation: seccomp.BitsSet, Value: unix.S_ISUID}},
			})
		}
	}
	return append(list, seccomp.NameWithConditions{Name: "openat", Conditions: seccomp.ArgumentConditions{
		{Argument: 2, Operation: seccomp.BitsSet, Value: unix.O_CREAT}, {Argument: 3, Operation: seccomp.BitsSet, Value: unix.S_ISUID},
	}})
}

const (
	refuse  = uint32(seccomp.ActionErrno) | uint32(unix.EPERM)
	missing = uint32(seccomp.ActionErrno) | uint32(unix.ENOSYS)
)

// The fields of struct seccomp_data (linux/seccomp.h), the low word of an
// argument on a little-endian machine.
const (
	dataCall      = 0
	dataArch      = 4
	dataArguments = 16
)

// uringCalls are for disks with io = "io_uring" alone.
var uringCalls = []string{"io_uring_setup", "io_uring_enter", "io_uring_register"}

// filterCalls installs the filter on the calling thread, which has no_new_privs
// (seccomp(2)), with some calls let through that are refused otherwise. Programs of another architecture are killed: their calls have
// other numbers. Calls that are newer than the library's list are missing, as on
// a kernel that is as old.
func filterCalls(allowed ...string) error {
	program, err := callFilter(allowed)
	if err != nil {
		return err
	}
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return nil
}

func callFilter(allowed []string) ([]bpf.Instruction, error) {
	native, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	refused := seccomp.SyscallGroup{Action: seccomp.Action(refuse)}
	for _, name := range refusedCalls {
		if _, ok := native.SyscallNames[name]; ok && !slices.Contains(allowed, name) { // each architecture has its own
			refused.Names = append(refused.Names, name)
		}
	}
	for _, flag := range namespaceFlags {
		refused.NamesWithCondtions = append(refused.NamesWithCondtions, seccomp.NameWithConditions{
			Name: "clone", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsSet, Value: flag}},
		})
	}
	if slices.Contains(allowed, "unshare") {
		refused.NamesWithCondtions = append(refused.NamesWithCondtions, serverConditions(native)...)
	}
	for _, name := range []string{"socket", "socketpair"} {
		refused.NamesWithCondtions = append(refused.NamesWithCondtions, seccomp.NameWithConditions{
			Name: name, Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.NotEqual, Value: unix.AF_UNIX}},
		})
	}
	policy := seccomp.Policy{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{
		refused,
		// Its flags are in memory, where no filter can look; C libraries then use clone.
		{Names: []string{"clone3"}, Action: seccomp.Action(missing)},
	}}
	library, err := policy.Assemble()
	if err != nil {
		return nil, err
	}
	ioctl, newest := native.SyscallNames["ioctl"], slices.Max(slices.Collect(maps.Keys(native.SyscallNumbers)))
	own := []bpf.Instruction{
		// The library lets other architectures pass.
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(native.ID), SkipTrue: 1},
		bpf.RetConstant{Val: uint32(seccomp.ActionKillProcess)},
		bpf.LoadAbsolute{Off: dataCall, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: uint32(newest), SkipTrue: 1},
		bpf.RetConstant{Val: missing},
		// The kernel looks at the low word of an ioctl's request, the library at both.
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(ioctl), SkipTrue: uint8(3 + len(refusedIOCTLs))},
		bpf.LoadAbsolute{Off: dataArguments + 8, Size: 4},
	}
	for i, request := range refusedIOCTLs {
		own = append(own, bpf.JumpIf{Cond: bpf.JumpEqual, Val: request, SkipTrue: uint8(len(refusedIOCTLs) - i)})
	}
	own = append(own, bpf.Jump{Skip: 1}, bpf.RetConstant{Val: refuse})
	return append(own, library...), nil
}
