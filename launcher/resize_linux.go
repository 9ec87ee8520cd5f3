package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"vmrun/configs"
)

// growDisk makes a disk as large as its spec says.
func (l *life) growDisk(ctx context.Context, d configs.Disk) error {
	return Disk{Spec: d, Base: filepath.Dir(string(l.dir))}.grow(ctx, uint64(d.Size))
}

// Disk is one that no guest uses.
type Disk struct {
	Spec  configs.Disk
	Alone bool   // no spec speaks of it: what is below it, its image says
	Base  string // of the run directories, to tell who uses it
}

func (d Disk) open(flags int) ([]layer, error) {
	if d.Alone {
		return openImage(d.Spec.Path, d.Spec.Format, flags)
	}
	return openChain(d.Spec, flags)
}

// Grow makes a disk larger, to so many bytes. One that has them already is left as
// it is.
func (d Disk) Grow(ctx context.Context, size uint64) error {
	if err := d.refuseSuspended(); err != nil {
		return err
	}
	return d.grow(ctx, size)
}

func (d Disk) grow(ctx context.Context, size uint64) error {
	list, err := d.open(os.O_RDWR)
	defer closeLayers(list)
	if err != nil {
		return err
	}
	top := list[0]
	if size == top.Size {
		return nil
	}
	if err := canGrow(top, size); err != nil {
		return err
	}
	if err := lockToResize(d.Base, top.file); err != nil {
		return err
	}
	if top.Format == configs.FormatRaw {
		return growRaw(top, size)
	}
	if err := unlockImage(top.file); err != nil { // for qemu-img, which locks it itself
		return err
	}
	return imageTool(ctx, list, "resize", "-q", "--", imageWord, fmt.Sprint(size))
}

// growRaw makes a raw image larger that is locked. Before it was, somebody else may have
// grown it, and begun to use what it has more.
func growRaw(top layer, size uint64) (err error) {
	if top.Size, err = rawSize(top.file); err != nil {
		return err
	}
	if err := canGrow(top, size); err != nil {
		return err
	}
	if err := top.file.Truncate(int64(size)); err != nil {
		return err
	}
	return top.file.Sync()
}

// canGrow says why the disk in an image cannot be made as large as that.
func canGrow(top layer, size uint64) error {
	switch {
	case size < top.Size:
		return fmt.Errorf("%s has %s, and a disk is never shrunk: %s is less", top.Path, configs.Size(top.Size), configs.Size(size))
	case top.Device:
		return fmt.Errorf("%s is a block device, whose size is not vmrun's to change: grow it where it comes from (lvextend, for example)", top.Path)
	case size%512 != 0:
		return fmt.Errorf("%s is not a multiple of 512B", configs.Size(size))
	}
	return nil
}

// lockToResize locks an image that nobody uses.
func lockToResize(base string, f *os.File) error {
	err := lockImage(f)
	if errors.Is(err, errLocked) {
		return inUse(base, f.Name())
	}
	return err
}
