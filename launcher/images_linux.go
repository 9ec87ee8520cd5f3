package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
)

// createTimeout bounds one qemu-img run; an empty image takes milliseconds.
const createTimeout = 20 * time.Second

// createDisk makes a missing image, which is removed when the start fails.
func (l *life) createDisk(ctx context.Context, d configs.Disk) error {
	if err := CreateImage(ctx, d); err != nil {
		return err
	}
	l.undoUnlessCommitted("image "+filepath.Base(d.Path), func() error { return removeFile(d.Path) })
	return nil
}

// CreateImage makes the image of a disk, as an overlay where the spec has a base.
// It comes into being whole, under its name or not at all; one that is there by
// now is left alone.
func CreateImage(ctx context.Context, d configs.Disk) error {
	size := uint64(d.Size)
	if d.Base != "" {
		chain, err := readChain(d)
		if err != nil {
			return err
		}
		if size, err = overlaySize(d, chain[1]); err != nil {
			return err
		}
	}
	unfinished := filepath.Join(filepath.Dir(d.Path), "."+filepath.Base(d.Path)+".vmrun-new")
	if err := removeFile(unfinished); err != nil { // of a predecessor that was killed
		return fmt.Errorf("create: %w", err)
	}
	f, err := os.OpenFile(unfinished, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	defer removeFile(unfinished)
	f.Close()
	if err := runQemuImg(ctx, d, unfinished, size); err != nil {
		return fmt.Errorf("create %s: %w", d.Path, err)
	}
	if err := moveNew(unfinished, d.Path); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	return nil
}

// overlaySize is how large a new overlay gets, in bytes.
func overlaySize(d configs.Disk, base layer) (uint64, error) {
	if d.Size == 0 {
		return base.Size, nil
	}
	if uint64(d.Size) < base.Size {
		return 0, fmt.Errorf("size %s is less than the %s of %s, which would be cut off: leave size out, or give at least that", d.Size, configs.Size(base.Size), base.Path)
	}
	return uint64(d.Size), nil
}

// moveNew gives a file its name, unless the name is taken.
func moveNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // a file system that cannot; a link does the same
		return os.Link(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// runQemuImg makes the image of d at path, as root. It opens no other image: a
// base may be anybody's, and is not looked into with so many rights.
func runQemuImg(ctx context.Context, d configs.Disk, path string, size uint64) error {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	args := []string{"create", "-q", "-f", string(d.Format)}
	if d.Base != "" {
		args = append(args, "-u", "-b", d.Base, "-F", string(d.BaseFormat))
	}
	args = append(args, "--", path, fmt.Sprint(size))
	out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	return explainQemuImg(err, out)
}

func explainQemuImg(err error, out []byte) error {
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return errors.New("qemu-img is not installed: apt-get install qemu-utils")
	case err != nil:
		return fmt.Errorf("qemu-img: %w: %s", err, firstLine(out))
	}
	return nil
}

// openDisk opens the layers of a disk for QEMU, each in the very access mode that
// QEMU will ask its fdset for.
func (l *life) openDisk(i int, d configs.Disk) error {
	if d.Path == "" { // a drive without a medium
		return nil
	}
	flags := os.O_RDWR
	if d.Readonly {
		flags = os.O_RDONLY
	}
	list, err := openChain(d, flags)
	if err == nil && l.plan != nil && !sameLayers(list, l.plan.chains[i]) {
		err = fmt.Errorf("%s is made of other images than a moment ago: start it again", d.Path)
	}
	for n, layer := range list {
		if err == nil {
			err = l.refuseLocked(layer.file, n > 0 || d.Readonly)
		}
	}
	if err != nil {
		closeLayers(list)
		return err
	}
	for n, layer := range list {
		l.files[layerName(i, n)] = layer.file
	}
	return nil
}

// openImage opens an image that is no overlay, for QEMU to find under a name.
func (l *life) openImage(name string, d configs.Disk) error {
	flags := os.O_RDWR
	if d.Readonly {
		flags = os.O_RDONLY
	}
	list, err := openChain(d, flags)
	if err != nil {
		closeLayers(list)
		return err
	}
	l.files[name] = list[0].file
	return nil
}

// layerName is a layer's name among QEMU's files, and that of its block node.
func layerName(disk, layer int) string {
	switch layer {
	case 0:
		return fmt.Sprintf("disk%d", disk)
	case 1:
		return fmt.Sprintf("disk%d-base", disk)
	}
	return fmt.Sprintf("disk%d-base%d", disk, layer)
}

// openInput opens one of the files that a guest is made of, if it is of one of
// the kinds (S_IFREG, …). It never waits, as opening a FIFO would.
func openInput(path string, flags int, kinds ...uint32) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && !slices.Contains(kinds, st.Mode&unix.S_IFMT) {
		err = errors.New("not a regular file")
		if len(kinds) > 1 {
			err = errors.New("neither a regular file nor a block device")
		}
	}
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openKernel opens the kernel for QEMU, which reads it once, while it starts. It gets
// a sealed copy where its user could not read the file or could change it, and of an
// ELF file, which it maps for as long as it lives (hw/core/loader.c).
func (l *life) openKernel(context.Context) error {
	f, err := openInput(l.guest().Boot.Kernel, os.O_RDONLY, unix.S_IFREG)
	if err != nil {
		return err
	}
	if l.guest().Confine.User && !isELF(f) && onlyReadable(f, l.plan.UID, l.plan.Groups) {
		l.files[fdKernel], l.reopened = f, []*os.File{f}
		return nil
	}
	defer f.Close()
	l.files[fdKernel], err = sealedCopy(f)
	return err
}

// onlyReadable reports whether a user other than root may open the file anew to read
// it, and not to change it.
func onlyReadable(f *os.File, uid int, groups []int) bool {
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	return nil == netsetup.OnThread(func() error {
		if err := setIDs(uid, groups); err != nil {
			return err
		}
		if unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS) == nil {
			return errors.New("it can be changed")
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	})
}

func isELF(f *os.File) bool {
	magic := make([]byte, 4)
	_, err := f.ReadAt(magic, 0)
	return err == nil && string(magic) == "\x7fELF" // elf(5)
}

// sealing is a sealed copy that is being made.
type sealing struct {
	done chan struct{} // closed when file and err are there
	file *os.File
	err  error
}

// beginCopy begins to copy a file into sealed memory. It is to be taken, or dropped.
func beginCopy(path string) *sealing {
	s := &sealing{done: make(chan struct{})}
	go func() {
		defer close(s.done)
		src, err := openInput(path, os.O_RDONLY, unix.S_IFREG)
		if err != nil {
			s.err = err
			return
		}
		defer src.Close()
		s.file, s.err = sealedCopy(src)
	}()
	return s
}

// take waits for the copy, which is the caller's from then on.
func (s *sealing) take(ctx context.Context) (f *os.File, err error) {
	select {
	case <-s.done:
		f, s.file = s.file, nil
		return f, s.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// drop closes a copy that nobody has taken, without waiting for a file system that
// hangs.
func (s *sealing) drop() {
	go func() {
		<-s.done
		_ = s.file.Close() // which says so where there is none
	}()
}

// sealedCopy copies what is left of a file into sealed memory.
func sealedCopy(src *os.File) (*os.File, error) {
	return sealedMemory(src.Name(), func(dst *os.File) error { return copyFile(dst, src) })
}

// copyFile copies what is left of a file, in the kernel where that can: it takes half
// as long as through a buffer of ours.
func copyFile(dst, src *os.File) error {
	const most = 1 << 30
	for {
		n, err := unix.Sendfile(int(dst.Fd()), int(src.Fd()), nil, most)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EINVAL): // a file system that cannot
			_, err = io.Copy(dst, src)
			return err
		case err != nil || n == 0:
			return err
		}
	}
}

// memoryFile is a file that is in memory alone, and nowhere by a name
// (memfd_create(2)).
func memoryFile(name string, flags int) (*os.File, error) {
	base := filepath.Base(name)
	fd, err := unix.MemfdCreate(base[:min(len(base), 249)], unix.MFD_CLOEXEC|flags)
	if err != nil {
		return nil, fmt.Errorf("memfd for %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// sealedMemory returns memory that write has filled and nobody can change any more, which
// QEMU can open as /dev/fd/N whatever its uid.
func sealedMemory(name string, write func(*os.File) error) (*os.File, error) {
	f, err := memoryFile(name, unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	if err := write(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("copy %s: %w", name, err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal the copy of %s: %w", name, err)
	}
	return f, nil
}
