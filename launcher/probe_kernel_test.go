package launcher

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func kernelAttempts() []attempt {
	call := func(nr uintptr, args ...uintptr) func(prey) error {
		return func(prey) error {
			args := append(args, 0, 0, 0)
			return rawErr(nr, args[0], args[1], args[2])
		}
	}
	name := []byte("x\x00")
	at := uintptr(unsafe.Pointer(&name[0]))
	return []attempt{
		// Where one of these is let through, it does nothing.
		{"make a call that is newer than its filter", call(unix.SYS_OPEN_TREE_ATTR + 1), nil},
		{"make a call as x32 does", call(1<<30 | unix.SYS_GETPID), nil},
		{"make a call as a 32-bit program", legacyCall, nil},
		{"load a module", call(unix.SYS_INIT_MODULE), nil},
		{"load a BPF program", call(unix.SYS_BPF), nil},
		{"count the kernel's events", call(unix.SYS_PERF_EVENT_OPEN), nil},
		{"handle page faults itself", call(unix.SYS_USERFAULTFD), nil},
		{"set up an io_uring", call(unix.SYS_IO_URING_SETUP), nil},
		{"add a key", call(unix.SYS_ADD_KEY), nil},
		{"read its keys", call(unix.SYS_KEYCTL), nil},
		{"set the clock", call(unix.SYS_SETTIMEOFDAY), nil},
		{"set the host's name", call(unix.SYS_SETHOSTNAME, at, 0), nil},
		{"load another kernel", call(unix.SYS_KEXEC_LOAD), nil},
		{"restart the machine", call(unix.SYS_REBOOT), nil},
		{"read the kernel's log by syslog", call(unix.SYS_SYSLOG, 10), nil},
		{"swap", call(unix.SYS_SWAPOFF, at), nil},
		{"account", call(unix.SYS_ACCT), nil},
		{"set quotas", call(unix.SYS_QUOTACTL), nil},
		{"run as another kind of Linux", call(unix.SYS_PERSONALITY, 8), nil},
		{"watch a file system", call(unix.SYS_FANOTIFY_INIT), nil},
	}
}

// legacyCall has a child make a system call through the gate of 32-bit programs.
func legacyCall(prey) error {
	if runtime.GOARCH != "amd64" {
		return unix.ENOSYS
	}
	code, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	copy(code, "\xb8\x14\x00\x00\x00\xcd\x80\xc3") // mov $20, %eax; int $0x80; ret: getpid
	entry := uintptr(unsafe.Pointer(&code[0]))
	function := &entry       // of what a func is a pointer to, the first word is where its code is
	var byDefault [4]uintptr // a struct sigaction of the kernel's
	pid, _, e := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	if e == 0 && pid == 0 {
		// Without such a gate in the kernel it is a fault, which is not Go's to explain.
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGSEGV), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
		(*(*func())(unsafe.Pointer(&function)))()
		unix.Exit(0)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil {
		return err
	}
	if status.Signaled() && (status.Signal() == unix.SIGSYS || status.Signal() == unix.SIGSEGV) {
		return unix.EPERM
	}
	return errno(e)
}

func raiseCapability(c int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	data[c/32].Permitted, data[c/32].Effective = 1<<(c%32), 1<<(c%32)
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	return nil
}
