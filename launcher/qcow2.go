package launcher

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A strict reader of qcow2 images (QEMU's docs/interop/qcow2.txt). It tells what an
// image's layers are without QEMU, which would follow what the image names, and
// refuses what QEMU would refuse later with fewer words. What it reads may be
// written by anybody: nothing in it is believed that the file's own size denies.

// qcow2Header is a header as it is in the file; version 2 ends before Incompatible.
type qcow2Header struct {
	Magic, Version   uint32
	BackingOffset    uint64
	BackingLength    uint32
	ClusterBits      uint32
	Size             uint64 // of the disk, in bytes
	Crypt            uint32
	L1Entries        uint32
	L1Offset         uint64
	RefcountOffset   uint64
	RefcountClusters uint32
	Snapshots        uint32
	SnapshotsOffset  uint64
	Incompatible     uint64 // features that a reader has to know
	Compatible       uint64
	Autoclear        uint64
	RefcountOrder    uint32
	Length           uint32
}

const (
	qcow2Magic  = 0x514649fb
	qcow2V2Size = 72
	qcow2V3Size = 104

	qcow2Dirty      = 1 << 0 // its refcounts may be too low
	qcow2Corrupt    = 1 << 1 // QEMU has found it damaged
	qcow2DataFile   = 1 << 2 // the data is in another file, which the image names
	qcow2Compressed = 1 << 3 // in another way than zlib's
	qcow2Extended   = 1 << 4 // L2 entries of 16 bytes
	qcow2Known      = 1<<5 - 1

	qcow2NameLength = 1023
	qcow2MaxL1      = 32 << 20 // bytes (block/qcow2.h, QCOW_MAX_L1_SIZE)
	qcow2MaxRef     = 8 << 20  // bytes of the refcount table
	qcow2MaxShots   = 65536

	qcow2ExtEnd        = 0
	qcow2ExtFormat     = 0xe2792aca // the backing file's format
	qcow2ExtDataFile   = 0x44415441
	qcow2ExtEncryption = 0x0537be77

	qcow2Offset = 0x00fffffffffffe00 // of an L1 or L2 entry: where it points to
)

// qcow2Image is what a header says.
type qcow2Image struct {
	Size          uint64 // of the disk, in bytes
	Backing       string // as it is named in the image, "" for none
	BackingFormat string // "" where the image does not say
	Version       uint32

	header qcow2Header
}

// readQCOW2 reads the header of an image in a file of that many bytes. An error is
// words that go behind the image's path.
func readQCOW2(r io.ReaderAt, size int64) (qcow2Image, error) {
	h, err := readHeader(r, size)
	if err != nil {
		return qcow2Image{}, err
	}
	image := qcow2Image{Size: h.Size, Version: h.Version, header: h}
	if err := h.check(); err != nil {
		return qcow2Image{}, err
	}
	extensions, err := h.extensions(r, size)
	if err != nil {
		return qcow2Image{}, err
	}
	image.BackingFormat = extensions
	if h.BackingOffset == 0 {
		return image, nil
	}
	name := make([]byte, h.BackingLength)
	if _, err := r.ReadAt(name, int64(h.BackingOffset)); err != nil {
		return qcow2Image{}, damaged("the name of its backing file is cut off")
	}
	if bytes.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return qcow2Image{}, damaged("the name of its backing file has control characters")
	}
	image.Backing = string(name)
	return image, nil
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("is damaged: "+format, args...)
}

func readHeader(r io.ReaderAt, size int64) (h qcow2Header, err error) {
	data := make([]byte, binary.Size(h))
	n, err := r.ReadAt(data[:min(int64(len(data)), max(size, 0))], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return h, fmt.Errorf("cannot be read: %w", err)
	}
	if n < qcow2V2Size {
		return h, errors.New("is no qcow2 image: it ends within its header")
	}
	if err := binary.Read(bytes.NewReader(data), binary.BigEndian, &h); err != nil {
		return h, err
	}
	switch {
	case h.Magic != qcow2Magic || h.Version < 2 || h.Version > 3:
		return h, errors.New(`is no qcow2 image: set format = "raw" if it is a raw one`)
	case h.Version == 2:
		h.Incompatible, h.Compatible, h.Autoclear, h.RefcountOrder, h.Length = 0, 0, 0, 4, qcow2V2Size
	case n < qcow2V3Size:
		return h, errors.New("is no qcow2 image: it ends within its header")
	}
	return h, nil
}

// check finds what no reader can go on with (block/qcow2.c, qcow2_do_open).
func (h *qcow2Header) check() error {
	switch {
	case h.ClusterBits < 9 || h.ClusterBits > 21:
		return damaged("clusters of 2^%d bytes", h.ClusterBits)
	case h.Version > 2 && (h.Length < qcow2V3Size || h.Length%8 != 0 || uint64(h.Length) > h.cluster()):
		return damaged("a header of %d bytes", h.Length)
	case h.Incompatible&qcow2DataFile != 0:
		return errors.New("keeps its data in another file, which QEMU would open by a name in the image: merge them: qemu-img convert -O qcow2 OLD NEW.qcow2")
	case h.Incompatible&^qcow2Known != 0:
		return fmt.Errorf("has features that vmrun does not know (%#x): a newer QEMU made it: qemu-img convert -O qcow2 OLD NEW.qcow2 there", h.Incompatible&^qcow2Known)
	case h.Incompatible&qcow2Corrupt != 0:
		return damaged("QEMU has marked it as corrupt: qemu-img check -r all mends what can be mended")
	case h.Crypt != 0:
		return errors.New("is encrypted, and vmrun has no key: qemu-img convert makes one that is not")
	case h.RefcountOrder > 6:
		return damaged("refcounts of 2^%d bits", h.RefcountOrder)
	case h.BackingOffset != 0 && h.BackingLength > qcow2NameLength:
		return damaged("backing file name of %d bytes", h.BackingLength)
	case h.BackingOffset != 0 && (h.BackingOffset < uint64(h.Length) || h.BackingOffset > h.cluster() || uint64(h.BackingLength) > h.cluster()-h.BackingOffset):
		return damaged("the name of its backing file is not in its first cluster")
	case h.Snapshots > qcow2MaxShots:
		return damaged("%d snapshots", h.Snapshots)
	}
	return h.checkTables()
}

// checkTables checks where the tables are, and how large.
func (h *qcow2Header) checkTables() error {
	covers := h.covers()
	need := h.Size/covers + min(h.Size%covers, 1)
	switch {
	case uint64(h.L1Entries)*8 > qcow2MaxL1:
		return damaged("an L1 table of %d entries", h.L1Entries)
	case uint64(h.L1Entries) < need:
		return damaged("its L1 table has %d entries, and a disk of %d bytes needs %d", h.L1Entries, h.Size, need)
	case h.L1Offset%h.cluster() != 0, h.RefcountOffset%h.cluster() != 0, h.SnapshotsOffset%h.cluster() != 0:
		return damaged("a table does not begin at a cluster's boundary")
	case h.RefcountOffset == 0 || h.RefcountClusters == 0:
		return damaged("it has no refcount table")
	case uint64(h.RefcountClusters)<<h.ClusterBits > max(qcow2MaxRef, h.cluster()):
		return damaged("a refcount table of %d clusters", h.RefcountClusters)
	}
	return nil
}

// cluster is how many bytes a cluster has, and covers how many of the disk an L1
// entry stands for.
func (h *qcow2Header) cluster() uint64 { return 1 << h.ClusterBits }
func (h *qcow2Header) covers() uint64  { return h.cluster() / h.l2Entry() * h.cluster() }

// l2Entry is how many bytes an L2 entry has.
func (h *qcow2Header) l2Entry() uint64 {
	if h.Incompatible&qcow2Extended != 0 {
		return 16
	}
	return 8
}

// extensions reads the header's extensions, of which it returns the format of the
// backing file.
func (h *qcow2Header) extensions(r io.ReaderAt, size int64) (format string, err error) {
	end := h.cluster()
	if h.BackingOffset != 0 {
		end = h.BackingOffset
	}
	end = min(end, uint64(max(size, 0)))
	for at := uint64(h.Length); at+8 <= end; {
		var head [8]byte
		if _, err := r.ReadAt(head[:], int64(at)); err != nil {
			return "", fmt.Errorf("cannot be read: %w", err)
		}
		kind, length := binary.BigEndian.Uint32(head[:]), uint64(binary.BigEndian.Uint32(head[4:]))
		at += 8
		switch {
		case kind == qcow2ExtEnd:
			return format, nil
		case length > end-at:
			return "", damaged("a header extension of %d bytes", length)
		case kind == qcow2ExtDataFile:
			return "", errors.New("names another file for its data, without the mark that it has one: qemu-img convert makes one without")
		case kind == qcow2ExtEncryption:
			return "", errors.New("is encrypted, and vmrun has no key: qemu-img convert makes one that is not")
		case kind == qcow2ExtFormat:
			text := make([]byte, min(length, 16))
			if _, err := r.ReadAt(text, int64(at)); err != nil {
				return "", fmt.Errorf("cannot be read: %w", err)
			}
			format = strings.TrimRight(string(text), "\x00")
		}
		at += (length + 7) &^ 7
	}
	return format, nil
}
