package launcher

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// truncated says that an image's file ends before what the image needs.
type truncated struct {
	what      string
	end, size uint64
}

func (t *truncated) Error() string {
	return fmt.Sprintf("is truncated: its file has %d bytes, and %s ends at byte %d: copy it again", t.size, t.what, t.end)
}

// maxFollowed is how many bytes of L2 tables are followed, those of a disk of 32 TiB in
// clusters of 64 KiB.
const maxFollowed = 4 << 30

// checkWhole checks that a file of that many bytes holds what its header, L1 table
// and refcount table point to, and what is allocated behind. It reads little: data
// that nothing points to any more may be missing, as it is after a crash.
func (i *qcow2Image) checkWhole(r io.ReaderAt, size int64) error {
	h, whole := &i.header, uint64(size)
	if err := inFile("its L1 table", h.L1Offset, uint64(h.L1Entries)*8, whole); err != nil {
		return err
	}
	if err := inFile("its refcount table", h.RefcountOffset, uint64(h.RefcountClusters)<<h.ClusterBits, whole); err != nil {
		return err
	}
	var tables uint64
	err := eachEntry(r, h.L1Offset, uint64(h.L1Entries), func(n, entry uint64) error {
		if entry&qcow2Offset != 0 {
			tables++
		}
		return h.pointsTo("an L2 table", entry&qcow2Offset, whole)
	})
	if err == nil && tables > whole/h.cluster() { // so one is named again and again
		err = damaged("it names %d L2 tables, more than its file has room for", tables)
	}
	if err != nil {
		return err
	}
	var last, lastAt uint64 // the last refcount block, and its place in the table
	err = eachEntry(r, h.RefcountOffset, uint64(h.RefcountClusters)<<h.ClusterBits/8, func(n, entry uint64) error {
		block := entry &^ 511
		if block != 0 {
			last, lastAt = block, n
		}
		return h.pointsTo("a refcount block", block, whole)
	})
	if err != nil || last == 0 {
		return err
	}
	highest, err := h.highestIn(r, last)
	if err != nil {
		return err
	}
	perBlock := h.cluster() * 8 >> h.RefcountOrder
	if beyond, at := bits.Mul64(lastAt*perBlock+highest, h.cluster()); beyond == 0 && at < whole {
		return nil
	}
	if tables > maxFollowed>>h.ClusterBits {
		return nil // of a file that is mostly holes they can be more than there is time for
	}
	return h.checkData(r, whole)
}

// inFile checks that a part of the file is there.
func inFile(what string, offset, length, size uint64) error {
	if length == 0 {
		return nil
	}
	if offset > size || length > size-offset {
		end, carry := bits.Add64(offset, length, 0)
		if carry != 0 {
			return damaged("%s is at byte %d", what, offset)
		}
		return &truncated{what, end, size}
	}
	return nil
}

// pointsTo checks where an entry of a table leads to, 0 being nowhere.
func (h *qcow2Header) pointsTo(what string, offset, size uint64) error {
	if offset == 0 {
		return nil
	}
	if offset%h.cluster() != 0 {
		return damaged("%s does not begin at a cluster's boundary", what)
	}
	return inFile(what, offset, h.cluster(), size)
}

// eachEntry calls fn with each entry of a table that is in the file.
func eachEntry(r io.ReaderAt, offset, count uint64, fn func(n, entry uint64) error) error {
	var buf [64 << 10]byte
	for n := uint64(0); n < count; {
		part := buf[:min(uint64(len(buf)), (count-n)*8)]
		if _, err := r.ReadAt(part, int64(offset+n*8)); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("cannot be read: %w", err)
		}
		for at := 0; at < len(part); at += 8 {
			if err := fn(n, binary.BigEndian.Uint64(part[at:])); err != nil {
				return err
			}
			n++
		}
	}
	return nil
}

// highestIn is the number of the last cluster of a refcount block that is in use,
// from 0, which is the block's first.
func (h *qcow2Header) highestIn(r io.ReaderAt, block uint64) (uint64, error) {
	data := make([]byte, h.cluster())
	if _, err := r.ReadAt(data, int64(block)); err != nil {
		return 0, fmt.Errorf("cannot be read: %w", err)
	}
	for at := len(data) - 1; at >= 0; at-- {
		if data[at] == 0 {
			continue
		}
		bit := uint64(at) * 8
		if h.RefcountOrder < 3 {
			bit += uint64(bits.Len8(data[at]) - 1)
		}
		return bit >> h.RefcountOrder, nil
	}
	return 0, nil
}

// checkData follows all L2 tables, for an image whose file ends before its last
// cluster.
func (h *qcow2Header) checkData(r io.ReaderAt, size uint64) error {
	step := h.l2Entry() / 8
	return eachEntry(r, h.L1Offset, uint64(h.L1Entries), func(_, entry uint64) error {
		table := entry & qcow2Offset
		if table == 0 {
			return nil
		}
		return eachEntry(r, table, h.cluster()/8, func(n, entry uint64) error {
			if n%step != 0 {
				return nil // of an extended entry the second half, which says what of it is there
			}
			return h.dataIn(entry, size)
		})
	})
}

// dataIn checks the cluster of an L2 entry. Its last bytes may be missing: they
// read as zeros.
func (h *qcow2Header) dataIn(entry, size uint64) error {
	const compressed, zeros = 1 << 62, 1
	offset := entry & qcow2Offset
	switch {
	case entry&compressed != 0:
		offset = entry & (1<<(62-(h.ClusterBits-8)) - 1)
	case entry&zeros != 0 && h.l2Entry() == 8: // whatever is there is not read
		return nil
	}
	if offset == 0 || offset < size {
		return nil
	}
	return &truncated{"its data", offset + 1, size}
}

// ImageSnapshot is an internal snapshot of a qcow2 image.
type ImageSnapshot struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Size    uint64 `json:"size"`               // of the disk then, in bytes
	VMState uint64 `json:"vm_state,omitempty"` // bytes of the guest's memory in it, 0 where it is of the disk alone
	Seconds uint32 `json:"seconds"`            // when, since 1970
}

// maxShotBytes bounds the snapshot table that is read (block/qcow2.h,
// QCOW_MAX_SNAPSHOTS_SIZE is 64 MiB); people do not have a thousandth of it.
const maxShotBytes = 4 << 20

// snapshots reads the table of internal snapshots.
func (i *qcow2Image) snapshots(r io.ReaderAt) ([]ImageSnapshot, error) {
	list := []ImageSnapshot{}
	at := i.header.SnapshotsOffset
	for range i.header.Snapshots {
		var head [40]byte
		if _, err := r.ReadAt(head[:], int64(at)); err != nil {
			return nil, damaged("its table of snapshots is cut off")
		}
		idLength, nameLength := uint64(binary.BigEndian.Uint16(head[12:])), uint64(binary.BigEndian.Uint16(head[14:]))
		extra := uint64(binary.BigEndian.Uint32(head[36:]))
		if extra > 1024 { // block/qcow2.h, QCOW_MAX_SNAPSHOT_EXTRA_DATA
			return nil, damaged("a snapshot has %d bytes of extra data", extra)
		}
		rest := make([]byte, extra+idLength+nameLength)
		if _, err := r.ReadAt(rest, int64(at)+int64(len(head))); err != nil {
			return nil, damaged("its table of snapshots is cut off")
		}
		s := ImageSnapshot{ID: string(rest[extra:][:idLength]), Name: string(rest[extra+idLength:]), Size: i.Size,
			Seconds: binary.BigEndian.Uint32(head[16:]), VMState: uint64(binary.BigEndian.Uint32(head[32:]))}
		if extra >= 8 {
			s.VMState = binary.BigEndian.Uint64(rest)
		}
		if extra >= 16 {
			s.Size = binary.BigEndian.Uint64(rest[8:])
		}
		list = append(list, s)
		at = (at + uint64(len(head)+len(rest)) + 7) &^ 7
		if at-i.header.SnapshotsOffset > maxShotBytes {
			return nil, damaged("its table of snapshots has more than %d bytes", maxShotBytes)
		}
	}
	return list, nil
}
