package launcher

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Wall is one of the things that keep a guest's QEMU in its place, as the kernel
// has it now.
type Wall struct {
	Name   string `json:"name"`
	Stands bool   `json:"stands"`
	Text   string `json:"text"` // what was found
}

// Security looks at the QEMU of a guest as the kernel shows it (proc(5)), not at
// what its spec asks for; landlock alone cannot be seen from outside and is the
// spec's word. It is for root. The error is ErrNotFound, ErrState for a guest
// that has ended, or the kernel's.
func Security(base, name string) ([]Wall, error) {
	dir := guestDir(base, name)
	rec, err := dir.readRecord()
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, named(name, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	case rec.Ended != nil || !rec.alive():
		return nil, fmt.Errorf("%s: %w: it has ended", name, ErrState)
	}
	walls, err := inspect(rec)
	if err == nil && !rec.alive() {
		err = fmt.Errorf("%w: it has just ended", ErrState)
	}
	if err != nil {
		return nil, named(name, err)
	}
	return walls, nil
}

func inspect(rec *record) ([]Wall, error) {
	p := procDir(rec.QEMU.PID)
	status, err := p.fields("status")
	if err != nil {
		return nil, err
	}
	var walls []Wall
	add := func(name string, stands bool, format string, args ...any) {
		walls = append(walls, Wall{name, stands, fmt.Sprintf(format, args...)})
	}
	users := slices.Compact(strings.Fields(status["Uid"]))
	add("user", !slices.Contains(users, "0") && len(users) == 1, "runs as user %s, group %s, in groups %s",
		strings.Join(users, ", "), strings.Join(slices.Compact(strings.Fields(status["Gid"])), ", "), orNone(status["Groups"]))
	held := ""
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if strings.Trim(status[set], "0") != "" {
			held += " " + set + "=" + status[set]
		}
	}
	add("capabilities", held == "", "held in any of the five sets: %s", orNone(held))
	add("no_new_privs", status["NoNewPrivs"] == "1", "no program that it starts could have more privileges")
	add("seccomp", status["Seccomp"] == "2", "filters of system calls: %s", orNone(status["Seccomp_filters"]))
	for _, ns := range []struct{ file, name, of string }{
		{"net", "network", "it sees no link but the guest's NICs"},
		{"mnt", "mounts", "the host's mounts are not there"},
		{"pid", "processes", "it sees no process but itself"},
		{"ipc", "ipc", "it sees none of the host's shared memory and queues"},
	} {
		own, err := p.differs("ns/" + ns.file)
		if err != nil {
			return nil, err
		}
		text := "the host's namespace"
		if own {
			text = "a namespace of its own: " + ns.of
		}
		add(ns.name, own, "%s", text)
	}
	mounts, err := p.mounts()
	if err != nil {
		return nil, err
	}
	var writable []string
	for _, m := range mounts {
		if !m.readOnly {
			writable = append(writable, m.path)
		}
	}
	add("root", len(writable) == 0 && len(mounts) < 64, "%d mounts; that can be written to: %s", len(mounts), orNone(strings.Join(writable, " ")))
	add("landlock", rec.Guest.Confine.Landlock && landlockABI() > 0, "a second fence around files, TCP and signals, asked for: %t; this kernel's version: %d", rec.Guest.Confine.Landlock, landlockABI())
	limits, err := p.limits()
	if err != nil {
		return nil, err
	}
	core, err := strconv.Atoi(limits["Max core file size"])
	add("rlimits", err == nil && core <= coreLimit && limits["Max open files"] != "unlimited", "bytes of a core file %s, files %s, threads %s",
		limits["Max core file size"], limits["Max open files"], limits["Max processes"])
	directories, count, err := p.descriptors()
	if err != nil {
		return nil, err
	}
	add("descriptors", len(directories) == 0, "%d are open; of directories: %s", count, orNone(strings.Join(directories, " ")))
	for _, c := range rec.Companions {
		if !c.Ended {
			walls = append(walls, inspectCompanion(c))
		}
	}
	return walls, nil
}

// inspectCompanion looks at a process beside QEMU, all of whose walls are one here.
func inspectCompanion(c companionRecord) Wall {
	p := procDir(c.Process.PID)
	status, err := p.fields("status")
	if err != nil {
		return Wall{c.Name, false, "its process has ended"}
	}
	held, err := strconv.ParseUint(status["CapEff"], 16, 64)
	stands := err == nil && held&^maskOf(shareKept) == 0 && status["NoNewPrivs"] == "1" && status["Seccomp"] == "2"
	shared := ""
	for _, ns := range []string{"net", "mnt", "pid", "ipc"} {
		if own, err := p.differs("ns/" + ns); err != nil || !own {
			shared += " " + ns
		}
	}
	user, _, _ := strings.Cut(status["Uid"], "\t")
	return Wall{c.Name, stands && shared == "", fmt.Sprintf("a process of its own (pid %d), user %s, capabilities %s; filters of system calls: %s; namespaces of the host's: %s",
		c.Process.PID, user, status["CapEff"], orNone(status["Seccomp_filters"]), orNone(shared))}
}

func orNone(text string) string {
	if strings.TrimSpace(text) == "" {
		return "none"
	}
	return strings.TrimSpace(text)
}

// procDir is a process's directory in /proc.
type procDir int

func (p procDir) path(file string) string { return fmt.Sprintf("/proc/%d/%s", int(p), file) }

// fields reads a file of lines "Key: value".
func (p procDir) fields(file string) (map[string]string, error) {
	data, err := os.ReadFile(p.path(file))
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			fields[key] = strings.TrimSpace(value)
		}
	}
	return fields, nil
}

// differs reports whether a link of the process leads elsewhere than the host's,
// which is the caller's.
func (p procDir) differs(link string) (bool, error) {
	its, err := os.Readlink(p.path(link))
	if err != nil {
		return false, err
	}
	ours, err := os.Readlink("/proc/self/" + link)
	return its != ours, err
}

// thread is one of the process's threads that lives: the first may have ended
// alone, and has no files and no namespaces any more.
func (p procDir) thread() procDir {
	thread, _ := p.living()
	return thread
}

// living is thread with its mount namespace, "" where none lives.
func (p procDir) living() (thread procDir, space string) {
	if space, err := os.Readlink(p.path("ns/mnt")); err == nil {
		return p, space
	}
	entries, _ := os.ReadDir(p.path("task"))
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if space, err := os.Readlink(procDir(id).path("ns/mnt")); err == nil {
			return procDir(id), space
		}
	}
	return p, ""
}

type mount struct {
	path     string
	source   string
	readOnly bool
}

// mountEscapes undoes what the kernel does to names (fs/proc_namespace.c, mangle).
var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\043`, "#", `\134`, `\`)

// mounts reads the process's mountinfo (proc(5)): field 5 is the path, 6 the
// options of the mount itself, and the source the second after a hyphen.
func (p procDir) mounts() ([]mount, error) {
	data, err := os.ReadFile(p.path("mountinfo"))
	return parseMounts(data), err
}

func parseMounts(data []byte) (list []mount) {
	for line := range strings.Lines(string(data)) {
		place, kind, _ := strings.Cut(line, " - ")
		fields, words := strings.Fields(place), strings.Fields(kind)
		if len(fields) > 5 && len(words) > 1 {
			list = append(list, mount{fields[4], mountEscapes.Replace(words[1]), slices.Contains(strings.Split(fields[5], ","), "ro")})
		}
	}
	return list
}

// limits reads the process's hard limits by their names; the columns have fixed
// widths (fs/proc/base.c, proc_pid_limits).
func (p procDir) limits() (map[string]string, error) {
	data, err := os.ReadFile(p.path("limits"))
	if err != nil {
		return nil, err
	}
	limits := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if line := lines.Text(); len(line) > 47 {
			if words := strings.Fields(line[46:]); len(words) > 0 {
				limits[strings.TrimSpace(line[:26])] = words[0]
			}
		}
	}
	return limits, nil
}

// descriptors counts what the process has open, and names the directories.
func (p procDir) descriptors() (directories []string, count int, err error) {
	entries, err := os.ReadDir(p.path("fd"))
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		path := p.path("fd/" + e.Name())
		var st unix.Stat_t
		if _, err := strconv.Atoi(e.Name()); err == nil && unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			target, _ := os.Readlink(path)
			directories = append(directories, target)
		}
	}
	return directories, len(entries), nil
}
