package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"vmrun/configs"
)

// DiskInfo is what there is to know of a disk from its images.
type DiskInfo struct {
	Name      string          `json:"name,omitempty"` // its place in the spec: "disk0"; "" for an image alone
	CDROM     bool            `json:"cdrom,omitempty"`
	Size      uint64          `json:"size"`      // of the disk, in bytes; 0 for an empty drive
	Layers    []LayerInfo     `json:"layers"`    // its own image first, each on the next
	Snapshots []ImageSnapshot `json:"snapshots"` // in its own image
	Holder    string          `json:"holder,omitempty"`
	Problem   string          `json:"problem,omitempty"` // why no guest can use it as it is
}

// LayerInfo is one image of a disk.
type LayerInfo struct {
	Path      string             `json:"path"`
	Format    configs.DiskFormat `json:"format"`
	Size      uint64             `json:"size"`      // of the disk in it, in bytes
	Allocated uint64             `json:"allocated"` // bytes that its file takes
}

// Info reads a disk's images. A guest may be writing them.
func (d Disk) Info(name string) DiskInfo {
	info := DiskInfo{Name: name, CDROM: d.Spec.CDROM, Layers: []LayerInfo{}, Snapshots: []ImageSnapshot{}}
	if d.Spec.Path == "" {
		return info
	}
	held := locked(d.Spec.Path, d.Spec.Readonly)
	if held {
		info.Holder = describeLockers(d.Base, d.Spec.Path, 0)
	}
	list, err := d.open(os.O_RDONLY)
	defer closeLayers(list)
	if err != nil {
		info.Problem = err.Error()
	}
	for _, l := range list {
		one := LayerInfo{Path: l.Path, Format: l.Format, Size: l.Size}
		if l.file != nil {
			one.Allocated = allocated(l.file)
		}
		info.Layers = append(info.Layers, one)
	}
	if len(list) == 0 {
		return info
	}
	info.Size = list[0].Size
	if list[0].Format == configs.FormatQCOW2 && err == nil && list[0].file != nil {
		if info.Snapshots, err = shotsOf(list[0]); err != nil {
			info.Problem = err.Error()
		}
	}
	return info
}

// allocated is how many bytes a file takes on its file system.
func allocated(f *os.File) uint64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return 0
	}
	return uint64(st.Blocks) * 512
}

// DiskNumber is the number of the disk with a name, among so many.
func DiskNumber(name string, disks int) (int, error) {
	for i := range disks {
		if diskNode(i) == name {
			return i, nil
		}
	}
	if disks == 0 {
		return 0, fmt.Errorf("the guest has no disk %q, and no other", name)
	}
	return 0, fmt.Errorf("the guest has no disk %q: it has disk0 to disk%d", name, disks-1)
}

// DisksOf are the disks of a guest as it has them now, with the media that are in
// its drives. The error is ErrNotFound for one that does not run, and has not.
func DisksOf(ctx context.Context, base, name string) ([]Disk, error) {
	rec, err := guestDir(base, name).readRecord()
	if errors.Is(err, os.ErrPermission) {
		return nil, named(name, err)
	}
	if err != nil || rec.Ended != nil || !rec.alive() {
		return nil, named(name, ErrNotFound)
	}
	var media []Medium
	client, err := Control(ctx, base, name)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if err := client.Execute(ctx, CommandDisks, nil, &media); err != nil {
		return nil, named(name, err)
	}
	list := Disks(base, rec.Guest)
	for i := range list {
		if spec := &list[i].Spec; spec.CDROM && i < len(media) {
			spec.Path, spec.Format = media[i].Path, media[i].Format
		}
	}
	return list, nil
}

// Disks are those of a guest's spec.
func Disks(base string, g *configs.Guest) (list []Disk) {
	for _, d := range g.Disks {
		list = append(list, Disk{Spec: d, Base: base})
	}
	return list
}
