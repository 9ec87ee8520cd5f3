package nettest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/netsetup/nettest/wire"
)

// settleTime is how long Check waits for the kernel: a namespace ends up to
// 80 ms after its last holder, a process when it is reaped.
const settleTime = 3 * time.Second

// Snapshot is the state of a lab that a test wants to find again at its end. The
// package's documentation says what belongs to it.
type Snapshot struct {
	lab    *Lab
	tags   []string
	before state
}

// state maps each thing found to what more is known of it. Only the keys count.
type state struct {
	links map[string]string // must be the same
	kept  map[string]string // must not become more
}

// Snapshot records the lab as it is now. A tag is a text that marks processes of
// the test by their command line, such as a run directory.
func (l *Lab) Snapshot(t testing.TB, tags ...string) *Snapshot {
	t.Helper()
	s := &Snapshot{lab: l, tags: tags}
	// Two looks that agree: the kernel may not be done with a NIC's addresses.
	for end := time.Now().Add(settleTime); ; {
		now, err := s.state()
		if err != nil {
			t.Fatalf("lab: snapshot: %v", err)
		}
		settled := maps.Equal(now.links, s.before.links)
		s.before = now
		if settled || time.Now().After(end) {
			return s
		}
	}
}

// Check fails the test when something is left after three seconds that was not
// there at the snapshot, or a link of the lab or its settings are not as they were.
func (s *Snapshot) Check(t testing.TB) {
	t.Helper()
	if diff := s.Wait(settleTime); diff != "" {
		t.Errorf("lab: left behind (+) or lost (-):\n%s", diff)
	}
}

// Wait returns "" as soon as all is as it was, or after limit what is not. What
// comes only meanwhile is not the test's, which is over: others are at work on the
// machine, and their taps have names that all can see.
func (s *Snapshot) Wait(limit time.Duration) string {
	var left map[string]string
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		now, err := s.state()
		if err == nil {
			diff := s.before.diff(now)
			if left == nil {
				left = diff
			}
			maps.DeleteFunc(left, func(key, _ string) bool { _, still := diff[key]; return !still })
			if len(left) == 0 {
				return ""
			}
		}
		if time.Now().After(end) {
			var text strings.Builder
			for _, key := range slices.Sorted(maps.Keys(left)) {
				text.WriteString(left[key])
			}
			if err != nil {
				text.WriteString(err.Error())
			}
			return text.String()
		}
	}
}

// diff says what is lost and what is left, each under a key of its own.
func (before state) diff(now state) map[string]string {
	out := map[string]string{}
	missing := func(sign string, from, in map[string]string) {
		for key, detail := range from {
			if _, ok := in[key]; ok {
				continue
			}
			text := fmt.Sprintf("%s %s\n", sign, key)
			if detail != "" {
				text += fmt.Sprintf("    %s\n", strings.ReplaceAll(detail, "\n", "\n    "))
			}
			out[sign+key] = text
		}
	}
	missing("-", before.links, now.links)
	missing("+", now.links, before.links)
	missing("+", now.kept, before.kept)
	return out
}

// survey is one look at the machine on behalf of a lab.
type survey struct {
	census
	own      map[uint64]string // the lab's namespaces, by machine
	fds      map[uint64]int    // descriptors of them
	children map[uint64][]child
	nodes    map[string]os.FileInfo // /dev/tapN, as they were before the look
	macvtaps map[int]bool           // ifindexes, in all namespaces
}

// child is a macvlan or macvtap on a link of the lab, found in a namespace.
type child struct {
	name, mac, kind string
	machine         string // that has the parent
	parent          int    // ifindex there
}

// survey finds the lab's children in every namespace that can be entered.
func (l *Lab) survey() (*survey, error) {
	v := &survey{
		own: make(map[uint64]string), fds: make(map[uint64]int),
		children: make(map[uint64][]child), macvtaps: make(map[int]bool), nodes: tapNodes(),
	}
	defer v.close()
	for name, m := range l.machines {
		id, err := m.Namespace.ID()
		if err != nil {
			return nil, err
		}
		v.own[id] = name
		if v.fds[id], err = m.open(); err != nil {
			return nil, err
		}
	}
	v.census = takeCensus()
	for id := range v.namespaces {
		v.enter(id, func() error { return v.look(id) })
	}
	return v, nil
}

func (v *survey) close() {
	for _, fd := range v.fds {
		unix.Close(fd)
	}
}

// look notes the children in the namespace of the calling thread.
func (v *survey) look(id uint64) error {
	links, err := wire.Dump(netlink.LinkList)
	if err != nil {
		return err
	}
	parents := make(map[int]string) // machine by the number that its namespace has here
	for own, fd := range v.fds {
		if nsid, err := netlink.GetNetNsIdByFd(fd); err == nil && nsid >= 0 {
			parents[nsid] = v.own[own]
		}
	}
	var found []child
	for _, link := range links {
		attrs := link.Attrs()
		if link.Type() != "macvlan" && link.Type() != "macvtap" {
			continue
		}
		if link.Type() == "macvtap" {
			v.macvtaps[attrs.Index] = true
		}
		machine, ok := parents[attrs.NetNsID]
		if attrs.NetNsID < 0 {
			machine, ok = v.own[id]
		}
		if ok {
			found = append(found, child{attrs.Name, attrs.HardwareAddr.String(), link.Type(), machine, attrs.ParentIndex})
		}
	}
	if len(found) > 0 {
		v.children[id] = found
	}
	return nil
}

// inhabitants are the processes, without this one, that live in the lab or with
// a child of it: with their main thread, as another thread may be one of another
// test's that looks for its own.
func (v *survey) inhabitants() map[int]string {
	in := make(map[int]string)
	for pid, p := range v.processes {
		for id, main := range p.threads {
			if pid == os.Getpid() || !main {
				continue
			}
			if machine, ok := v.own[id]; ok {
				in[pid] = "lives on " + machine
			}
			if list, ok := v.children[id]; ok {
				in[pid] = "lives with " + list[0].name
			}
		}
	}
	return in
}

// ours are the processes, without this one, that a snapshot answers for.
func (v *survey) ours(tags []string) map[int]string {
	ours := make(map[int]string)
	for pid, p := range v.processes {
		for up := p.parent; up > 1; up = v.processes[up].parent {
			if up == os.Getpid() {
				ours[pid] = "descends from the test"
			}
		}
		for _, tag := range tags {
			if pid != os.Getpid() && strings.Contains(p.command, tag) {
				ours[pid] = "has " + tag
			}
		}
	}
	maps.Copy(ours, v.inhabitants()) // which says most
	return ours
}

func (s *Snapshot) state() (state, error) {
	st := state{links: make(map[string]string), kept: make(map[string]string)}
	v, err := s.lab.survey()
	if err != nil {
		return st, err
	}
	ours := v.ours(s.tags)
	for pid, why := range ours {
		st.kept[v.processes[pid].String()] = why
	}
	s.addNamespaces(st, v, ours)
	for id, list := range v.children {
		for _, c := range list {
			st.kept[fmt.Sprintf("%s %s (%s) on link %d of %s, in namespace %d", c.kind, c.name, c.mac, c.parent, c.machine, id)] =
				holders(v.namespaces[id])
		}
	}
	for name, m := range s.lab.machines {
		if err := s.addSettings(st, name, m); err != nil {
			return st, err
		}
	}
	addTapNodes(st, v)
	// Only what has no visible child is asked: with one the answer is known.
	if len(v.children) == 0 {
		for nic := range s.lab.nics {
			if err := s.addHidden(st, nic); err != nil {
				return st, err
			}
		}
	}
	return st, nil
}

func holders(ns *namespace) string {
	list := slices.Clone(ns.holders)
	slices.Sort(list)
	return "kept by " + strings.Join(list, "\nkept by ")
}

// addNamespaces notes what this process and ours keep beside the lab's.
func (s *Snapshot) addNamespaces(st state, v *survey, ours map[int]string) {
	self := v.processes[os.Getpid()]
	v.addSockets(self)
	prefixes := []string{self.String()}
	for pid := range ours {
		v.addSockets(v.processes[pid])
		prefixes = append(prefixes, v.processes[pid].String())
	}
	home, _ := linkID("/proc/self/ns/net", "net")
	for id, ns := range v.namespaces {
		if _, ok := v.own[id]; ok || id == home {
			continue
		}
		held := slices.ContainsFunc(ns.holders, func(h string) bool {
			return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasSuffix(h, p) })
		})
		if held {
			st.kept[fmt.Sprintf("namespace %d", id)] = holders(ns)
		}
	}
}

// tapNodes are the nodes that macvtaps have, or may have.
func tapNodes() map[string]os.FileInfo {
	nodes := make(map[string]os.FileInfo)
	paths, _ := filepath.Glob("/dev/tap[0-9]*")
	for _, path := range paths {
		if info, err := os.Lstat(path); err == nil {
			nodes[path] = info
		}
	}
	return nodes
}

// addTapNodes notes nodes of macvtap that are none (a shell's redirection makes
// a file) or whose link is nowhere. A name is soon another guest's, and then another
// node: one that came while the namespaces were looked at is not judged.
func addTapNodes(st state, v *survey) {
	now := tapNodes()
	for path, info := range v.nodes {
		index, err := strconv.Atoi(strings.TrimPrefix(path, "/dev/tap"))
		if err != nil || now[path] == nil || !os.SameFile(info, now[path]) {
			continue
		}
		switch {
		case info.Mode()&os.ModeCharDevice == 0:
			st.kept[path+" is no character device"] = ""
		case !v.macvtaps[index]:
			inode := info.Sys().(*syscall.Stat_t).Ino
			st.kept[fmt.Sprintf("%s (inode %d) belongs to no macvtap", path, inode)] = ""
		}
	}
}

const probe = "leakprobe"

// addHidden asks the kernel whether a NIC of the host has children, wherever
// they are: a passthru child suffers no siblings (drivers/net/macvlan.c,
// macvlan_common_newlink). The probe is never set up, and so does nothing.
func (s *Snapshot) addHidden(st state, nic string) error {
	return s.lab.Host.Do(func() error {
		parent, err := netlink.LinkByName(nic)
		if err != nil {
			return nil // gone, which addSettings reports
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = probe, parent.Attrs().Index
		link := &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_PASSTHRU}
		switch err := netlink.LinkAdd(link); {
		case errors.Is(err, unix.EINVAL):
			st.kept["a child of "+nic+" in a namespace that nobody can enter"] = "kept by a socket, perhaps"
			return nil
		case errors.Is(err, unix.EBUSY):
			return nil // a bridge's port has no children
		case err != nil:
			return fmt.Errorf("%s: probe: %w", nic, err)
		}
		return netlink.LinkDel(link)
	})
}

// onNamespace runs fn on a thread inside the namespace of fd, if that is still
// the one with this identity; the thread ends with it.
func onNamespace(fd int, id uint64, fn func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != id {
		return errors.New("another namespace by now")
	}
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread would be parked in there for good.
			errc <- onNamespace(fd, id, fn)
			runtime.UnlockOSThread()
			return
		}
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			errc <- err
			return
		}
		errc <- fn()
	}()
	return <-errc
}

// endProcesses ends what still runs in the lab, or with a child of it, when the
// test is over. A test that passed should have done so itself.
func (l *Lab) endProcesses() {
	for _, m := range l.machines {
		m.kill()
	}
	complain := l.t.Errorf
	if l.t.Failed() {
		complain = l.t.Logf
	}
	told := make(map[int]bool)
	for end := time.Now().Add(settleTime); ; time.Sleep(10 * time.Millisecond) {
		v, err := l.survey()
		if err != nil {
			l.t.Errorf("lab: %v", err)
			return
		}
		left := v.inhabitants()
		if len(left) == 0 {
			return
		}
		for pid, why := range left {
			if !told[pid] {
				complain("lab: %v was still running at the end: it %s", v.processes[pid], why)
			}
			told[pid] = true
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if time.Now().After(end) {
			l.t.Errorf("lab: %d processes cannot be ended", len(left))
			return
		}
	}
}
