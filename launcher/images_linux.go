package launcher

import (
	"bytes"
	"context"
	"encoding/binary"
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
)

// createTimeout bounds one qemu-img run; an empty image takes milliseconds.
const createTimeout = 20 * time.Second

// createDisk makes a missing image, as an overlay where the spec has a base. It
// comes into being whole, under its name or not at all; a disk that somebody
// made since the plan is left alone. What it made is removed when the start
// fails.
func (l *life) createDisk(ctx context.Context, d configs.Disk) error {
	if d.Base != "" {
		if err := checkChain(configs.Disk{Path: d.Base, Format: d.BaseFormat}); err != nil {
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
	if err := runQemuImg(ctx, d, unfinished); err != nil {
		return fmt.Errorf("create %s: %w", d.Path, err)
	}
	if err := moveNew(unfinished, d.Path); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	l.undoUnlessCommitted("image "+filepath.Base(d.Path), func() error { return removeFile(d.Path) })
	return nil
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
func runQemuImg(ctx context.Context, d configs.Disk, path string) error {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	args := []string{"create", "-q", "-f", string(d.Format)}
	size := uint64(d.Size)
	if d.Base != "" {
		args = append(args, "-u", "-b", d.Base, "-F", string(d.BaseFormat))
	}
	if size == 0 {
		var err error
		if size, err = diskSize(configs.Disk{Path: d.Base, Format: d.BaseFormat}); err != nil {
			return err
		}
	}
	args = append(args, "--", path, fmt.Sprint(size))
	out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("qemu-img is not installed: apt-get install qemu-utils")
	}
	if err != nil {
		return fmt.Errorf("qemu-img: %w: %s", err, firstLine(out))
	}
	return nil
}

// openDisk opens the layers of a disk for QEMU, each in the very access mode
// that QEMU will ask its fdset for.
func (l *life) openDisk(i int, d configs.Disk) error {
	if err := checkDisk(d); err != nil {
		return err
	}
	if d.Base != "" {
		base := configs.Disk{Path: d.Base, Format: d.BaseFormat, Readonly: true}
		if err := l.openImage(fmt.Sprintf("disk%d-base", i), base); err != nil {
			return err
		}
	}
	return l.openImage(fmt.Sprintf("disk%d", i), d)
}

func (l *life) openImage(name string, d configs.Disk) error {
	flags := os.O_RDWR
	if d.Readonly {
		flags = os.O_RDONLY
	}
	kinds := []uint32{unix.S_IFREG}
	if d.Format == configs.FormatRaw {
		kinds = append(kinds, unix.S_IFBLK)
	}
	f, err := openInput(d.Path, flags, kinds...)
	if err != nil {
		return err
	}
	l.files[name] = f
	return nil
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

// checkDisk checks both layers of a disk that exists.
func checkDisk(d configs.Disk) error {
	err := checkChain(d)
	if err == nil && d.Base != "" {
		err = checkChain(configs.Disk{Path: d.Base, Format: d.BaseFormat})
	}
	return err
}

// checkChain makes sure that a qcow2 image has a backing file just where the
// spec says so. QEMU is told the chain and looks for none, so an undeclared
// backing file would silently read as zeros, and a declared one on a complete
// image would never be read.
func checkChain(d configs.Disk) error {
	if d.Format != configs.FormatQCOW2 {
		return nil
	}
	backing, err := backingFile(d.Path)
	if err != nil {
		return err
	}
	if backing != "" && d.Base == "" {
		return fmt.Errorf("%s is an overlay of %q: declare it with base, or merge the two: qemu-img rebase -b '' %s", d.Path, backing, d.Path)
	}
	if d.Base == "" {
		return nil
	}
	if backing == "" {
		return fmt.Errorf("%s has no backing file: leave base out, or remove the image to have an overlay made", d.Path)
	}
	if !filepath.IsAbs(backing) {
		backing = filepath.Join(filepath.Dir(d.Path), backing)
	}
	if !samePath(backing, d.Base) {
		return fmt.Errorf("%s is an overlay of %s, not of base %s", d.Path, backing, d.Base)
	}
	return nil
}

func samePath(a, b string) bool {
	fa, errA := os.Stat(a)
	fb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(fa, fb)
}

// qcow2Header is what is read of a qcow2 image's header (QEMU's
// docs/interop/qcow2.txt); version 2 ends before Incompatible.
type qcow2Header struct {
	Magic, Version uint32
	BackingOffset  uint64
	BackingLength  uint32
	_              [4]byte
	Size           uint64 // of the disk, in bytes
	_              [40]byte
	Incompatible   uint64 // features that a reader has to know
}

const (
	qcow2Magic      = 0x514649fb
	qcow2V2Size     = 72
	qcow2DataFile   = 1 << 2 // the data is in another file, which the image names
	qcow2NameLength = 1023
)

// backingFile reads the name of the backing file from a qcow2 header, "" for
// none.
func backingFile(path string) (string, error) {
	f, err := openInput(path, os.O_RDONLY, unix.S_IFREG)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h, err := readHeader(f)
	switch {
	case err != nil:
		return "", err
	case h.Magic != qcow2Magic || h.Version < 2 || h.Version > 3:
		return "", fmt.Errorf("%s is no qcow2 image: set format = \"raw\" if it is a raw one", path)
	case h.Version > 2 && h.Incompatible&qcow2DataFile != 0:
		return "", fmt.Errorf("%s keeps its data in another file, which QEMU would open by a name in the image: merge them: qemu-img convert -O qcow2 %[1]s NEW.qcow2", path)
	case h.BackingOffset == 0:
		return "", nil
	case h.BackingLength > qcow2NameLength:
		return "", fmt.Errorf("%s: backing file name of %d bytes: damaged", path, h.BackingLength)
	}
	name := make([]byte, h.BackingLength)
	if _, err := f.ReadAt(name, int64(h.BackingOffset)); err != nil {
		return "", fmt.Errorf("%s: backing file name: %w", path, err)
	}
	return string(name), nil
}

// diskSize is the size of the disk in an image, in bytes.
func diskSize(d configs.Disk) (uint64, error) {
	f, err := openInput(d.Path, os.O_RDONLY, unix.S_IFREG, unix.S_IFBLK)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if d.Format == configs.FormatQCOW2 {
		h, err := readHeader(f)
		return h.Size, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	const sector = 512 // to which QEMU rounds up
	return (uint64(size) + sector - 1) / sector * sector, err
}

func readHeader(f *os.File) (h qcow2Header, err error) {
	data := make([]byte, binary.Size(h))
	n, err := io.ReadFull(f, data)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return h, err
	}
	if n < qcow2V2Size {
		return h, fmt.Errorf("%s is no qcow2 image: it ends within its header", f.Name())
	}
	err = binary.Read(bytes.NewReader(data), binary.BigEndian, &h)
	return h, err
}

// sealedCopy copies a file into memory that nobody can change any more, which
// QEMU can open as /dev/fd/N whatever its uid (memfd_create(2)).
func sealedCopy(path string) (*os.File, error) {
	src, err := openInput(path, os.O_RDONLY, unix.S_IFREG)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	name := filepath.Base(path)
	fd, err := unix.MemfdCreate(name[:min(len(name), 249)], unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd for %s: %w", path, err)
	}
	dst := os.NewFile(uintptr(fd), path)
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return nil, fmt.Errorf("copy %s: %w", path, err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(dst.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		dst.Close()
		return nil, fmt.Errorf("seal the copy of %s: %w", path, err)
	}
	return dst, nil
}
