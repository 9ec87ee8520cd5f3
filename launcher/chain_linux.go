package launcher

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// layer is one image of the chain that a disk is made of: the disk's own, its base,
// that one's backing file, and so on.
type layer struct {
	Path   string
	Format configs.DiskFormat
	Device bool   // a block device
	Size   uint64 // of the disk in it, in bytes

	file *os.File // nil unless it was opened to be kept
}

// maxLayers is how long a chain may be. Each takes memory of QEMU's and time of
// every read.
const maxLayers = 32

// declaredChain is the chain of a disk as its spec alone tells it.
func declaredChain(d configs.Disk, devices map[string]bool) []layer {
	if d.Path == "" {
		return nil
	}
	list := []layer{{Path: d.Path, Format: d.Format, Device: devices[d.Path]}}
	if d.Base != "" {
		list = append(list, layer{Path: d.Base, Format: d.BaseFormat, Device: devices[d.Base]})
	}
	return list
}

// sameLayers reports whether two chains are of the same images.
func sameLayers(a, b []layer) bool {
	return slices.EqualFunc(a, b, func(a, b layer) bool { return a.Path == b.Path && a.Format == b.Format && a.Device == b.Device })
}

// readChain reads the chain of a disk; the disk's own image may be missing where it
// is to be made on a base.
func readChain(d configs.Disk) ([]layer, error) {
	list, err := openChain(d, os.O_RDONLY)
	closeLayers(list)
	return list, err
}

// openChain opens the images that a disk is made of, its own with these flags and
// all others to be read only. What the images say of each other is read from the
// very files that are opened. QEMU is told the chain and looks for none, so a
// backing file that is not in it would silently read as zeros, and one in it that
// an image does not have would never be read.
func openChain(d configs.Disk, flags int) (list []layer, err error) {
	c := chain{}
	top := layer{Path: d.Path, Format: d.Format}
	declared := layer{Path: d.Base, Format: d.BaseFormat}
	image, err := c.open(top, flags, false)
	switch {
	case d.Base != "" && errors.Is(err, os.ErrNotExist):
		c.layers, err = append(c.layers, top), nil
	case err == nil:
		err = declares(c.layers[0], image, declared)
	}
	if err == nil && d.Base != "" {
		err = c.follow(declared, false)
	}
	return c.layers, err
}

// openImage is openChain for an image that no spec speaks of: what is below it, it
// says itself.
func openImage(path string, format configs.DiskFormat, flags int) ([]layer, error) {
	c := chain{}
	image, err := c.open(layer{Path: path, Format: format}, flags, false)
	if err != nil {
		return c.layers, err
	}
	next, err := backing(path, image)
	if err == nil {
		err = c.follow(next, true)
	}
	return c.layers, err
}

// follow adds a layer, and all that are below it.
func (c *chain) follow(next layer, found bool) error {
	for next.Path != "" {
		image, err := c.open(next, os.O_RDONLY, found)
		if err != nil {
			return err
		}
		if next, err = backing(next.Path, image); err != nil {
			return err
		}
		found = true
	}
	return nil
}

func closeLayers(list []layer) {
	for i := range list {
		if list[i].file != nil {
			list[i].file.Close()
			list[i].file = nil
		}
	}
}

// chain collects layers, each of which is another file.
type chain struct {
	layers []layer
	seen   []os.FileInfo
}

// open adds a layer to the chain, and returns what its header says where it has
// one. A layer that was found in an image is no device, as whoever wrote the image
// could name one.
func (c *chain) open(l layer, flags int, found bool) (qcow2Image, error) {
	kinds := []uint32{unix.S_IFREG}
	if l.Format == configs.FormatRaw && !found {
		kinds = append(kinds, unix.S_IFBLK)
	}
	f, err := openInput(l.Path, flags, kinds...)
	if err != nil {
		return qcow2Image{}, c.in(err)
	}
	l.file = f
	c.layers = append(c.layers, l)
	info, err := f.Stat()
	if err != nil {
		return qcow2Image{}, err
	}
	if i := slices.IndexFunc(c.seen, func(other os.FileInfo) bool { return os.SameFile(info, other) }); i >= 0 {
		return qcow2Image{}, fmt.Errorf("%s is its own base, by way of %s: qemu-img rebase -u -b BASE -F FORMAT %[1]s, on the one whose base is wrong", l.Path, c.names())
	}
	c.seen = append(c.seen, info)
	if len(c.layers) > maxLayers {
		return qcow2Image{}, fmt.Errorf("%s has more than %d images below it: merge some: qemu-img convert -O qcow2 OLD NEW.qcow2", c.layers[0].Path, maxLayers-1)
	}
	top := &c.layers[len(c.layers)-1]
	top.Device = info.Mode()&os.ModeDevice != 0
	if l.Format == configs.FormatQCOW2 {
		image, err := readImage(f, info.Size())
		top.Size = image.Size
		return image, err
	}
	top.Size, err = rawSize(f)
	if err == nil && found && top.Size != uint64(info.Size()) {
		err = fmt.Errorf("%s is no disk: it has %d bytes, which are no whole sectors: it cannot be a raw base", l.Path, info.Size())
	}
	return qcow2Image{}, err
}

// in adds to an error which images led to where it is.
func (c *chain) in(err error) error {
	if len(c.layers) < 2 {
		return err
	}
	return fmt.Errorf("%w, by way of %s", err, c.names())
}

func (c *chain) names() string {
	var names []string
	for _, l := range c.layers[:min(len(c.layers), 5)] {
		names = append(names, l.Path)
	}
	return strings.Join(names, ", ")
}

// readImage reads the header of an image, and checks that its file is whole.
func readImage(f *os.File, size int64) (qcow2Image, error) {
	image, err := readQCOW2(f, size)
	if err == nil {
		err = image.checkWhole(f, size)
	}
	if err != nil {
		return image, fmt.Errorf("%s %w", f.Name(), err)
	}
	return image, nil
}

// rawSize is the size of the disk in a raw image, in bytes.
func rawSize(f *os.File) (uint64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && size == 0 {
		err = fmt.Errorf("%s is empty, and no disk: remove it to have one made, or copy it again", f.Name())
	}
	const sector = 512 // to which QEMU rounds up
	return (uint64(size) + sector - 1) / sector * sector, err
}

// declares makes sure that an image has just the base that its spec says.
func declares(l layer, image qcow2Image, declared layer) error {
	path, base := l.Path, declared.Path
	switch {
	case image.Backing == "" && base == "":
		return nil
	case base == "":
		return fmt.Errorf("%s is an overlay of %q: declare it with base, or merge the two: qemu-img rebase -b '' %[1]s", path, image.Backing)
	case image.Backing == "":
		return fmt.Errorf("%s has no backing file: leave base out, or remove the image to have an overlay made", path)
	}
	name := from(path, image.Backing)
	if !samePath(name, base) {
		return fmt.Errorf("%s is an overlay of %s, not of base %s", path, name, base)
	}
	if image.BackingFormat != "" && image.BackingFormat != string(declared.Format) {
		return fmt.Errorf("%s says that the format of its base is %q, and the spec says %q: set base_format", path, image.BackingFormat, declared.Format)
	}
	return nil
}

// backing is the layer below an image that is a base itself, as its header names
// it; one with an empty path is none.
func backing(path string, image qcow2Image) (layer, error) {
	next := layer{Path: from(path, image.Backing), Format: configs.DiskFormat(image.BackingFormat)}
	name, _, _ := strings.Cut(image.Backing, "/")
	switch {
	case image.Backing == "":
		return layer{}, nil
	case strings.Contains(name, ":"): // block.c, path_has_protocol; "json:" too
		return layer{}, fmt.Errorf("%s has the backing file %q, which is no plain path: qemu-img rebase -u -b PATH -F FORMAT %[1]s", path, image.Backing)
	case image.BackingFormat == "":
		return layer{}, fmt.Errorf("%s does not say which format its backing file %s has, and vmrun does not guess: qemu-img rebase -u -b %[2]s -F qcow2 %[1]s, or -F raw", path, next.Path)
	case next.Format != configs.FormatQCOW2 && next.Format != configs.FormatRaw:
		return layer{}, fmt.Errorf("%s has a backing file of format %q: only qcow2 and raw will do: qemu-img convert -O qcow2 %s NEW.qcow2", path, image.BackingFormat, next.Path)
	}
	return next, nil
}

// from is where a path leads that an image names.
func from(image, name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(image), name)
}

func samePath(a, b string) bool {
	fa, errA := os.Stat(a)
	fb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(fa, fb)
}
