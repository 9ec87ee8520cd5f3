package guesttest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Cmdline is a kernel command line that boots the guest soonest. It says where
// the console is, keeps the kernel quiet, and spares an emulated processor what
// a test guest does not need. A panic reboots at once; a test that wants to see
// another end adds its own panic= behind.
const Cmdline = "console=ttyS0 quiet loglevel=1 panic=-1 nokaslr mitigations=off " +
	"random.trust_cpu=on tsc=reliable no_timer_check cryptomgr.notests"

// CmdlineARM64 is Cmdline for a guest of that architecture.
const CmdlineARM64 = "console=ttyAMA0 quiet loglevel=1 panic=-1 nokaslr mitigations=off cryptomgr.notests"

// Files are the paths of a guest's parts, ready for QEMU's -kernel and -initrd.
type Files struct {
	Kernel, Initrd string
}

// Options add to the guest; the zero value is the guest as it is.
type Options struct {
	// ARM64 makes it a guest of that architecture, whose kernel test-all alone
	// fetches.
	ARM64 bool
	// Modules of Debian's kernel to load as well, of those that fetch-kernel.sh
	// keeps.
	Modules []string
	// Files to put into the initramfs, executable: path there to path here.
	Files map[string]string
}

// ErrNoKernel says that the cache holds no kernel yet.
var ErrNoKernel = errors.New("no kernel for the test guest")

// Image returns the guest's files. It skips the test when there is no kernel,
// or fails it when VMRUN_TEST_REQUIRE is 1.
func Image(t testing.TB) Files {
	t.Helper()
	return Options{}.Image(t)
}

// Image is the function of that name, with options.
func (o Options) Image(t testing.TB) Files {
	t.Helper()
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	files, err := o.Build(cache)
	if errors.Is(err, ErrNoKernel) && os.Getenv("VMRUN_TEST_REQUIRE") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// CacheDir returns the directory that keeps kernels and initramfs images:
// $VMRUN_TEST_CACHE, or vmrun in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("VMRUN_TEST_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("test cache: %w; set VMRUN_TEST_CACHE", err)
	}
	return filepath.Join(dir, "vmrun"), nil
}

// Build returns the guest's files in cache and makes the initramfs when it is
// not there yet. It runs go build, from a directory of this module. The error is
// ErrNoKernel when fetch-kernel.sh did not run before.
func (o Options) Build(cache string) (Files, error) {
	arch, link, fetch := "amd64", "kernel", cache
	if o.ARM64 {
		arch, link, fetch = "arm64", "kernel-arm64", cache+" arm64"
	}
	kernel, err := filepath.EvalSymlinks(filepath.Join(cache, link))
	if isMissing(err) {
		return Files{}, fmt.Errorf("%w in %s: run launcher/guesttest/fetch-kernel.sh %s", ErrNoKernel, cache, fetch)
	}
	if err != nil {
		return Files{}, fmt.Errorf("test cache: %w", err)
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return Files{}, err
	}
	defer unlock()
	init, err := buildInit(cache, arch)
	if err != nil {
		return Files{}, err
	}
	modules, err := readModules(filepath.Join(kernel, "modules"), slices.Concat(baseModules[arch], o.Modules))
	if err != nil {
		return Files{}, err
	}
	extra := make(map[string][]byte, len(o.Files))
	for name, source := range o.Files {
		if extra[name], err = os.ReadFile(source); err != nil {
			return Files{}, fmt.Errorf("initramfs: %w", err)
		}
	}
	image, err := archive(init, modules, extra)
	if err != nil {
		return Files{}, err
	}
	// Named for what is in it, so that an image in use is never written to.
	initrd := filepath.Join(cache, fmt.Sprintf("initrd-%x.img", sha256.Sum256(image)))
	if err := store(initrd, image); err != nil {
		return Files{}, err
	}
	prune(cache)
	return Files{Kernel: filepath.Join(kernel, "vmlinuz"), Initrd: initrd}, nil
}

// buildInit compiles the guest's program. Go's own cache makes it quick when
// nothing has changed, and knows better than a list of ours what it depends on.
func buildInit(cache, arch string) ([]byte, error) {
	out := filepath.Join(cache, "init-"+arch)
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out,
		"vmrun/launcher/guesttest/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the test guest's init: %w\n%s", err, msg)
	}
	init, err := os.ReadFile(out)
	if err != nil {
		return nil, fmt.Errorf("test cache: %w", err)
	}
	return init, nil
}

// lock keeps others out of path until the result is called: packages' tests are
// processes that run at the same time.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, fmt.Errorf("test cache: %w", err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("test cache: lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// store writes data to path unless it is there, and marks it as used now.
func store(path string, data []byte) error {
	now := time.Now()
	if err := os.Chtimes(path, now, now); err == nil {
		return nil
	}
	tmp := path + ".tmp" // the lock is held: nobody else writes it
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return fmt.Errorf("test cache: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("test cache: %w", err)
	}
	return nil
}

// prune removes the images that no test has asked for in two days.
func prune(cache string) {
	old, _ := filepath.Glob(filepath.Join(cache, "initrd-*"))
	for _, path := range old {
		if st, err := os.Stat(path); err == nil && time.Since(st.ModTime()) > 48*time.Hour {
			_ = os.Remove(path)
		}
	}
}
