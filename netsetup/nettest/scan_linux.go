package nettest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is what /proc tells of one.
type process struct {
	pid, parent int
	command     string
	threads     map[uint64]bool // namespaces that its threads are in; true where the main one is
}

func (p process) String() string {
	return fmt.Sprintf("process %d: %s", p.pid, p.command)
}

// namespace is one that was found, and all that was seen to keep it.
type namespace struct {
	paths   []string // any of them opens it, unless its holder has let go
	holders []string
}

// census is the processes of the machine and the network namespaces that they
// and the mounts of this one keep. What vanishes while it is taken is left out.
type census struct {
	processes  map[int]process
	namespaces map[uint64]*namespace
}

func takeCensus() census {
	c := census{processes: make(map[int]process), namespaces: make(map[uint64]*namespace)}
	for _, pid := range numbers("/proc") {
		p, ok := readProcess(pid)
		if !ok {
			continue
		}
		c.processes[pid] = p
		c.addThreads(p)
		c.addDescriptors(p)
	}
	c.addMounts()
	return c
}

func (c *census) add(id uint64, path, holder string) {
	ns := c.namespaces[id]
	if ns == nil {
		ns = &namespace{}
		c.namespaces[id] = ns
	}
	ns.paths = append(ns.paths, path)
	if !slices.Contains(ns.holders, holder) {
		ns.holders = append(ns.holders, holder)
	}
}

func (c *census) addThreads(p process) {
	for _, tid := range numbers(procPath(p.pid, "task")) {
		path := procPath(p.pid, "task", strconv.Itoa(tid), "ns/net")
		if id, ok := linkID(path, "net"); ok {
			p.threads[id] = p.threads[id] || tid == p.pid
			c.add(id, path, p.String())
		}
	}
}

func (c *census) addDescriptors(p process) {
	for _, fd := range numbers(procPath(p.pid, "fd")) {
		path := procPath(p.pid, "fd", strconv.Itoa(fd))
		if id, ok := linkID(path, "net"); ok {
			c.add(id, path, fmt.Sprintf("descriptor %d of %v", fd, p))
		}
	}
}

// addMounts finds what ip netns add leaves: namespaces mounted on files.
func (c *census) addMounts() {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	for _, line := range strings.Split(string(info), "\n") {
		words := strings.Fields(line) // proc_pid_mountinfo(5)
		if len(words) < 5 {
			continue
		}
		if id, ok := parseID(words[3], "net"); ok {
			c.add(id, words[4], "mount "+words[4])
		}
	}
}

// addSockets finds the namespaces that a process keeps by sockets alone. It is
// asked for those processes only that a test has to do with: for a moment it
// holds a copy of each socket.
func (c *census) addSockets(p process) {
	pidfd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(pidfd)
	for _, fd := range numbers(procPath(p.pid, "fd")) {
		if _, ok := linkID(procPath(p.pid, "fd", strconv.Itoa(fd)), "socket"); !ok {
			continue
		}
		if id, ok := socketNamespace(pidfd, fd); ok {
			// It has no path of its own; one found elsewhere will do.
			ns := c.namespaces[id]
			if ns == nil {
				ns = &namespace{}
				c.namespaces[id] = ns
			}
			ns.holders = append(ns.holders, fmt.Sprintf("socket %d of %v", fd, p))
		}
	}
}

func socketNamespace(pidfd, fd int) (id uint64, ok bool) {
	sock, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(sock)
	ns, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(sock), unix.SIOCGSKNS, 0)
	if errno != 0 {
		return 0, false
	}
	defer unix.Close(int(ns))
	var st unix.Stat_t
	if err := unix.Fstat(int(ns), &st); err != nil {
		return 0, false
	}
	return st.Ino, true
}

// enter runs fn in a namespace that was found; false when nothing opens it now.
func (c *census) enter(id uint64, fn func() error) bool {
	for _, path := range c.namespaces[id].paths {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		err = onNamespace(fd, id, fn)
		unix.Close(fd)
		if err == nil {
			return true
		}
	}
	return false
}

func readProcess(pid int) (process, bool) {
	stat, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return process{}, false
	}
	// The name stands in parentheses and may hold any character (proc_pid_stat(5)).
	i := bytes.LastIndexByte(stat, ')')
	rest := strings.Fields(string(stat[i+1:]))
	if i < 0 || len(rest) < 2 || rest[0] == "Z" {
		return process{}, false // a zombie holds nothing any more
	}
	parent, err := strconv.Atoi(rest[1])
	if err != nil {
		return process{}, false
	}
	cmdline, err := os.ReadFile(procPath(pid, "cmdline"))
	if err != nil {
		return process{}, false
	}
	command := strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
	return process{pid: pid, parent: parent, command: command, threads: make(map[uint64]bool)}, true
}

func procPath(pid int, rest ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(pid)}, rest...)...)
}

// numbers lists the entries of a directory that are numbers.
func numbers(dir string) []int {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	var list []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			list = append(list, n)
		}
	}
	return list
}

// linkID returns 4 for a link to "kind:[4]".
func linkID(path, kind string) (uint64, bool) {
	target, err := os.Readlink(path)
	if err != nil {
		return 0, false
	}
	return parseID(target, kind)
}

func parseID(s, kind string) (uint64, bool) {
	s, ok := strings.CutPrefix(s, kind+":[")
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 64)
	return id, err == nil
}
