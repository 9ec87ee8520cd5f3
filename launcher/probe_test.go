package launcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The probe takes QEMU's place in TestConfinement: a copy of this binary under
// this name, which vmrun starts as the guest's QEMU.
const probeName = "probe"

func init() { children[probeName] = probe }

// prey is what the probe is after, in the last of its arguments.
type prey struct {
	Secret   string // a file that everybody may read
	RunDir   string // of all guests
	Disk     string // of another guest
	Socket   string // another guest's control socket
	Abstract string // a socket of the host's without a file
	PID      int    // of another guest's QEMU
	MAC      string // of another guest
	Segment  int    // the host's shared memory

	taps, disks []int // the probe's own descriptors
	kernel      int
	monitor     int // on which its supervisor calls
}

// attempt is something that a QEMU must not be able to do.
type attempt struct {
	what    string
	do      func(prey) error
	refusal []error // the answers that it may get; denied, if none
}

var denied = []error{unix.EPERM, unix.EACCES, unix.ENOSYS}

// probe tries everything and prints a line for each.
func probe() error {
	var p prey
	if err := json.Unmarshal([]byte(os.Args[len(os.Args)-1]), &p); err != nil {
		return err
	}
	for i, arg := range os.Args[:len(os.Args)-1] {
		fd := func() int { n, _ := strconv.Atoi(word(os.Args[i+1], "fd=")); return n }
		switch arg {
		case "-netdev":
			p.taps = append(p.taps, fd())
		case "-add-fd":
			p.disks = append(p.disks, fd())
		case "-kernel":
			p.kernel, _ = strconv.Atoi(filepath.Base(os.Args[i+1]))
		case "-chardev":
			if word(os.Args[i+1], "id=") == "monitor" {
				p.monitor = fd()
			}
		}
	}
	awaitLimits()
	for _, a := range attempts() {
		err := a.do(p)
		if a.refusal == nil {
			a.refusal = denied
		}
		verdict := "DONE"
		if err != nil {
			verdict = "SURPRISE"
		}
		if slices.ContainsFunc(a.refusal, func(want error) bool { return errors.Is(err, want) }) {
			verdict = "refused"
		}
		fmt.Fprintf(os.Stderr, "%-8s %-52s %v\n", verdict, a.what, err)
	}
	return nil
}

// awaitLimits waits for the resource limits, which QEMU gets right after its start
// and before its guest can run.
func awaitLimits() {
	for range 5000 {
		var core unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_CORE, &core) == nil && core.Max == coreLimit {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func word(option, key string) string {
	for _, w := range strings.Split(option, ",") {
		if rest, ok := strings.CutPrefix(w, key); ok {
			return rest
		}
	}
	return ""
}

func attempts() []attempt {
	all := slices.Concat(fileAttempts(), escapeAttempts(), networkAttempts(), processAttempts(), kernelAttempts())
	for c := range unix.CAP_LAST_CAP + 1 {
		all = append(all, attempt{fmt.Sprintf("have capability %d", c), func(prey) error { return raiseCapability(c) }, nil})
	}
	return all
}

var (
	unseen = []error{unix.ENOENT, unix.EACCES}
	sealed = []error{unix.EROFS, unix.EACCES, unix.ENOENT, unix.EPERM}
)

func read(path string) func(prey) error {
	return func(prey) error { _, err := os.ReadFile(path); return err }
}

func list(path string) func(prey) error {
	return func(prey) error { _, err := os.ReadDir(path); return err }
}

func write(path string) func(prey) error {
	return func(prey) error { return os.WriteFile(path, []byte("x"), 0o600) }
}

func fileAttempts() []attempt {
	return []attempt{
		{"read /etc/shadow", read("/etc/shadow"), unseen},
		{"read /etc/passwd", read("/etc/passwd"), unseen},
		{"read a file of the host's that is everybody's", func(p prey) error { return read(p.Secret)(p) }, unseen},
		{"read another guest's disk", func(p prey) error { return read(p.Disk)(p) }, unseen},
		{"list the run directories", func(p prey) error { return list(p.RunDir)(p) }, unseen},
		{"list /root", list("/root"), unseen},
		{"list /home", list("/home"), unseen},
		{"list /usr/bin", list("/usr/bin"), unseen},
		{"list /sys", list("/sys"), unseen},
		{"read the environment of process 1 of the host", read("/proc/1/environ"), unseen},
		{"read the kernel's log", read("/proc/kmsg"), unseen},
		{"read /proc/kallsyms", read("/proc/kallsyms"), unseen},
		{"write a sysctl", write("/proc/sys/kernel/core_pattern"), sealed},
		{"write into its root", write("/x"), sealed},
		{"write into /tmp", write("/tmp/x"), sealed},
		{"write into /dev/shm", write("/dev/shm/x"), sealed},
		{"write into the libraries", write(libraryDir() + "/x"), sealed},
		{"make a directory", func(prey) error { return os.Mkdir("/x", 0o700) }, sealed},
		{"make itself less likely to be killed for memory", write("/proc/self/oom_score_adj"), sealed},
		{"open the disk", func(prey) error { _, err := os.Open("/dev/sda"); return err }, unseen},
		{"open /dev/mem", func(prey) error { _, err := os.Open("/dev/mem"); return err }, unseen},
		{"open /dev/net/tun", func(prey) error { _, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); return err }, unseen},
		{"make a device node", func(prey) error { return unix.Mknod("/dev/mem", unix.S_IFCHR|0o600, 1<<8|1) }, sealed},
		{"open a file by its handle", func(p prey) error {
			_, err := unix.OpenByHandleAt(p.disks[0], unix.NewFileHandle(1, make([]byte, 8)), unix.O_RDONLY)
			return err
		}, nil},
		{"write to an image that is read-only", func(p prey) error { _, err := unix.Write(p.disks[0], []byte("x")); return err }, []error{unix.EBADF}},
		{"open that image again to write", func(p prey) error {
			_, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", p.disks[0]), unix.O_RDWR, 0)
			return err
		}, nil},
		{"open its own image again", func(p prey) error {
			_, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", p.disks[1]), unix.O_RDWR, 0)
			return err
		}, nil},
		{"write to its kernel", func(p prey) error { _, err := unix.Write(p.kernel, []byte("x")); return err }, []error{unix.EBADF}},
		{"open its kernel again to write", func(p prey) error {
			_, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", p.kernel), unix.O_RDWR, 0)
			return err
		}, nil},
		{"make its kernel everybody's", func(p prey) error { return unix.Fchmod(p.kernel, 0o666) }, nil},
		{"give its image to another user", func(p prey) error { return unix.Fchown(p.disks[1], 0, 0) }, nil},
		{"make its image everybody's", func(p prey) error { return unix.Fchmod(p.disks[1], 0o777) }, nil},
		{"change the loop device that its image could be", func(p prey) error {
			return rawErr(unix.SYS_IOCTL, uintptr(p.disks[1]), unix.LOOP_CLR_FD, 0)
		}, nil},
		{"make its image older", func(p prey) error {
			return unix.UtimesNanoAt(p.disks[1], "", []unix.Timespec{{Sec: 1}, {Sec: 1}}, unix.AT_EMPTY_PATH)
		}, nil},
		{"lease its image", func(p prey) error {
			_, err := unix.FcntlInt(uintptr(p.disks[1]), unix.F_SETLEASE, unix.F_WRLCK)
			return err
		}, nil},
		{"watch who uses the libraries", func(prey) error {
			n, err := unix.InotifyInit1(0)
			if err == nil {
				_, err = unix.InotifyAddWatch(n, libraryDir(), unix.IN_OPEN)
			}
			return err
		}, nil},
		{"put a file's pages into a pipe", func(p prey) error {
			var ends [2]int
			if err := unix.Pipe(ends[:]); err != nil {
				return err
			}
			_, err := unix.Splice(p.disks[0], nil, ends[1], nil, 1, 0)
			return err
		}, nil},
	}
}

func libraryDir() string {
	for _, dir := range []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"} {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return "/usr/lib64"
}

func escapeAttempts() []attempt {
	return []attempt{
		{"leave its root by /..", read("/../../../../etc/passwd"), unseen},
		{"leave its root by /proc/self/root", read("/proc/self/root/../etc/passwd"), unseen},
		{"leave its root by its working directory", read("/proc/self/cwd/../etc/passwd"), unseen},
		{"leave its root by the host's process 1", read("/proc/1/root/etc/passwd"), unseen},
		{"leave its root by a descriptor", func(p prey) error {
			for fd := range 64 {
				if f, err := unix.Openat(fd, "..", unix.O_PATH, 0); err == nil {
					unix.Close(f)
					return nil
				}
			}
			return unix.ENOENT
		}, unseen},
		{"chroot", func(prey) error { return unix.Chroot("/proc") }, nil},
		{"mount a tmpfs", func(prey) error { return unix.Mount("x", "/dev", "tmpfs", 0, "") }, nil},
		{"make its root writable", func(prey) error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "") }, nil},
		{"unmount its root", func(prey) error { return unix.Unmount("/", unix.MNT_DETACH) }, nil},
		{"make a file system context", func(prey) error { _, err := unix.Fsopen("tmpfs", 0); return err }, nil},
		{"make a user namespace", func(prey) error { return unix.Unshare(unix.CLONE_NEWUSER) }, nil},
		{"make a mount namespace", func(prey) error { return unix.Unshare(unix.CLONE_NEWNS) }, nil},
		{"clone into a user namespace", func(prey) error {
			pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			if e == 0 && pid == 0 {
				unix.Exit(0)
			}
			return errno(e)
		}, nil},
		{"enter another namespace", func(p prey) error {
			f, err := os.Open("/proc/self/ns/net")
			if err != nil {
				return err
			}
			return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}, nil},
		{"become root", func(prey) error { return rawErr(unix.SYS_SETUID, 0, 0, 0) }, nil},
		{"become another guest's user", func(prey) error { return rawErr(unix.SYS_SETUID, uintptr(os.Getuid()+1), 0, 0) }, nil},
		{"join group 0", func(prey) error { return rawErr(unix.SYS_SETGID, 0, 0, 0) }, nil},
		{"run a shell", func(prey) error { return unix.Exec("/bin/sh", []string{"sh"}, nil) }, unseen},
		{"run a setuid program", func(prey) error { return unix.Exec("/bin/su", []string{"su"}, nil) }, unseen},
	}
}

func errno(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func rawErr(call, a, b, c uintptr) error {
	_, _, e := unix.RawSyscall(call, a, b, c)
	return errno(e)
}

func socket(family, kind, proto int) func(prey) error {
	return func(prey) error { _, err := unix.Socket(family, kind, proto); return err }
}

func networkAttempts() []attempt {
	return []attempt{
		{"open a TCP socket", socket(unix.AF_INET, unix.SOCK_STREAM, 0), nil},
		{"open a UDP socket over IPv6", socket(unix.AF_INET6, unix.SOCK_DGRAM, 0), nil},
		{"open a packet socket", socket(unix.AF_PACKET, unix.SOCK_RAW, 0), nil},
		{"open a netlink socket", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE), nil},
		{"open a vsock to the host", socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0), nil},
		{"open a Bluetooth socket", socket(unix.AF_BLUETOOTH, unix.SOCK_RAW, 0), nil},
		{"open a pair of sockets of another kind", func(prey) error { _, err := unix.Socketpair(unix.AF_TIPC, unix.SOCK_STREAM, 0); return err }, nil},
		{"open the file that its monitor is bound to", func(p prey) error {
			const siocUnixFile = 0x89e0 // unix(7) does not have it: net/unix/af_unix.c, SIOCUNIXFILE
			return rawErr(unix.SYS_IOCTL, uintptr(p.monitor), siocUnixFile, 0)
		}, nil},
		{"connect to the host over TCP", func(prey) error {
			_, err := net.DialTimeout("tcp", "192.0.2.1:22", time.Second)
			return err
		}, nil},
		{"connect to another guest's control socket", func(p prey) error { _, err := net.Dial("unix", p.Socket); return err }, unseen},
		{"connect to a socket of the host's without a file", func(p prey) error { _, err := net.Dial("unix", p.Abstract); return err }, []error{unix.ECONNREFUSED, unix.EPERM}},
		{"take another guest's MAC on its tap", func(p prey) error {
			mac, err := net.ParseMAC(p.MAC)
			if err != nil {
				return err
			}
			var req [40]byte // struct ifreq, netdevice(7)
			req[16] = unix.ARPHRD_ETHER
			copy(req[18:], mac)
			return rawErr(unix.SYS_IOCTL, uintptr(p.taps[0]), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&req)))
		}, nil},
		{"the same with a request of 64 bits", func(p prey) error {
			var req [40]byte
			return rawErr(unix.SYS_IOCTL, uintptr(p.taps[0]), 1<<32|unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&req)))
		}, nil},
		{"put words into a terminal", func(p prey) error { return rawErr(unix.SYS_IOCTL, 0, unix.TIOCSTI, 0) }, nil},
	}
}

// supervisor is a pidfd of who calls on the monitor, or -1 where the kernel gives
// none.
func (p prey) supervisor() (int, error) {
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(p.monitor), Events: unix.POLLIN}}, 5000); err != nil {
		return -1, err
	}
	conn, _, err := unix.Accept(p.monitor)
	if err != nil {
		return -1, err
	}
	defer unix.Close(conn)
	pidfd, err := unix.GetsockoptInt(conn, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) { // before Linux 6.5
		return -1, unix.EPERM
	}
	return pidfd, err
}

func processAttempts() []attempt {
	return []attempt{
		{"signal its supervisor", func(p prey) error {
			pidfd, err := p.supervisor()
			if err == nil {
				err = unix.PidfdSendSignal(pidfd, 0, nil, 0)
			}
			return err
		}, []error{unix.EPERM, unix.EINVAL}},
		{"signal another guest's QEMU", func(p prey) error { return unix.Kill(p.PID, 0) }, []error{unix.ESRCH, unix.EPERM}},
		{"signal anybody", func(prey) error { return unix.Kill(-1, 0) }, []error{unix.ESRCH, unix.EPERM}},
		{"trace another process", func(p prey) error { return unix.PtraceAttach(p.PID) }, nil},
		{"be traced", func(prey) error { return rawErr(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0) }, nil},
		{"read another process's memory", func(p prey) error {
			var b [8]byte
			_, err := unix.ProcessVMReadv(p.PID, []unix.Iovec{{Base: &b[0], Len: 8}}, []unix.RemoteIovec{{Base: 4096, Len: 8}}, 0)
			return err
		}, nil},
		{"hold another process", func(p prey) error { _, err := unix.PidfdOpen(p.PID, 0); return err }, nil},
		{"see another process", func(p prey) error { _, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID)); return err }, unseen},
		{"use the host's shared memory", func(p prey) error { _, err := unix.SysvShmAttach(p.Segment, 0, 0); return err }, []error{unix.EINVAL, unix.EACCES, unix.EIDRM}},
		{"start a process for real time", func(prey) error {
			return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
		}, nil},
		{"become more important", func(prey) error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -20) }, nil},
		{"open more files than it may", func(prey) error {
			return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: maxFiles + 1, Max: maxFiles + 1})
		}, nil},
		{"dump core", func(prey) error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}) }, nil},
	}
}

// installProbe puts the probe where vmrun can start it as a QEMU.
func (b *bench) installProbe() string {
	b.t.Helper()
	path := filepath.Join(b.specs, probeName)
	self, err := os.ReadFile("/proc/self/exe")
	b.must(err)
	b.must(os.WriteFile(path, self, 0o755))
	return path
}
