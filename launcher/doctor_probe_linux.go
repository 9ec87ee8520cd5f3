package launcher

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
)

// room is what a file system has left.
type room struct{ free, total uint64 } // bytes; 0 of 0 for unknown

// roomAt looks at the file system that holds a path, or will.
func roomAt(path string) room {
	var st unix.Statfs_t
	for unix.Statfs(path, &st) != nil {
		if path == filepath.Dir(path) {
			return room{}
		}
		path = filepath.Dir(path)
	}
	return room{free: st.Bavail * uint64(st.Bsize), total: st.Blocks * uint64(st.Bsize)}
}

// full reports whether less than 1/20 is left, and less than enough bytes.
func (r room) full(enough uint64) bool { return r.total > 0 && r.free < min(enough, r.total/20) }

func (r room) String() string {
	return fmt.Sprintf("%d MiB of %d MiB", r.free>>20, r.total>>20)
}

// pids are those of all processes.
func pids() []int {
	entries, _ := os.ReadDir("/proc")
	var list []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			list = append(list, pid)
		}
	}
	return list
}

// who names a process for a person.
func who(pid int) string {
	return fmt.Sprintf("pid %d (%s)", pid, readWord(fmt.Sprintf("/proc/%d/comm", pid)))
}

// holders are the processes that have a file open that matches, whatever it is called.
func holders(match func(os.FileInfo) bool) []int {
	var found []int
	for _, pid := range pids() {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, _ := os.ReadDir(dir)
		if slices.ContainsFunc(entries, func(e os.DirEntry) bool {
			info, err := os.Stat(filepath.Join(dir, e.Name()))
			return err == nil && match(info)
		}) {
			found = append(found, pid)
		}
	}
	return found
}

// deviceNumber reads the "246:1" of sysfs, 0 for what is none.
func deviceNumber(text string) uint64 {
	var major, minor uint32
	if _, err := fmt.Sscanf(text, "%d:%d", &major, &minor); err != nil {
		return 0
	}
	return unix.Mkdev(major, minor)
}

func deviceOpen(number uint64) bool {
	return len(holders(func(info os.FileInfo) bool {
		st, ok := info.Sys().(*syscall.Stat_t)
		return ok && info.Mode()&os.ModeCharDevice != 0 && st.Rdev == number
	})) > 0
}

// macHolder is the process in whose network namespace a child of the link with
// this index has the MAC, or 0. The calling thread's own namespace is left out.
func macHolder(mac string, parent int) (pid int, link string) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return 0, ""
	}
	defer home.Close()
	seen := map[string]bool{}
	if own, err := os.Readlink("/proc/thread-self/ns/net"); err == nil {
		seen[own] = true
	}
	for _, pid := range pids() {
		id, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil || seen[id] {
			continue
		}
		seen[id] = true
		if name := childWith(pid, mac, home, parent); name != "" {
			return pid, name
		}
	}
	return 0, ""
}

// childWith is the name of a child, in the network namespace of a process, with this
// MAC and a parent in the namespace home: others have links of the same index.
func childWith(pid int, mac string, home *os.File, parent int) string {
	ns, err := netsetup.NamespaceOf(pid)
	if err != nil {
		return ""
	}
	defer ns.Close()
	var id int
	err = ns.Do(func() (err error) {
		id, err = netlink.GetNetNsIdByFd(int(home.Fd()))
		return err
	})
	if err != nil {
		return ""
	}
	links, _ := ns.Links()
	for _, l := range links {
		if a := l.Attrs(); a.HardwareAddr.String() == mac && a.ParentIndex == parent && a.NetNsID == id {
			return a.Name
		}
	}
	return ""
}

// availableMemory is how much a new process can have before the host is in
// distress, in bytes (proc_meminfo(5), MemAvailable).
func availableMemory() uint64 {
	for line := range strings.Lines(readWord("/proc/meminfo")) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return math.MaxUint64
}

// groupMemory is what the memory controller says of a process's control group:
// how often something in it was killed for want of memory, and how much it may
// have, itself or by those around it.
type groupMemory struct {
	path  string // its directory; "" for unknown
	kills uint64
	limit uint64 // bytes; math.MaxUint64 for none
}

func memoryOf(pid int) groupMemory {
	m := groupMemory{limit: math.MaxUint64}
	file := killsFile(pid)
	if file == "" {
		return m
	}
	m.path = filepath.Dir(file)
	m.kills = readNumber(m.path, filepath.Base(file), "oom_kill")
	for dir := m.path; len(dir) > 1; dir = filepath.Dir(dir) {
		if limit := memoryLimit(dir); limit != 0 {
			m.limit = min(m.limit, limit)
		}
	}
	return m
}

// stopTimeout is how long systemd waits for a unit to stop. It is an error where
// there is no systemd, or no such unit.
func stopTimeout(ctx context.Context, unit string) (time.Duration, error) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return 0, fmt.Errorf("systemd: %w", err)
	}
	defer conn.Close()
	loaded, err := conn.GetUnitPropertyContext(ctx, unit, "LoadState")
	if err != nil {
		return 0, fmt.Errorf("systemd: %s: %w", unit, err)
	}
	if state, _ := loaded.Value.Value().(string); state != "loaded" {
		return 0, fmt.Errorf("systemd: %s: %s", unit, state)
	}
	timeout, err := conn.GetUnitTypePropertyContext(ctx, unit, "Service", "TimeoutStopUSec")
	if err != nil {
		return 0, fmt.Errorf("systemd: %s: %w", unit, err)
	}
	usec, _ := timeout.Value.Value().(uint64)
	return time.Duration(min(usec, math.MaxInt64/1000)) * time.Microsecond, nil
}

// unitOf is the unit that a guest's supervisor is the main process of, or would
// be by the name of its spec.
func unitOf(g *configs.Guest, supervisor int) string {
	for line := range strings.Lines(readWord(fmt.Sprintf("/proc/%d/cgroup", supervisor))) {
		if name := filepath.Base(strings.TrimSuffix(strings.TrimSpace(line), "/"+supervisorGroup)); strings.HasSuffix(name, ".service") {
			return name
		}
	}
	return UnitOf(g.Name)
}

// waiting is how many clients of the calling thread's network namespace have
// connected to a socket and are not served: of such a connection the server's
// end exists, without an inode (net/unix/af_unix.c, unix_seq_show).
func waiting(path string) int {
	n := 0
	for line := range strings.Lines(readWord("/proc/thread-self/net/unix")) {
		fields := strings.Fields(line) // Num RefCount Protocol Flags Type St Inode Path
		if len(fields) == 8 && fields[6] == "0" && fields[7] == path {
			n++
		}
	}
	return n
}
