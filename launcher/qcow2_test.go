package launcher

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmrun/configs"
)

// goodHeader is that of a disk of 1 MiB in clusters of 64 KiB, in a file of four.
func goodHeader() qcow2Header {
	return qcow2Header{Magic: qcow2Magic, Version: 3, ClusterBits: 16, Size: 1 << 20, L1Entries: 1, L1Offset: 3 << 16,
		RefcountOffset: 1 << 16, RefcountClusters: 1, RefcountOrder: 4, Length: qcow2V3Size}
}

// imageOf is a file with that header, and what follows on it, of four clusters.
func imageOf(h qcow2Header, rest string) []byte {
	var b bytes.Buffer
	binary.Write(&b, binary.BigEndian, h)
	data := make([]byte, 4<<16)
	copy(data, b.Bytes())
	copy(data[qcow2V3Size:], rest)
	return data
}

// extension is a header extension.
func extension(kind uint32, data string) string {
	head := binary.BigEndian.AppendUint32(nil, kind)
	head = binary.BigEndian.AppendUint32(head, uint32(len(data)))
	return string(head) + data + strings.Repeat("\x00", (8-len(data)%8)%8)
}

func TestReadQCOW2(t *testing.T) {
	with := func(change func(*qcow2Header)) []byte {
		h := goodHeader()
		change(&h)
		return imageOf(h, "")
	}
	name := func(offset uint64, length uint32) []byte {
		return with(func(h *qcow2Header) { h.BackingOffset, h.BackingLength = offset, length })
	}
	extended := func(rest string) []byte { return imageOf(goodHeader(), rest) }
	entry := func(at int, value uint64) []byte {
		data := imageOf(goodHeader(), "")
		binary.BigEndian.PutUint64(data[at:], value)
		return data
	}
	const l1, refcounts = 3 << 16, 1 << 16
	for _, tt := range []struct {
		name string
		data []byte
		err  string
	}{
		{"good", imageOf(goodHeader(), ""), ""},
		{"nothing", nil, "it ends within its header"},
		{"magic alone", []byte("QFI\xfb"), "it ends within its header"},
		{"version 3 as short as version 2", imageOf(goodHeader(), "")[:100], "it ends within its header"},
		{"wrong magic", with(func(h *qcow2Header) { h.Magic++ }), "is no qcow2 image"},
		{"version 1", with(func(h *qcow2Header) { h.Version = 1 }), "is no qcow2 image"},
		{"version 4", with(func(h *qcow2Header) { h.Version = 4 }), "is no qcow2 image"},
		{"clusters of 256 bytes", with(func(h *qcow2Header) { h.ClusterBits = 8 }), "clusters of 2^8 bytes"},
		{"clusters of 4 MiB", with(func(h *qcow2Header) { h.ClusterBits = 22 }), "clusters of 2^22 bytes"},
		{"clusters of all bytes", with(func(h *qcow2Header) { h.ClusterBits = math.MaxUint32 }), "clusters of 2^"},
		{"short header", with(func(h *qcow2Header) { h.Length = 96 }), "a header of 96 bytes"},
		{"long header", with(func(h *qcow2Header) { h.Length = 1 << 20 }), "a header of 1048576 bytes"},
		{"odd header", with(func(h *qcow2Header) { h.Length = 105 }), "a header of 105 bytes"},
		{"dirty", imageOf(func() qcow2Header { h := goodHeader(); h.Incompatible = qcow2Dirty; return h }(), ""), ""},
		{"corrupt", with(func(h *qcow2Header) { h.Incompatible = qcow2Corrupt }), "marked it as corrupt"},
		{"data file", with(func(h *qcow2Header) { h.Incompatible = qcow2DataFile }), "keeps its data in another file"},
		{"unknown feature", with(func(h *qcow2Header) { h.Incompatible = 1 << 63 }), "has features that vmrun does not know (0x8000000000000000)"},
		{"encrypted with AES", with(func(h *qcow2Header) { h.Crypt = 1 }), "is encrypted"},
		{"encrypted with LUKS", extended(extension(qcow2ExtEncryption, "1234567890123456")), "is encrypted"},
		{"data file without its mark", extended(extension(qcow2ExtDataFile, "/etc/shadow")), "names another file for its data"},
		{"refcounts of 128 bits", with(func(h *qcow2Header) { h.RefcountOrder = 7 }), "refcounts of 2^7 bits"},
		{"name of 4 GiB", name(104, math.MaxUint32), "backing file name of 4294967295 bytes"},
		{"name of 1024 bytes", name(104, 1024), "backing file name of 1024 bytes"},
		{"name within the header", name(8, 4), "is not in its first cluster"},
		{"name beyond the first cluster", name(1<<16-2, 4), "is not in its first cluster"},
		{"name beyond the end", name(math.MaxUint64, 4), "is not in its first cluster"},
		{"name with a line break", func() []byte {
			h := goodHeader()
			h.BackingOffset, h.BackingLength = 104, 5
			return imageOf(h, "a\nb\x00c")
		}(), "control characters"},
		{"many snapshots", with(func(h *qcow2Header) { h.Snapshots = 65537 }), "65537 snapshots"},
		{"huge L1 table", with(func(h *qcow2Header) { h.L1Entries = math.MaxUint32 }), "an L1 table of 4294967295 entries"},
		{"small L1 table", with(func(h *qcow2Header) { h.Size = 1 << 40 }), "its L1 table has 1 entries, and a disk of 1099511627776 bytes needs 2048"},
		{"huge disk", with(func(h *qcow2Header) { h.Size = math.MaxUint64 }), "its L1 table has 1 entries"},
		{"odd L1 offset", with(func(h *qcow2Header) { h.L1Offset++ }), "does not begin at a cluster's boundary"},
		{"no refcounts", with(func(h *qcow2Header) { h.RefcountOffset = 0 }), "no refcount table"},
		{"huge refcount table", with(func(h *qcow2Header) { h.RefcountClusters = math.MaxUint32 }), "a refcount table of 4294967295 clusters"},
		{"long extension", extended("\x00\x00\x00\x01\xff\xff\xff\xff"), "a header extension of 4294967295 bytes"},
		{"unknown extension", extended(extension(1, "whatever") + extension(qcow2ExtFormat, "raw")), ""},

		{"L1 beyond the end", with(func(h *qcow2Header) { h.L1Offset = 1 << 40 }), "is truncated: its file has 262144 bytes, and its L1 table ends at byte 1099511627784: copy it again"},
		{"L1 beyond everything", with(func(h *qcow2Header) { h.L1Offset = math.MaxUint64 &^ 0xffff; h.L1Entries = 1 << 20 }), "its L1 table is at byte 18446744073709486080"},
		{"refcounts beyond the end", with(func(h *qcow2Header) { h.RefcountOffset = 1 << 40 }), "its refcount table ends at"},
		{"L2 beyond the end", entry(l1, 1<<63|4<<16), "is truncated: its file has 262144 bytes, and an L2 table ends at byte 327680"},
		{"L2 at no boundary", entry(l1, 1<<63|512), "an L2 table does not begin at"},
		{"L2 tables without room", func() []byte {
			h := goodHeader()
			h.L1Entries = 5
			data := imageOf(h, "")
			for n := range 5 {
				binary.BigEndian.PutUint64(data[l1+8*n:], 1<<63|2<<16)
			}
			return data
		}(), "is damaged: it names 5 L2 tables, more than its file has room for"},
		{"refcount block beyond the end", entry(refcounts, 9<<16), "a refcount block ends at byte"},
		{"data beyond the end", func() []byte {
			data := imageOf(goodHeader(), "")
			binary.BigEndian.PutUint64(data[l1:], 1<<63|2<<16)
			binary.BigEndian.PutUint64(data[2<<16:], 1<<63|77<<16)
			binary.BigEndian.PutUint64(data[refcounts+8:], 2<<16) // some cluster from the 32768th on is in use
			return data
		}(), "its data ends at"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, size := bytes.NewReader(tt.data), int64(len(tt.data))
			image, err := readQCOW2(r, size)
			if err == nil {
				err = image.checkWhole(r, size)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%v, want %q", err, tt.err)
			}
		})
	}
	image, err := readQCOW2(bytes.NewReader(extended(extension(qcow2ExtFormat, "raw"))), 4<<16)
	if err != nil || image.BackingFormat != "raw" || image.Size != 1<<20 {
		t.Errorf("%+v, %v", image, err)
	}
}

// TestTruncatedImages cuts images of real content short everywhere: each cut that
// loses something is noticed.
func TestTruncatedImages(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	content := bytes.Repeat([]byte("not zeros"), 100_000)
	if err := os.WriteFile(at("content.raw"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string]string{
		"plain": "cluster_size=64k", "small": "cluster_size=4k", "old": "compat=0.10", "bits": "refcount_bits=1", "wide": "refcount_bits=64",
		"lazy": "lazy_refcounts=on", "extended": "extended_l2=on",
	} {
		makeImage(t, dir, "convert", "-f", "raw", "-O", "qcow2", "-o", options, "content.raw", name)
	}
	makeImage(t, dir, "convert", "-c", "-f", "raw", "-O", "qcow2", "content.raw", "compressed")
	for _, name := range []string{"plain", "small", "old", "bits", "wide", "lazy", "extended", "compressed"} {
		data, err := os.ReadFile(at(name))
		if err != nil {
			t.Fatal(err)
		}
		check := func(size int) error {
			image, err := readQCOW2(bytes.NewReader(data[:size]), int64(size))
			if err == nil {
				err = image.checkWhole(bytes.NewReader(data[:size]), int64(size))
			}
			return err
		}
		if err := check(len(data)); err != nil {
			t.Errorf("%s as it is: %v", name, err)
		}
		for size := len(data) - 1<<16 - 1; size > 0; size -= 13_001 {
			if check(size) == nil {
				t.Errorf("%s of %d bytes, cut to %d, seems whole", name, len(data), size)
			}
		}
	}
}

// FuzzQCOW2 has the reader read anything: it ends, in bounded memory, and believes
// no more than there is.
func FuzzQCOW2(f *testing.F) {
	f.Add(imageOf(goodHeader(), ""))
	h := goodHeader()
	h.BackingOffset, h.BackingLength, h.Snapshots, h.SnapshotsOffset = 136, 4, 1, 2<<16
	f.Add(imageOf(h, extension(qcow2ExtFormat, "qcow2")+extension(0, "")+"base"))
	h.Version, h.ClusterBits = 2, 9
	f.Add(imageOf(h, ""))
	f.Add([]byte("QFI\xfb"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, size := bytes.NewReader(data), int64(len(data))
		image, err := readQCOW2(r, size)
		if err != nil {
			if image.Backing != "" || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("%q beside %q", image.Backing, err)
			}
			return
		}
		if len(image.Backing) > qcow2NameLength || !bytes.Contains(data, []byte(image.Backing)) || strings.Contains(image.Backing, "\n") {
			t.Errorf("%q comes from nowhere", image.Backing)
		}
		_ = image.checkWhole(r, size)
		if list, err := image.snapshots(r); err == nil && len(list) != int(image.header.Snapshots) {
			t.Errorf("%d snapshots of %d", len(list), image.header.Snapshots)
		}
		if next, err := backing("/a/b", image); err == nil && next.Path != "" && (!filepath.IsAbs(next.Path) || next.Format != configs.FormatRaw && next.Format != configs.FormatQCOW2) {
			t.Errorf("%+v", next)
		}
	})
}
