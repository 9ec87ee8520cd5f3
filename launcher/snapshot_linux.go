package launcher

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"vmrun/configs"
)

// Snapshots inside a disk's own image, of that disk alone (qemu-img(1), snapshot).

// Snapshot keeps the disk's present state in its image under a name.
func (d Disk) Snapshot(ctx context.Context, name string) error {
	return d.snapshot(ctx, "-c", name)
}

// Rollback makes the disk what it was at a snapshot; what was written since is lost.
func (d Disk) Rollback(ctx context.Context, name string) error {
	return d.snapshot(ctx, "-a", name)
}

// DeleteSnapshot gives a snapshot up.
func (d Disk) DeleteSnapshot(ctx context.Context, name string) error {
	return d.snapshot(ctx, "-d", name)
}

func (d Disk) snapshot(ctx context.Context, act, name string) error {
	if err := d.refuseSuspended(); err != nil {
		return err
	}
	list, err := d.open(os.O_RDWR)
	defer closeLayers(list)
	if err != nil {
		return err
	}
	if lockedFile(list[0].file, false) {
		return inUse(d.Base, d.Spec.Path)
	}
	there, err := shotsOf(list[0])
	if err != nil {
		return err
	}
	if err := checkShot(d.Spec.Path, there, name, act == "-c"); err != nil {
		return err
	}
	return imageTool(ctx, list, "snapshot", "-q", act, name, "--", imageWord)
}

// diskShots lists the snapshots in a disk's own image.
func diskShots(d configs.Disk) ([]ImageSnapshot, error) {
	list, err := openChain(d, os.O_RDONLY)
	defer closeLayers(list)
	if err != nil {
		return nil, err
	}
	return shotsOf(list[0])
}

// shotsOf lists the snapshots in an open image.
func shotsOf(l layer) ([]ImageSnapshot, error) {
	if l.Format != configs.FormatQCOW2 {
		return nil, fmt.Errorf("%s is a %s image, and only qcow2 images have snapshots", l.Path, l.Format)
	}
	info, err := l.file.Stat()
	if err != nil {
		return nil, err
	}
	image, err := readQCOW2(l.file, info.Size())
	var list []ImageSnapshot
	if err == nil {
		list, err = image.snapshots(l.file)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %w", l.Path, err)
	}
	return list, nil
}

// CheckSnapshotName says why a snapshot cannot be called that, or returns nil.
func CheckSnapshotName(name string) error {
	if err := configs.CheckName(name); err != nil {
		return fmt.Errorf("a snapshot's name is like a guest's: %w", err)
	}
	if strings.Trim(name, "0123456789") == "" { // which QEMU takes for an id
		return fmt.Errorf("a snapshot's name has a letter in it, and %q has none", name)
	}
	return nil
}

// checkShot checks the name of a snapshot that is to be made, or to be there.
func checkShot(path string, there []ImageSnapshot, name string, fresh bool) error {
	if err := CheckSnapshotName(name); err != nil {
		return err
	}
	var names []string
	for _, s := range there {
		names = append(names, s.Name)
	}
	found := slices.Contains(names, name)
	switch {
	case fresh && found:
		return fmt.Errorf("%s has a snapshot %q already", path, name)
	case !fresh && !found && len(names) == 0:
		return fmt.Errorf("%s has no snapshot %q, and no other", path, name)
	case !fresh && !found:
		return fmt.Errorf("%s has no snapshot %q: it has %q", path, name, names)
	}
	return nil
}
