package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// The files of a state directory that hold a suspended guest. The second is one that
// is being written, and means nothing.
const (
	fileMemory    = "memory"
	fileNewMemory = ".memory.new"
)

func memoryPath(runBase, name string) string {
	return filepath.Join(StateDir(runBase, name), fileMemory)
}

// readMemory reads what a suspended guest is. The error is os.ErrNotExist where the
// guest is not suspended.
func readMemory(runBase, name string) (*memory, error) {
	path := memoryPath(runBase, name)
	f, err := openInput(path, os.O_RDONLY, unix.S_IFREG)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	head, err := io.ReadAll(io.LimitReader(f, memoryHead))
	if err != nil {
		return nil, err
	}
	m, err := decodeMemory(head, info.Size())
	if err == nil && m.Guest.Name != name {
		err = fmt.Errorf("it is that of guest %s", m.Guest.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("the memory of the suspended guest, %s, is of no use: %w: vmrun start --fresh %s throws it away", path, err, name)
	}
	return m, nil
}

// findMemory is readMemory with nil for a guest that is not suspended.
func findMemory(runBase, name string) (*memory, error) {
	m, err := readMemory(runBase, name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return m, err
}

// isSuspended reports whether there is a memory of a guest, or may be: who may not
// look believes what others say.
func isSuspended(runBase, name string) bool {
	_, err := os.Lstat(memoryPath(runBase, name))
	return !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR)
}

// suspendedNames lists the guests that have a memory.
func suspendedNames(runBase string) (names []string) {
	for _, name := range guestNames(stateBase(runBase)) {
		if isSuspended(runBase, name) {
			names = append(names, name)
		}
	}
	return names
}

// Suspended returns a guest that is suspended, as it was, or nil.
func Suspended(base, name string) *configs.Guest {
	if m, err := readMemory(base, name); err == nil {
		return m.Guest
	}
	return nil
}

// Discard throws the memory of a suspended guest away, if there is one, and reports
// whether there was. The error is a *BusyError while the guest has a supervisor.
func Discard(base, name string) (bool, error) {
	dir := guestDir(base, name)
	if !isSuspended(base, name) {
		return false, nil
	}
	_, before := os.Stat(string(dir))
	lock, err := dir.lockBriefly()
	if err != nil {
		return false, err
	}
	defer lock.Close()
	if rec, _ := dir.readRecord(); rec != nil && rec.Ended == nil && rec.alive() {
		return false, fmt.Errorf("%s: %w: it runs", name, ErrState)
	}
	err = removeMemory(base, name)
	if before != nil {
		err = errors.Join(err, removeFile(dir.path(fileLock)), dir.remove())
	}
	return err == nil, named(name, err)
}

// removeMemory removes a guest's memory for good, and its state directory with it
// where that is left empty.
func removeMemory(base, name string) error {
	dir := StateDir(base, name)
	if err := os.Remove(filepath.Join(dir, fileMemory)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove its memory: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("remove its memory: %w", err)
	}
	_ = os.Remove(dir) // if it is empty
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// imagesOf looks at the images of a guest's disks.
func imagesOf(g *configs.Guest) (list []imageState, err error) {
	for _, d := range g.Disks {
		for _, path := range layersOf(d) {
			i, err := imageAt(path)
			if err != nil {
				return nil, err
			}
			list = append(list, i)
		}
	}
	return list, nil
}

// layersOf are the images of a disk, its own first.
func layersOf(d configs.Disk) (paths []string) {
	chain, err := readChain(d)
	if err != nil || d.Path == "" { // which others say
		chain = declaredChain(d, nil)
	}
	for _, l := range chain {
		paths = append(paths, l.Path)
	}
	return paths
}

func imageAt(path string) (imageState, error) {
	info, err := os.Stat(path)
	if err != nil {
		return imageState{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	i := imageState{Path: path, Dev: st.Dev, Inode: st.Ino, Size: info.Size(), Time: info.ModTime()}
	if !info.Mode().IsRegular() { // a device; its node is made anew with each boot
		i.Dev, i.Inode, i.Time = st.Rdev, 0, time.Time{}
	}
	return i, nil
}

// misfits are the disks, by number, that are not what the memory was kept with, and why.
func (m *memory) misfits() map[int]error {
	before := map[string]imageState{}
	for _, i := range m.Images {
		before[i.Path] = i
	}
	list := map[int]error{}
	for n, d := range m.Guest.Disks {
		for _, path := range layersOf(d) {
			now, err := imageAt(path)
			if err != nil {
				continue // which others say
			}
			if why := before[path].changed(now); why != "" {
				list[n] = fmt.Errorf("%s %s when %s was suspended, and its memory would spoil what is on it", path, why, m.Guest.Name)
			}
		}
	}
	return list
}

// refuseSuspended says which suspended guest has the image of a disk, as its memory
// knows it: that would not fit any more were the image changed.
func (d Disk) refuseSuspended() error {
	now, err := imageAt(d.Spec.Path)
	if err != nil {
		return nil // which whoever opens it says
	}
	for _, name := range suspendedNames(d.Base) {
		m, err := readMemory(d.Base, name)
		if err != nil {
			continue // it is of no use, which the guest's next start says
		}
		if slices.ContainsFunc(m.Images, func(i imageState) bool { return i.changed(now) == "" }) {
			return fmt.Errorf("%s: %w: guest %s is suspended, and its memory would not fit a disk that has changed: vmrun resume %[3]s comes first, or vmrun start --fresh %[3]s", d.Spec.Path, ErrState, name)
		}
	}
	return nil
}

// loadTimeout bounds the time in which nothing more of a memory is read or written.
const loadTimeout = time.Minute

// loadMemory has QEMU take over the memory of the suspended guest.
func (l *life) loadMemory(ctx context.Context) error {
	f, err := openInput(memoryPath(l.opts.RunDir, l.guest().Name), os.O_RDONLY, unix.S_IFREG)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(memoryHead, io.SeekStart); err != nil {
		return err
	}
	mon := l.monitor()
	err = passMemory(ctx, mon, f, "migrate-incoming")
	if err == nil {
		err = l.awaitMigration(ctx, mon, f, nil)
	}
	if err == nil {
		return nil
	}
	select {
	case <-l.qemu.done:
		err = l.earlyEnd("while it took over the memory")
	case <-time.After(time.Second):
	}
	if was, now := l.memory.QEMUVersion, l.snapshot().QEMUVersion; was.String() != now.String() {
		err = fmt.Errorf("%w\n\tthe guest was suspended under QEMU %s, and this is %s", err, was, now)
	}
	return fmt.Errorf("%w\n\tit stays suspended: vmrun start --fresh %s throws its memory away", err, l.guest().Name)
}

// takeMemory makes the memory nobody's: from here on the guest is in QEMU alone. It
// comes before the guest's CPUs run, since a memory that is older than the disks
// would spoil these.
func (l *life) takeMemory(context.Context) error {
	select {
	case <-l.qemu.done: // and so it stays suspended
		return errGone
	default:
	}
	if err := l.spendMemory(); err != nil {
		return err
	}
	if !l.opts.Paused {
		return nil
	}
	s := l.snapshot().Situation
	s.Ran, s.Held = true, true
	l.setSituation(s)
	return nil
}

// spendMemory removes the memory that the guest goes on from, unless that has been
// done. Whoever lets the guest's CPUs run makes sure of it.
func (l *life) spendMemory() error {
	if !l.snapshot().Restored || l.spent.Load() {
		return nil
	}
	if err := removeMemory(l.opts.RunDir, l.guest().Name); err != nil {
		return err
	}
	l.spent.Store(true)
	return nil
}

// goOn has a guest that is suspended go on as it was, whatever its spec says by now.
func (l *life) goOn() (err error) {
	dir := StateDir(l.opts.RunDir, l.guest().Name)
	_ = os.Remove(filepath.Join(dir, fileNewMemory)) // of a predecessor that was killed
	if l.memory, err = findMemory(l.opts.RunDir, l.guest().Name); l.memory == nil || err != nil {
		return err
	}
	if changes := configs.Differences(l.memory.Guest, l.guest()); len(changes) > 0 {
		l.warnings = append(l.warnings, fmt.Sprintf("it goes on as it was suspended, without what is new in its spec: %s: that takes a restart", keysOf(changes)))
	}
	l.spec.Store(l.memory.Guest)
	l.opts.Paused = l.opts.Paused || l.memory.isPaused()
	return nil
}

func keysOf(changes []configs.Difference) string {
	var keys []string
	for _, d := range changes {
		keys = append(keys, d.Key)
	}
	return strings.Join(keys, ", ")
}
