package launcher

import (
	"bytes"
	"context"
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
		{"create", "-f", "qcow2", "-b", "third.qcow2", "-F", "qcow2", "fourth.qcow2"},
		{"create", "-f", "qcow2", "-b", "on-raw.qcow2", "-F", "qcow2", "raw-third.qcow2"},
		// What images may say of what is below them, as whoever can write them pleases.
		{"create", "-f", "qcow2", "-u", "-b", "base.qcow2", "-F", "qcow2", "unsaid.qcow2", "1M"},
		{"create", "-f", "qcow2", "-u", "-b", "nowhere.qcow2", "-F", "qcow2", "lost.qcow2", "1M"},
		{"create", "-f", "qcow2", "-u", "-b", "strange.qcow2", "-F", "vmdk", "foreign.qcow2", "1M"},
		{"create", "-f", "qcow2", "-u", "-b", "nbd://localhost/x", "-F", "raw", "network.qcow2", "1M"},
		{"create", "-f", "qcow2", "-u", "-b", `json:{"driver":"file","filename":"base.raw"}`, "-F", "raw", "json.qcow2", "1M"},
		{"create", "-f", "qcow2", "-u", "-b", "/dev/zero", "-F", "raw", "device.qcow2", "1M"},
		{"create", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", "passwd.qcow2", "1M"},
		{"create", "-f", "qcow2", "-u", "-b", "loop-b.qcow2", "-F", "qcow2", "loop-a.qcow2", "1M"},
		{"create", "-f", "qcow2", "-u", "-b", "loop-a.qcow2", "-F", "qcow2", "loop-b.qcow2", "1M"},
		{"create", "-f", "qcow2", "-u", "-b", "./itself.qcow2", "-F", "qcow2", "itself.qcow2", "1M"},
	} {
		makeImage(t, dir, args...)
	}
	unsaid, err := os.ReadFile(filepath.Join(dir, "unsaid.qcow2"))
	if err := errors.Join(err,
		os.WriteFile(filepath.Join(dir, "unsaid.qcow2"), bytes.Replace(unsaid, []byte("\xe2\x79\x2a\xca"), []byte("\x00\x00\x00\x01"), 1), 0o600),
		os.WriteFile(filepath.Join(dir, "short.qcow2"), []byte("QFI\xfb\x00"), 0o600),
		os.WriteFile(filepath.Join(dir, "empty.raw"), nil, 0o600),
		os.Symlink("base.qcow2", filepath.Join(dir, "link.qcow2")),
	); err != nil {
		t.Fatal(err)
	}
	return dir
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
	over := func(name string) configs.Disk { // on a base that has one itself
		makeImage(t, dir, "create", "-f", "qcow2", "-u", "-b", name+".qcow2", "-F", "qcow2", "over-"+name+".qcow2", "1M")
		return qcow2("over-"+name+".qcow2", name+".qcow2")
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
		{"three layers", qcow2("third.qcow2", "overlay.qcow2"), map[string]int{"disk0": unix.O_RDWR, "disk0-base": unix.O_RDONLY, "disk0-base2": unix.O_RDONLY}, ""},
		{"four layers", qcow2("fourth.qcow2", "third.qcow2"),
			map[string]int{"disk0": unix.O_RDWR, "disk0-base": unix.O_RDONLY, "disk0-base2": unix.O_RDONLY, "disk0-base3": unix.O_RDONLY}, ""},
		{"three layers, the last raw", qcow2("raw-third.qcow2", "on-raw.qcow2"), map[string]int{"disk0": unix.O_RDWR, "disk0-base": unix.O_RDONLY, "disk0-base2": unix.O_RDONLY}, ""},
		{"another format than declared", configs.Disk{Path: at("overlay.qcow2"), Format: configs.FormatQCOW2, Base: at("base.qcow2"), BaseFormat: configs.FormatRaw}, nil,
			at("overlay.qcow2") + ` says that the format of its base is "qcow2", and the spec says "raw": set base_format`},
		{"a base of unsaid format", over("unsaid"), nil, at("unsaid.qcow2") + " does not say which format its backing file " + at("base.qcow2") +
			" has, and vmrun does not guess: qemu-img rebase -u -b " + at("base.qcow2") + " -F qcow2 " + at("unsaid.qcow2") + ", or -F raw"},
		{"a base of strange format", over("foreign"), nil,
			at("foreign.qcow2") + ` has a backing file of format "vmdk": only qcow2 and raw will do: qemu-img convert -O qcow2 ` + at("strange.qcow2") + " NEW.qcow2"},
		{"a base on the network", over("network"), nil,
			at("network.qcow2") + ` has the backing file "nbd://localhost/x", which is no plain path: qemu-img rebase -u -b PATH -F FORMAT ` + at("network.qcow2")},
		{"a base in JSON", over("json"), nil,
			at("json.qcow2") + ` has the backing file "json:{\"driver\":\"file\",\"filename\":\"base.raw\"}", which is no plain path: qemu-img rebase -u -b PATH -F FORMAT ` + at("json.qcow2")},
		{"a base that is a device", over("device"), nil, "open /dev/zero: not a regular file, by way of " + at("over-device.qcow2") + ", " + at("device.qcow2")},
		{"a base that is no disk", over("passwd"), nil, "/etc/passwd is no disk: "},
		{"a base that is not there", over("lost"), nil, "open " + at("nowhere.qcow2") + ": no such file or directory, by way of " + at("over-lost.qcow2") + ", " + at("lost.qcow2")},
		{"a loop", over("loop-a"), nil, at("loop-a.qcow2") + " is its own base, by way of " +
			at("over-loop-a.qcow2") + ", " + at("loop-a.qcow2") + ", " + at("loop-b.qcow2") + ", " + at("loop-a.qcow2") + ": qemu-img rebase"},
		{"a loop of one", over("itself"), nil, at("itself.qcow2") + " is its own base"},
		{"data in another file", qcow2("external.qcow2", ""), nil,
			at("external.qcow2") + " keeps its data in another file, which QEMU would open by a name in the image: merge them: qemu-img convert -O qcow2 OLD NEW.qcow2"},
		{"empty", configs.Disk{Path: at("empty.raw"), Format: configs.FormatRaw}, nil, at("empty.raw") + " is empty, and no disk: "},
		{"not a qcow2", qcow2("strange.qcow2", ""), nil, at("strange.qcow2") + ` is no qcow2 image: set format = "raw" if it is a raw one`},
		{"too short", qcow2("short.qcow2", ""), nil, at("short.qcow2") + " is no qcow2 image: it ends within its header"},
		{"missing", qcow2("nowhere.qcow2", ""), nil, "open " + at("nowhere.qcow2") + ": no such file or directory"},
		{"missing raw", configs.Disk{Path: at("nowhere.raw"), Format: configs.FormatRaw}, nil, "open " + at("nowhere.raw") + ": no such file or directory"},
		{"a directory", configs.Disk{Path: dir, Format: configs.FormatRaw}, nil, "open " + dir + ": is a directory"},
		{"a directory as qcow2", configs.Disk{Path: dir, Format: configs.FormatQCOW2}, nil, "open " + dir + ": is a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &life{files: map[string]*os.File{}}
			defer l.closeFiles()
			err := l.openDisk(0, tt.disk)
			if tt.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.err) {
					t.Errorf("%v\nwant %s", err, tt.err)
				}
				if len(l.files) > 0 {
					t.Errorf("open all the same: %v", l.files)
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
		{"base with a base", overlay("new3.qcow2", "overlay.qcow2", configs.FormatQCOW2, 0), at("overlay.qcow2"), ""},
		{"base that is a loop", overlay("new6.qcow2", "loop-a.qcow2", configs.FormatQCOW2, 0), "", "is its own base"},
		{"smaller than its base", overlay("new7.qcow2", "base.qcow2", configs.FormatQCOW2, 512<<10), "",
			"size 512KiB is less than the 1MiB of " + at("base.qcow2") + ", which would be cut off"},
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
				if chain, err := readChain(tt.disk); err != nil || tt.backing != "" && chain[1].Path != tt.backing {
					t.Errorf("made of %v, %v; want %q below", chain, err, tt.backing)
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

// A kernel that QEMU's user can read, and no more, is not copied.
func TestOpenKernel(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name, content string
		mode          os.FileMode
		asRoot        bool
		direct        bool
	}{
		{"everybody may read it", "MZ", 0o644, false, true},
		{"root alone may read it", "MZ", 0o600, false, false},
		{"everybody may change it", "MZ", 0o666, false, false},
		{"QEMU is root", "MZ", 0o644, true, false},
		{"QEMU would map it", "\x7fELF", 0o644, false, false},
		{"it is empty", "", 0o644, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "vmlinuz") // below a directory that is root's
			if err := errors.Join(os.WriteFile(path, []byte(tt.content), 0o600), os.Chmod(path, tt.mode)); err != nil {
				t.Fatal(err)
			}
			g := &configs.Guest{Name: "guest", Boot: configs.Boot{Kernel: path}, Confine: configs.Confine{User: !tt.asRoot}}
			l := newLife(g, Options{RunDir: t.TempDir()})
			l.plan = &Plan{UID: userOf(0), Guest: g}
			if err := l.openKernel(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer l.closeFiles()
			f := l.files[fdKernel]
			link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
			if err != nil || (link == path) != tt.direct || len(l.reopened) == 1 != tt.direct {
				t.Errorf("QEMU gets %s, %v, and opens %d files anew", link, err, len(l.reopened))
			}
			if got, err := os.ReadFile(fmt.Sprintf("/dev/fd/%d", f.Fd())); err != nil || string(got) != tt.content {
				t.Errorf("it reads %q, %v", got, err)
			}
		})
	}
}

func TestSealedCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("k", 255))
	content := bytes.Repeat([]byte("kernel "), 10_000)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := beginCopy(path).take(t.Context())
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
		if f, err := beginCopy(bad).take(t.Context()); err == nil {
			t.Errorf("copied %s", bad)
			f.Close()
		}
	}
}
