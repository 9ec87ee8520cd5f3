package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
)

func TestGrowImage(t *testing.T) {
	dir := chains(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Chown(at("fourth.qcow2"), 12345, 12345); err != nil && os.Geteuid() == 0 {
		t.Fatal(err)
	}
	raw := configs.Disk{Path: at("base.raw"), Format: configs.FormatRaw}
	fourth := configs.Disk{Path: at("fourth.qcow2"), Format: configs.FormatQCOW2, Base: at("third.qcow2"), BaseFormat: configs.FormatQCOW2}
	for _, tt := range []struct {
		name string
		disk configs.Disk
		size uint64
		err  string
	}{
		{"raw", raw, 2 << 20, ""},
		{"raw again", raw, 2 << 20, ""},
		{"qcow2", configs.Disk{Path: at("other.qcow2"), Format: configs.FormatQCOW2}, 3 << 30, ""},
		{"overlay of three", fourth, 5 << 20, ""},
		{"shrink raw", raw, 1 << 20, at("base.raw") + " has 2MiB, and a disk is never shrunk: 1MiB is less"},
		{"shrink qcow2", fourth, 1 << 20, at("fourth.qcow2") + " has 5MiB, and a disk is never shrunk: 1MiB is less"},
		{"no sectors", raw, 3<<20 + 1, "is not a multiple of 512B"},
		{"undeclared backing file", configs.Disk{Path: at("overlay.qcow2"), Format: configs.FormatQCOW2}, 2 << 20, "is an overlay of"},
		{"too large", raw, 1<<63 - 512, "file too large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := virtualSize(t, tt.disk.Path)
			err := Disk{Spec: tt.disk, Base: t.TempDir()}.Grow(t.Context(), tt.size)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v, want %q", err, tt.err)
				}
				tt.size = before
			} else if err != nil {
				t.Fatal(err)
			}
			if got := virtualSize(t, tt.disk.Path); got != tt.size {
				t.Errorf("%d bytes, want %d", got, tt.size)
			}
		})
	}
}

// An image that somebody has is not touched, and the error names who.
func TestGrowImageInUse(t *testing.T) {
	dir := chains(t)
	for _, d := range []configs.Disk{
		{Path: filepath.Join(dir, "base.raw"), Format: configs.FormatRaw},
		{Path: filepath.Join(dir, "other.qcow2"), Format: configs.FormatQCOW2},
	} {
		holder := holdImage(t, d.Path)
		err := Disk{Spec: d, Base: t.TempDir()}.Grow(t.Context(), 9<<20)
		want := fmt.Sprintf("%s is in use by pid %d (", d.Path, holder)
		if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), ": "+oneWriter) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// What somebody else has grown, between the look at an image and its lock, is not cut off.
func TestGrowGrownImage(t *testing.T) {
	path := filepath.Join(chains(t), "base.raw")
	list, err := openChain(configs.Disk{Path: path, Format: configs.FormatRaw}, os.O_RDWR)
	defer closeLayers(list)
	if err == nil {
		err = os.Truncate(path, 3<<20)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := growRaw(list[0], 2<<20); err == nil || !strings.Contains(err.Error(), "a disk is never shrunk") || virtualSize(t, path) != 3<<20 {
		t.Errorf("%v, and %d bytes", err, virtualSize(t, path))
	}
}

// The disk of a guest that is suspended is left as its memory knows it.
func TestSuspendedImage(t *testing.T) {
	base := filepath.Join(t.TempDir(), "run")
	d := Disk{Spec: configs.Disk{Path: filepath.Join(chains(t), "other.qcow2"), Format: configs.FormatQCOW2}, Alone: true, Base: base}
	if err := d.Snapshot(t.Context(), "before"); err != nil {
		t.Fatal(err)
	}
	g := &configs.Guest{Name: "sleeper", Disks: []configs.Disk{d.Spec}}
	images, err := imagesOf(g)
	if err != nil {
		t.Fatal(err)
	}
	m := memory{record: record{Version: recordVersion, Guest: g}, Images: images, At: time.Now(), Size: memoryHead}
	head, err := m.encode()
	if err == nil {
		err = os.MkdirAll(StateDir(base, "sleeper"), 0o700)
	}
	if err == nil {
		err = os.WriteFile(memoryPath(base, "sleeper"), append(head, make([]byte, memoryHead-len(head))...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for what, act := range map[string]func() error{
		"grow":     func() error { return d.Grow(t.Context(), 8<<20) },
		"snapshot": func() error { return d.Snapshot(t.Context(), "other") },
		"rollback": func() error { return d.Rollback(t.Context(), "before") },
		"delete":   func() error { return d.DeleteSnapshot(t.Context(), "before") },
	} {
		if err := act(); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "guest sleeper is suspended") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if now, err := imagesOf(g); err != nil || !slices.Equal(now, images) {
		t.Errorf("%+v, %v, was %+v", now, err, images)
	}
	if err := removeMemory(base, "sleeper"); err != nil {
		t.Fatal(err)
	}
	if err := d.Grow(t.Context(), 8<<20); err != nil {
		t.Errorf("once it is not any more: %v", err)
	}
}

// The program that works on images opens no file that it was not given.
func TestImageToolIsConfined(t *testing.T) {
	dir := chains(t)
	secret := filepath.Join(dir, "base.raw")
	list, err := openChain(configs.Disk{Path: filepath.Join(dir, "other.qcow2"), Format: configs.FormatQCOW2}, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer closeLayers(list)
	if landlockABI() == 0 {
		t.Skip("needs landlock in the kernel")
	}
	err = imageTool(context.Background(), list, "rebase", "-u", "-b", secret, "-F", "raw", imageWord)
	if err != nil {
		t.Errorf("an act on the image alone: %v", err)
	}
	err = imageTool(context.Background(), list, "convert", "-f", "raw", "-O", "raw", secret, imageWord)
	if err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("another file: %v", err)
	}
}

// holdImage has another process hold an image as QEMU does, and returns its pid.
func holdImage(t *testing.T, path string) int {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	lk := unix.Flock_t{Type: unix.F_RDLCK, Start: lockHas + permWrite, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
		t.Fatal(err)
	}
	sleeper, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil, f}})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { sleeper.Kill(); sleeper.Wait() })
	return sleeper.Pid
}
