package launcher

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// makeImage runs qemu-img in a directory.
func makeImage(t testing.TB, dir string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		lack(t, "needs qemu-img: apt-get install qemu-utils")
	}
	cmd := exec.Command("qemu-img", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %q: %v: %s", args, err, out)
	}
}

// chains makes images of every kind in a directory.
func chains(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, args := range [][]string{
		{"create", "-f", "raw", "base.raw", "1M"},
		{"create", "-f", "qcow2", "base.qcow2", "1M"},
		{"create", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "1M"},
		{"create", "-f", "qcow2", "other.qcow2", "1M"},
		{"create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "overlay.qcow2"},
		{"create", "-f", "qcow2", "-b", filepath.Join(dir, "base.qcow2"), "-F", "qcow2", "absolute.qcow2"},
		{"create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "on-raw.qcow2"},
		{"create", "-f", "qcow2", "-b", "overlay.qcow2", "-F", "qcow2", "third.qcow2"},
		{"create", "-f", "qcow2", "-o", "data_file=base.raw,data_file_raw=on", "external.qcow2", "1M"},
		{"create", "-f", "vmdk", "strange.qcow2", "1M"},
	} {
		makeImage(t, dir, args...)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "short.qcow2"), []byte("QFI\xfb\x00"), 0o600),
		os.Symlink("base.qcow2", filepath.Join(dir, "link.qcow2")),
	); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestBackingFileOfRealImages(t *testing.T) {
	dir := chains(t)
	for _, tt := range []struct{ image, want string }{
		{"base.qcow2", ""},
		{"old.qcow2", ""},
		{"overlay.qcow2", "base.qcow2"},
		{"absolute.qcow2", filepath.Join(dir, "base.qcow2")},
		{"on-raw.qcow2", "base.raw"},
		{"third.qcow2", "overlay.qcow2"},
	} {
		t.Run(tt.image, func(t *testing.T) {
			got, err := backingFile(filepath.Join(dir, tt.image))
			if err != nil || got != tt.want {
				t.Errorf("%q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestOpenDisk(t *testing.T) {
	dir := chains(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	qcow2 := func(path, base string) configs.Disk {
		d := configs.Disk{Path: at(path), Format: configs.FormatQCOW2}
		if base != "" {
			d.Base, d.BaseFormat = at(base), configs.FormatQCOW2
		}
		return d
	}
	rawBase := qcow2("on-raw.qcow2", "base.raw")
	rawBase.BaseFormat = configs.FormatRaw
	readonly := configs.Disk{Path: at("base.raw"), Format: configs.FormatRaw, Readonly: true}
	for _, tt := range []struct {
		name  string
		disk  configs.Disk
		files map[string]int // access mode by name
		err   string
	}{
		{"raw", configs.Disk{Path: at("base.raw"), Format: configs.FormatRaw}, map[string]int{"disk0": unix.O_RDWR}, ""},
		{"read-only", readonly, map[string]int{"disk0": unix.O_RDONLY}, ""},
		{"overlay", qcow2("overlay.qcow2", "base.qcow2"), map[string]int{"disk0": unix.O_RDWR, "disk0-base": unix.O_RDONLY}, ""},
		{"absolute name", qcow2("absolute.qcow2", "base.qcow2"), map[string]int{"disk0": unix.O_RDWR, "disk0-base": unix.O_RDONLY}, ""},
		{"base by a link", qcow2("overlay.qcow2", "link.qcow2"), map[string]int{"disk0": unix.O_RDWR, "disk0-base": unix.O_RDONLY}, ""},
		{"overlay of a raw image", rawBase, map[string]int{"disk0": unix.O_RDWR, "disk0-base": unix.O_RDONLY}, ""},
		// A raw image whose guest has written a qcow2 header into it.
		{"header in a raw image", configs.Disk{Path: at("overlay.qcow2"), Format: configs.FormatRaw}, map[string]int{"disk0": unix.O_RDWR}, ""},

		{"undeclared backing file", qcow2("overlay.qcow2", ""), nil,
			at("overlay.qcow2") + ` is an overlay of "base.qcow2": declare it with base, or merge the two: qemu-img rebase -b '' ` + at("overlay.qcow2")},
		{"declared, but none", qcow2("other.qcow2", "base.qcow2"), nil,
			at("other.qcow2") + " has no backing file: leave base out, or remove the image to have an overlay made"},
		{"another base", qcow2("overlay.qcow2", "other.qcow2"), nil,
			at("overlay.qcow2") + " is an overlay of " + at("base.qcow2") + ", not of base " + at("other.qcow2")},
		{"a third layer", qcow2("third.qcow2", "overlay.qcow2"), nil,
			at("overlay.qcow2") + ` is an overlay of "base.qcow2": declare it with base, or merge the two: qemu-img rebase -b '' ` + at("overlay.qcow2")},
		{"data in another file", qcow2("external.qcow2", ""), nil,
			at("external.qcow2") + " keeps its data in another file, which QEMU would open by a name in the image: merge them: qemu-img convert -O qcow2 " + at("external.qcow2") + " NEW.qcow2"},
		{"not a qcow2", qcow2("strange.qcow2", ""), nil, at("strange.qcow2") + ` is no qcow2 image: set format = "raw" if it is a raw one`},
		{"too short", qcow2("short.qcow2", ""), nil, at("short.qcow2") + " is no qcow2 image: it ends within its header"},
		{"missing", qcow2("nowhere.qcow2", ""), nil, "open " + at("nowhere.qcow2") + ": no such file or directory"},
		{"missing raw", configs.Disk{Path: at("nowhere.raw"), Format: configs.FormatRaw}, nil, "open " + at("nowhere.raw") + ": no such file or directory"},
		{"a directory", configs.Disk{Path: dir, Format: configs.FormatRaw}, nil, "open " + dir + ": is a directory"},
		{"a directory as qcow2", configs.Disk{Path: dir, Format: configs.FormatQCOW2}, nil, "open " + dir + ": not a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &life{files: map[string]*os.File{}}
			defer l.closeFiles()
			err := l.openDisk(0, tt.disk)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("%v\nwant %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			modes := map[string]int{}
			for name, f := range l.files {
				flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
				if err != nil {
					t.Fatal(err)
				}
				modes[name] = flags & unix.O_ACCMODE
			}
			if diff := cmp.Diff(tt.files, modes); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// header is a qcow2 header (docs/interop/qcow2.txt) with what is read of it.
func header(magic string, version uint32, offset uint64, length uint32, rest string) []byte {
	var b bytes.Buffer
	b.WriteString(magic)
	binary.Write(&b, binary.BigEndian, version)
	binary.Write(&b, binary.BigEndian, offset)
	binary.Write(&b, binary.BigEndian, length)
	b.Write(make([]byte, 104-b.Len()))
	b.WriteString(rest)
	return b.Bytes()
}

func TestBackingFileOfCraftedHeaders(t *testing.T) {
	const magic = "QFI\xfb"
	for _, tt := range []struct {
		name string
		data []byte
		want string
		err  string
	}{
		{"good", header(magic, 3, 104, 4, "base"), "base", ""},
		{"nothing", nil, "", "it ends within its header"},
		{"magic alone", []byte(magic), "", "it ends within its header"},
		{"wrong magic", header("QFI\xfa", 3, 0, 0, ""), "", "is no qcow2 image"},
		{"version 1", header(magic, 1, 0, 0, ""), "", "is no qcow2 image"},
		{"version 4", header(magic, 4, 0, 0, ""), "", "is no qcow2 image"},
		{"name of 4 GiB", header(magic, 3, 104, 1<<32-1, "base"), "", "backing file name of 4294967295 bytes: damaged"},
		{"name of 1024 bytes", header(magic, 3, 104, 1024, strings.Repeat("x", 1024)), "", "backing file name of 1024 bytes: damaged"},
		{"name of 1023 bytes", header(magic, 3, 104, 1023, strings.Repeat("x", 1023)), strings.Repeat("x", 1023), ""},
		{"offset beyond the end", header(magic, 3, 1<<20, 4, "base"), "", "backing file name: EOF"},
		{"offset that is negative as a signed one", header(magic, 3, 1<<63, 4, "base"), "", "negative offset"},
		{"all ones", header(magic, 3, 1<<64-1, 4, "base"), "", "negative offset"},
		{"name cut short", header(magic, 3, 104, 9, "base"), "", "backing file name: EOF"},
		{"no name, but an offset", header(magic, 3, 104, 0, ""), "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(path, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := backingFile(path)
			if got != tt.want || (err == nil) != (tt.err == "") || (err != nil && !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("%q, %v; want %q, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func FuzzBackingFile(f *testing.F) {
	f.Add(header("QFI\xfb", 3, 104, 4, "base"))
	f.Add(header("QFI\xfb", 2, 1<<63+5, 1023, "base"))
	f.Add([]byte("QFI\xfb"))
	path := filepath.Join(f.TempDir(), "image")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		name, err := backingFile(path)
		if err != nil && name != "" {
			t.Errorf("%q beside %v", name, err)
		}
		if len(name) > 1023 || !bytes.Contains(data, []byte(name)) {
			t.Errorf("%q comes from nowhere", name)
		}
	})
}

func TestCreateDisk(t *testing.T) {
	dir := chains(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	overlay := func(path, base string, format configs.DiskFormat, size configs.Size) configs.Disk {
		return configs.Disk{Path: at(path), Format: configs.FormatQCOW2, Base: at(base), BaseFormat: format, Size: size}
	}
	for _, tt := range []struct {
		name    string
		disk    configs.Disk
		backing string
		err     string
	}{
		{"raw", configs.Disk{Path: at("new.raw"), Format: configs.FormatRaw, Size: 2 << 20}, "", ""},
		{"qcow2", configs.Disk{Path: at("new.qcow2"), Format: configs.FormatQCOW2, Size: 2 << 20}, "", ""},
		{"overlay", overlay("new1.qcow2", "base.qcow2", configs.FormatQCOW2, 0), at("base.qcow2"), ""},
		{"overlay of raw", overlay("new5.qcow2", "base.raw", configs.FormatRaw, 0), at("base.raw"), ""},
		{"larger overlay of raw", overlay("new2.qcow2", "base.raw", configs.FormatRaw, 4<<20), at("base.raw"), ""},
		{"named like an option", configs.Disk{Path: at("-o.raw"), Format: configs.FormatRaw, Size: 1 << 20}, "", ""},
		{"base with a base", overlay("new3.qcow2", "overlay.qcow2", configs.FormatQCOW2, 0), "", "is an overlay of"},
		{"base missing", overlay("new4.qcow2", "nowhere.qcow2", configs.FormatQCOW2, 0), "", "no such file"},
		{"no directory for it", configs.Disk{Path: at("none/new.raw"), Format: configs.FormatRaw, Size: 1 << 20}, "", "no such file"},
		{"too large", configs.Disk{Path: at("huge.raw"), Format: configs.FormatRaw, Size: 1<<63 - 512}, "", "qemu-img: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &life{files: map[string]*os.File{}}
			err := l.createDisk(context.Background(), tt.disk)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v, want %q in one line", err, tt.err)
				}
			} else if err != nil {
				t.Fatal(err)
			} else if tt.disk.Format == configs.FormatQCOW2 {
				if got, err := backingFile(tt.disk.Path); err != nil || got != tt.backing {
					t.Errorf("backing file %q, %v; want %q", got, err, tt.backing)
				}
				want := uint64(tt.disk.Size)
				if want == 0 { // as QEMU sees its base
					want = virtualSize(t, tt.disk.Base)
				}
				if got := virtualSize(t, tt.disk.Path); got != want {
					t.Errorf("it holds a disk of %d bytes, want %d", got, want)
				}
			}
			if err := l.undo.run(); err != nil {
				t.Errorf("undo: %v", err)
			}
			if _, err := os.Stat(tt.disk.Path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("left behind: %v", err)
			}
		})
	}
}

// virtualSize is the size of the disk in an image, as QEMU has it.
func virtualSize(t *testing.T, path string) uint64 {
	t.Helper()
	var info struct {
		Size uint64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(qemuImg(t, "info", "--output=json", path)), &info); err != nil {
		t.Fatal(err)
	}
	return info.Size
}

// A disk that somebody has made since the plan is somebody's.
func TestCreateDiskSparesOthers(t *testing.T) {
	dir := chains(t)
	path := filepath.Join(dir, "base.raw")
	content := bytes.Repeat([]byte("precious"), 1<<17)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	l := &life{files: map[string]*os.File{}}
	err := l.createDisk(context.Background(), configs.Disk{Path: path, Format: configs.FormatRaw, Size: 2 << 20})
	if !errors.Is(err, os.ErrExist) {
		t.Errorf("%v, want that it exists", err)
	}
	if err := l.undo.run(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the disk is not as it was: %d bytes, %v", len(got), err)
	}
}

func TestCreatedDiskStaysOnceCommitted(t *testing.T) {
	path := filepath.Join(chains(t), "new.raw")
	l := &life{files: map[string]*os.File{}}
	if err := l.createDisk(context.Background(), configs.Disk{Path: path, Format: configs.FormatRaw, Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	l.committed = true
	if err := l.undo.run(); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("%v, %v; want it there, for root alone", info, err)
	}
}

func TestCreateDiskWithoutQEMUImg(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	path := filepath.Join(t.TempDir(), "new.raw")
	l := &life{files: map[string]*os.File{}}
	err := l.createDisk(context.Background(), configs.Disk{Path: path, Format: configs.FormatRaw, Size: 1 << 20})
	if want := fmt.Sprintf("create %s: qemu-img is not installed: apt-get install qemu-utils", path); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := l.undo.run(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

func TestSealedCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("k", 255))
	content := bytes.Repeat([]byte("kernel "), 10_000)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := sealedCopy(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.WriteFile(path, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/dev/fd/%d", f.Fd())
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v; want the copy's %d", len(got), err, len(content))
	}
	_, writeErr := f.WriteAt([]byte("x"), 0)
	_, growErr := f.WriteAt([]byte("x"), int64(len(content)))
	_, sealErr := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_EXEC)
	_, mapErr := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	for what, err := range map[string]error{
		"write": writeErr, "grow": growErr, "shrink": f.Truncate(1), "another seal": sealErr, "map for writing": mapErr,
	} {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v, want EPERM", what, err)
		}
	}
	if again, err := os.OpenFile(name, os.O_RDWR|os.O_TRUNC, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncated by its name: %v", err)
		again.Close()
	}
	for _, bad := range []string{filepath.Join(t.TempDir(), "missing"), t.TempDir()} {
		if f, err := sealedCopy(bad); err == nil {
			t.Errorf("copied %s", bad)
			f.Close()
		}
	}
}
