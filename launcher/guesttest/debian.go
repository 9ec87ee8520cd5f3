package guesttest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// DebianFiles are the paths of the Debian 12 guest, which nobody may write to: a disk
// is an overlay of Image.
type DebianFiles struct {
	Image          string // qcow2, 2 GiB; boots by BIOS, and by UEFI with secure boot
	Kernel, Initrd string // those in the image, for a direct boot, which is sooner
	Cmdline        string // of the kernel
}

// Debian returns the Debian 12 guest that build-image.sh has made. It boots for half a
// minute without KVM, so that it is for make test-all: the test is skipped unless
// VMRUN_TEST_ALL is 1, and fails when there is no image then.
func Debian(t testing.TB) DebianFiles {
	t.Helper()
	if os.Getenv("VMRUN_TEST_ALL") != "1" {
		t.Skip("boots Debian for long: make test-all")
	}
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(cache, "debian"))
	if err != nil {
		t.Fatalf("no Debian guest: run launcher/guesttest/build-image.sh %s: %v", cache, err)
	}
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		t.Fatal(err)
	}
	return DebianFiles{
		Image:   filepath.Join(dir, "disk.qcow2"),
		Kernel:  filepath.Join(dir, "vmlinuz"),
		Initrd:  filepath.Join(dir, "initrd.img"),
		Cmdline: strings.TrimSpace(string(cmdline)),
	}
}

// Disk is the table of a spec for an overlay of the image at path, which vmrun makes.
func (f DebianFiles) Disk(path string) string {
	return fmt.Sprintf("[[disk]]\npath = %q\nbase = %q\n", path, f.Image)
}

// Boot is the table of a spec that boots the kernel directly.
func (f DebianFiles) Boot() string {
	return fmt.Sprintf("[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n", f.Kernel, f.Initrd, f.Cmdline)
}
