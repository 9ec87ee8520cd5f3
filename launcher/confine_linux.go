package launcher

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
)

// walls are what stands around a guest's QEMU, or around one of its companions.
type walls struct {
	configs.Confine
	uid     int
	groups  []int
	mount   string   // a directory to build the root on; nothing of it is seen
	name    string   // of a companion, or "" for QEMU
	shown   []string // the files and directories that QEMU loads, read-only
	devices []string // the device nodes that it opens itself

	reopened []*os.File // the files it is given that it opens anew, by their numbers

	threads int      // at most, as RLIMIT_NPROC
	calls   []string // system calls that are refused otherwise
	files   uint64   // at most, as RLIMIT_NOFILE

	affinity configs.CPUSet // of all threads to begin with; "" for all CPUs

	own  ownDir      // of a companion: all that it may change
	caps []privilege // of a companion that is root: what it keeps
}

// start starts a program between the walls, in the network namespace ns. Its
// resource limits follow an instant later, before there is a guest in it.
func (w *walls) start(ns *netsetup.Namespace, program string, args []string, files []*os.File) (child *os.Process, err error) {
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		return nil, err
	}
	err = ns.Do(func() error {
		if err := w.raise(); err != nil {
			return err
		}
		if child, err = startProcess(real, args, files); err != nil {
			return err
		}
		if err := w.limit(child.Pid); err != nil {
			child.Kill()
			child.Wait()
			return err
		}
		return nil
	})
	return child, err
}

// raise puts the walls around the calling thread for good. The thread must be
// locked and thrown away; a process that it starts inherits all of this, and
// lives in the namespaces made here.
func (w *walls) raise() error {
	runtime.LockOSThread() // never undone
	if err := setAffinity(0, w.affinity); err != nil {
		return fmt.Errorf("emulator_affinity: %w", err)
	}
	if w.Namespaces {
		if err := ownNamespaces(); err != nil {
			return err
		}
	}
	parts, err := openParts(w.shown, w.devices, w.own)
	if err != nil {
		return err
	}
	defer closeParts(parts) // as they are now
	if w.Root {
		source := rootName(w.mount) // the mark of QEMU
		if w.name != "" {
			source += "/" + w.name
		}
		if err := enterRoot(w.mount, source, parts, w.caps != nil); err != nil {
			return fmt.Errorf("a root of its own for QEMU: %w: confine.root = false does without", err)
		}
	}
	credentials := func() error { return setGroups([]int{w.uid}) } // the mark of its slot, for uidInUse
	switch {
	case w.caps != nil:
		credentials = func() error { return keepPrivileges(w.caps) }
	case w.User:
		credentials = func() error { return dropPrivileges(w.uid, w.groups) }
	}
	if err := credentials(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil { // the filters below ask for it
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if w.Landlock {
		if w.caps != nil {
			parts = append(parts, part{real: "/" + stagedProc, dir: true})
		}
		for _, f := range w.reopened {
			parts = append(parts, part{real: fmt.Sprintf("/proc/self/fd/%d", f.Fd()), image: true})
		}
		if err := landlock(parts); err != nil {
			return fmt.Errorf("landlock: %w: confine.landlock = false does without", err)
		}
	}
	if w.Seccomp {
		if err := filterCalls(w.calls...); err != nil {
			return fmt.Errorf("seccomp: %w: confine.seccomp = false does without", err)
		}
	}
	return nil
}

// ownNamespaces gives the processes that the thread starts System V and POSIX
// queues, and process numbers, of their own.
func ownNamespaces() error {
	// os.StartProcess tries out pidfds by a child when it is first called, which
	// would be the only first process that the new namespace can have.
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Release()
	}
	if err := unix.Unshare(unix.CLONE_NEWIPC | unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("namespaces of its own for QEMU: %w: confine.namespaces = false does without", err)
	}
	return nil
}

// dropPrivileges makes the calling thread the user uid in the group uid and the
// given others, without a capability in any set.
//
// The system calls are made raw, because the syscall package would apply the
// credentials to all threads of the process.
func dropPrivileges(uid int, groups []int) error {
	for c := 0; c <= unix.CAP_LAST_CAP+8; c++ {
		// Without this a setuid change leaves the bounding set full. EINVAL ends
		// the list of the kernel that runs.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			if c > unix.CAP_LAST_CAP {
				break
			}
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	if err := setIDs(uid, groups); err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

func setIDs(uid int, groups []int) error {
	if err := setGroups(groups); err != nil {
		return err
	}
	id := uintptr(uid)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, id, id, id); e != 0 {
		return fmt.Errorf("setresgid %d: %w", uid, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id); e != 0 {
		return fmt.Errorf("setresuid %d: %w", uid, e)
	}
	return nil
}

func setGroups(groups []int) error {
	list := make([]uint32, len(groups)+1)
	for i, g := range groups {
		list[i] = uint32(g)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0])), 0); e != 0 {
		return fmt.Errorf("setgroups: %w", e)
	}
	return nil
}

// coreLimit is the limit of core files, in bytes: there are none then.
const coreLimit = 1

// maxFiles is how many descriptors a QEMU may have: eight queues with vhost on
// each of its NICs, and hundreds for disks and chardevs.
const maxFiles = 2048

// limit lowers the resource limits (setrlimit(2)), hard and soft, of a process that
// this thread has just started. The thread's own are the whole supervisor's. It
// has the process's uid, so it needs no capability for that (prlimit(2)).
func (w *walls) limit(pid int) error {
	if !w.RLimits {
		return nil
	}
	for _, l := range []struct {
		resource int
		value    uint64
	}{
		{unix.RLIMIT_MSGQUEUE, 0},
		{unix.RLIMIT_NICE, 0},
		{unix.RLIMIT_NOFILE, w.files},
		{unix.RLIMIT_NPROC, uint64(w.threads)},
		{unix.RLIMIT_RTPRIO, 0},
		// A core would hold the guest's memory. A limit of 0 would keep none from a
		// program in kernel.core_pattern, as one of 1 does (fs/coredump.c).
		{unix.RLIMIT_CORE, coreLimit},
	} {
		var old unix.Rlimit
		err := unix.Prlimit(pid, l.resource, nil, &old)
		if err == nil {
			value := min(l.value, old.Max)
			err = unix.Prlimit(pid, l.resource, &unix.Rlimit{Cur: value, Max: value}, nil)
		}
		if err != nil {
			return fmt.Errorf("limit %d of QEMU: %w", l.resource, err)
		}
	}
	return nil
}

// blockThreads is QEMU's pool for disks (util/thread-pool.c, max_threads), and
// otherThreads those that it has besides that and its CPUs, generously.
const (
	blockThreads = 64
	otherThreads = 192
)

// newWalls are those that a plan asks for.
func newWalls(p *Plan, mount string) *walls {
	w := &walls{
		Confine: p.Guest.Confine,
		uid:     p.UID,
		groups:  p.Groups,
		mount:   mount,
		shown:   loadedBy(p.QEMU),
		files:   maxFiles,

		affinity: p.Guest.EmulatorAffinity,

		devices: []string{"/dev/null", "/dev/urandom"}, // without the first QEMU locks no image (util/osdep.c, qemu_probe_lock_ops)
		threads: p.Guest.CPUs + blockThreads*max(1, len(p.Guest.Disks)) + otherThreads,
	}
	if slices.ContainsFunc(p.Guest.Disks, func(d configs.Disk) bool { return d.IO == configs.IOUring }) {
		w.calls = uringCalls
	}
	if p.Accel == configs.AccelKVM {
		w.devices = append(w.devices, kvmDevice)
	}
	return w
}

// openings names the walls that a spec leaves out, for a warning.
func openings(c configs.Confine) []string {
	var out []string
	for _, wall := range []struct {
		stands bool
		text   string
	}{
		{c.User, "confine.user = false: QEMU runs as root, with its supervisor's capabilities"},
		{c.Seccomp, "confine.seccomp = false: QEMU may make any system call"},
		{c.Root, "confine.root = false: QEMU sees the host's files"},
		{c.Namespaces, "confine.namespaces = false: QEMU sees the host's processes and shared memory"},
		{c.Landlock, "confine.landlock = false: QEMU's access to files is limited by its root and uid alone"},
		{c.RLimits, "confine.rlimits = false: QEMU may open files, start threads and dump core without limit"},
	} {
		if !wall.stands {
			out = append(out, wall.text+": for debugging only")
		}
	}
	return out
}
