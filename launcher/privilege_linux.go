package launcher

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vmrun/netsetup"
)

// privilege is a capability (capabilities(7)) that a supervisor needs, and what
// it could not do without.
type privilege struct {
	bit  int
	name string
	why  string
}

// privileges are all that a supervisor holds, in any set and for all its life:
// it may have to begin any of this again when a NIC comes back, or the guest is
// restarted.
var privileges = []privilege{
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "make NICs, their filters and the host's way to them"},
	{unix.CAP_NET_RAW, "CAP_NET_RAW", "learn addresses from a NIC's frames"},
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "make and enter namespaces, mount what QEMU sees"},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "find the namespace of a QEMU that is adopted"},
	{unix.CAP_MKNOD, "CAP_MKNOD", "make the node that a tap is opened by"},
	{unix.CAP_SETUID, "CAP_SETUID", "give QEMU a user of its own"},
	{unix.CAP_SETGID, "CAP_SETGID", "give QEMU a group of its own"},
	{unix.CAP_SETPCAP, "CAP_SETPCAP", "take all capabilities from QEMU for good"},
	{unix.CAP_KILL, "CAP_KILL", "end QEMU, which is another user's process"},
	{unix.CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE", "open images and specs whoever owns them"},
	{unix.CAP_CHOWN, "CAP_CHOWN", "let a group use its guest"},
	{unix.CAP_FOWNER, "CAP_FOWNER", "give it to a virtiofsd, which changes the modes of the guest's users' files"},
	{unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT", "give it to a virtiofsd, which sees nothing but its directory"},
}

// privateUmask keeps what a supervisor and its programs create to root, where
// nothing else is said.
const privateUmask = 0o077

// ShedPrivileges leaves the calling process with the privileges of a supervisor
// and a umask of its own. Where it holds more it begins anew, as the same
// process with the same arguments (execve(2)), and does not return: that alone
// reaches every thread, those of a C library too. So it is to be called before
// anything else.
func ShedPrivileges() error {
	unix.Umask(privateUmask)
	if shed, err := hasShed(privileges); shed || err != nil {
		return err
	}
	return beginAnew(privileges)
}

// hasShed reports whether the calling thread holds no capability but those of
// the list, and can gain none. Whoever holds none at all is no supervisor.
func hasShed(list []privilege) (bool, error) {
	held, err := heldCapabilities()
	if err != nil || held == 0 {
		return true, err
	}
	set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	return err == nil && set == 1 && held&^maskOf(list) == 0, err
}

// beginAnew executes the program that runs with the capabilities of the list. It
// returns only when it could not.
func beginAnew(list []privilege) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never undone: the thread is of no other use
		if err := shedThread(list); err != nil {
			failed <- err
			return
		}
		failed <- &os.PathError{Op: "exec", Path: self, Err: syscall.Exec(self, os.Args, os.Environ())}
	}()
	return <-failed
}

// startShed starts a program with the privileges of a supervisor, in the
// network namespace of the calling thread.
func startShed(cmd *exec.Cmd) error {
	shed, err := hasShed(privileges)
	if err != nil {
		return err
	}
	if shed {
		return cmd.Start()
	}
	ns, err := netsetup.CurrentNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		if err := shedThread(privileges); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// shedThread takes from the calling thread, for good, all capabilities but those of
// the list, and gives it the umask of a supervisor. The thread must be locked,
// and serve for nothing but to execute or start a program, which inherits this.
func shedThread(list []privilege) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // the umask is all threads' otherwise
		return fmt.Errorf("umask: %w", err)
	}
	unix.Umask(privateUmask)
	keep := maskOf(list)
	for c := 0; ; c++ {
		there, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel has no more
		}
		if err == nil && there == 1 && keep&(1<<c) == 0 {
			err = unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("drop ambient capabilities: %w", err)
	}
	held, err := heldCapabilities()
	if err != nil {
		return err
	}
	var sets [2]unix.CapUserData
	for i := range sets {
		sets[i].Permitted = uint32((held & keep) >> (32 * i))
		sets[i].Effective = sets[i].Permitted
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	return nil
}

// keepPrivileges leaves the calling thread as root with the capabilities of the
// list, all of which it has, and without further groups.
func keepPrivileges(list []privilege) error {
	held, err := heldCapabilities()
	if err != nil {
		return err
	}
	for _, p := range list {
		if held&(1<<p.bit) == 0 {
			return fmt.Errorf("vmrun has no %s, to %s: in a unit, see CapabilityBoundingSet=", p.name, p.why)
		}
	}
	return errors.Join(setGroups(nil), shedThread(list))
}

func maskOf(list []privilege) (mask uint64) {
	for _, p := range list {
		mask |= 1 << p.bit
	}
	return mask
}

// heldCapabilities is the calling thread's permitted set.
func heldCapabilities() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return 0, fmt.Errorf("capget: %w", err)
	}
	return uint64(sets[1].Permitted)<<32 | uint64(sets[0].Permitted), nil
}

// kept are the variables that a supervisor keeps of the environment which it is
// started from: what finds programs and the system's bus, and what steers Go's
// runtime. Others may be secrets, of a CI job for example, and a supervisor
// lives for long.
var kept = []string{"PATH", "TZ", "TMPDIR", "DBUS_SYSTEM_BUS_ADDRESS",
	"GODEBUG", "GOTRACEBACK", "GOMAXPROCS", "GOMEMLIMIT", "GOGC", "GORACE", "GOCOVERDIR"}

// A supervisor mostly waits. To do so on one CPU at a time takes a tenth less memory,
// on a host with many CPUs more than that, and it wakes fewer threads.
func keptEnvironment() []string {
	return append([]string{"GOMAXPROCS=1"}, slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return !slices.Contains(kept, name)
	})...)
}
