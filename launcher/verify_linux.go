package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"vmrun/netsetup"
	"vmrun/qmp"
)

// A record is a file, and what it says may be old, spoilt or forged. Before
// anything is done by it to a process or a link, it is held against the kernel
// and QEMU.

// mark is that by which a QEMU of a run directory is known. Its root was built on
// the directory, and it cannot leave that (enterRoot). Where it has none of its
// own, as in earlier versions, its standard error is one of the directory's files.
type mark struct {
	dir   string        // without links on the way
	files []os.FileInfo // the pipe or, of an early version, qemu.log

	// Mount namespaces in which no root is a guest's: the caller's, and that of the
	// kernel's threads, which is another one in a container. They are hundreds, whose
	// mounts need not be read.
	host, kernel string

	buf []byte // for mountinfo, of one who looks at many processes
}

func (d runDir) mark() mark {
	m := mark{dir: d.real(), kernel: kernelSpace()}
	m.host, _ = os.Readlink("/proc/self/ns/mnt")
	for _, file := range []string{fileStderr, fileQEMULog} {
		if info, err := os.Stat(d.path(file)); err == nil {
			m.files = append(m.files, info)
		}
	}
	return m
}

// real is the directory's path as the kernel shows it.
func (d runDir) real() string {
	path, err := filepath.Abs(string(d))
	if err != nil {
		return string(d)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// on reports whether a process has the mark.
func (m mark) on(pid int) bool {
	p, space := procDir(pid).living()
	if p.writesTo(m.files) {
		return true
	}
	if space == "" || space == m.host || space == m.kernel {
		return false
	}
	if m.isOthers(p) {
		return false
	}
	mounts, _ := readInto(m.buf, p.path("mountinfo"))
	if !bytes.Contains(mounts, []byte(filepath.Base(m.dir))) { // a guest's name, in which nothing is escaped
		return false
	}
	isRoot := func(mount mount) bool { return mount.path == "/" && isRootOn(m.dir, mount.source) }
	return slices.ContainsFunc(parseMounts(mounts), isRoot) && p.isGuests() // others could make such a root in a user namespace
}

// isOthers reports whether a process writes to another guest's pipe or log, which is
// quicker to read than its mounts: it is the QEMU of that, or its supervisor.
func (m mark) isOthers(p procDir) bool {
	target, err := os.Readlink(p.path("fd/2"))
	dir, file := filepath.Split(target)
	return err == nil && (file == fileStderr || file == fileSupervisorLog) && filepath.Clean(dir) != m.dir
}

// writesTo reports whether a process's standard error is one of the files.
func (p procDir) writesTo(files []os.FileInfo) bool {
	if len(files) == 0 {
		return false
	}
	info, err := os.Stat(p.path("fd/2"))
	return err == nil && slices.ContainsFunc(files, func(f os.FileInfo) bool { return os.SameFile(f, info) })
}

// kernelSpace is the mount namespace of the kernel's own threads, which are all children
// of process 2, or "" where that is another process. It is the first of all.
func kernelSpace() string {
	const kernelThread = 0x00200000 // PF_KTHREAD (linux/sched.h)
	if processFlags(2)&kernelThread == 0 {
		return ""
	}
	space, _ := os.Readlink("/proc/2/ns/mnt")
	return space
}

// isGuests reports whether the process belongs to root or to a user that is there
// for guests.
func (p procDir) isGuests() bool {
	status, _ := p.fields("status")
	real, _, _ := strings.Cut(status["Uid"], "\t")
	uid, err := strconv.Atoi(real)
	users := guestUsersOrDefault()
	return err == nil && (uid == 0 || uid >= users.first && uid < users.first+users.count)
}

// marked reports whether a process has the mark of this directory's QEMU, or its
// standard error is a file of the directory's that was renamed or removed since.
func (d runDir) marked(pid int) (bool, error) {
	m := d.mark()
	if m.on(pid) {
		return true, nil
	}
	target, err := os.Readlink(procDir(pid).thread().path("fd/2"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("tell whether process %d is the guest's: %w", pid, err)
	}
	return strings.HasPrefix(target, filepath.Join(m.dir, fileStderr)) || strings.HasPrefix(target, filepath.Join(m.dir, fileQEMULog)), nil
}

// mayAdopt reports whether the directory's QEMU, which lives without a
// supervisor, is a guest to be adopted. If not, it is what is left of a start
// that was never finished. The error is ErrState where that cannot be told, by
// a record that cannot be read or that does not fit: the guest may be
// somebody's, so it is not ended.
func (d runDir) mayAdopt(ctx context.Context, qemu *process, rec *record, recErr error) (bool, error) {
	switch {
	case recErr != nil && !errors.Is(recErr, os.ErrNotExist):
		return false, d.misfit(qemu, recErr)
	case rec != nil && rec.Committed && rec.Ended == nil && rec.BootID != bootID():
		return false, d.misfit(qemu, errors.New("the state file is of another boot"))
	case rec != nil && rec.Committed && rec.Ended == nil && rec.QEMU != qemu.id:
		return false, d.misfit(qemu, fmt.Errorf("the state file names another process (pid %d)", rec.QEMU.PID))
	case rec != nil && rec.Committed && rec.Ended == nil:
		return true, nil
	case rec != nil && rec.Restored && !rec.Committed && isSuspended(filepath.Dir(string(d)), filepath.Base(string(d))):
		return false, nil // it has a memory, which goes before its CPUs run
	case d.hasRun(ctx):
		return false, d.misfit(qemu, errors.New("no state file says that it has run"))
	}
	return false, nil
}

// misfit says that a guest runs whose record is of no use.
func (d runDir) misfit(qemu *process, err error) error {
	name := filepath.Base(string(d))
	return fmt.Errorf("%w: QEMU (pid %d) runs, but %w: vmrun kill %s ends it", ErrState, qemu.id.PID, err, name)
}

// hasRun reports whether QEMU says that the guest's CPUs have run. One that
// says nothing has most likely just been started.
func (d runDir) hasRun(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	mon, err := qmp.Dial(ctx, d.path(fileMonitor))
	if err != nil {
		return false
	}
	defer mon.Close()
	status, err := mon.QueryStatus(ctx)
	return err == nil && status.Status != "prelaunch"
}

// verify holds the record of a guest that is being adopted against the kernel:
// the slot, by which the guest's things in the host's network are found, and the
// links in its namespace, which will be removed with it.
func (l *life) verify() error {
	host, err := netsetup.CurrentNamespace()
	if err != nil {
		return err
	}
	defer host.Close()
	outside, err := host.ID()
	if err != nil {
		return err
	}
	if inside, err := l.ns.ID(); err != nil || inside == outside {
		return errors.Join(errors.New("QEMU has no network namespace of its own"), err)
	}
	links, err := l.ns.Links()
	if err != nil {
		return err
	}
	if err := l.verifySlot(links); err != nil {
		return err
	}
	known := map[int]bool{}
	for _, c := range slices.Concat(l.rec.Children, l.rec.Loose) {
		known[c.Index] = true
		if err := verifyLink(c, links); err != nil {
			return err
		}
	}
	for _, link := range links {
		if a := link.Attrs(); !known[a.Index] {
			l.log.Warn("a link in the guest's namespace is in no state file", "link", a.Name, "ifindex", a.Index)
		}
	}
	return nil
}

// verifySlot makes sure of the guest's slot by QEMU's uid, or where the range of
// those was changed since, by the index of a link.
func (l *life) verifySlot(links []netlink.Link) error {
	slot, uid := l.rec.Slot, userOf(l.rec.Slot)
	if hasUID(fmt.Sprintf("/proc/%d/status", l.qemu.id.PID), fmt.Sprint(uid), make([]byte, statusSize)) {
		return nil
	}
	for _, link := range links {
		if i := link.Attrs().Index - firstIndex - slot*maxNICs; i >= 0 && i < maxNICs {
			return nil
		}
	}
	if len(l.rec.Children) == 0 || !l.guest().Confine.User {
		return nil // nothing on the host is the slot's, or nothing tells
	}
	return fmt.Errorf("QEMU is not user %d, and no link is of slot %d, as the state file has it", uid, slot)
}

// verifyLink looks for the link of a child. None is no error: its parent may
// have gone.
func verifyLink(c netsetup.Child, links []netlink.Link) error {
	for _, link := range links {
		a := link.Attrs()
		if a.Index == c.Index && (a.Name != c.Name || link.Type() != string(c.Kind)) {
			return fmt.Errorf("link %d is %s %s, and the state file has %s %s", c.Index, link.Type(), a.Name, c.Kind, c.Name)
		}
	}
	return nil
}

// verifyCards asks QEMU for its cards' addresses, which a child takes on. Of
// other models than virtio the guest can change what QEMU says here. A card that
// is not there has been given up by the guest.
func (l *life) verifyCards(ctx context.Context, mon *qmp.Client) error {
	for _, c := range l.rec.Children {
		if !isVirtio(c.Model) {
			continue
		}
		var mac string
		args := map[string]any{"path": "/machine/peripheral/" + nicID(number(c)), "property": "mac"}
		err := mon.Execute(ctx, "qom-get", args, &mac)
		if unlessRefused(err) != nil {
			return nil // QEMU does not answer, and others say so
		}
		if err == nil && !strings.EqualFold(mac, c.MAC.String()) {
			return fmt.Errorf("QEMU's card for %s has the MAC %.100s, and the state file %s", c.Name, mac, c.MAC)
		}
	}
	return nil
}
