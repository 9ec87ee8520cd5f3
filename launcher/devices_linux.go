package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// gatherDevices looks for what the devices of the guest need.
func (f *Facts) gatherDevices(ctx context.Context, g *configs.Guest) error {
	if g.TPM {
		f.Swtpm, _ = exec.LookPath("swtpm")
	}
	if len(g.Shares) > 0 {
		if f.Virtiofsd = findVirtiofsd(); f.Virtiofsd != "" {
			version, err := ask(ctx, f.Virtiofsd, "--version")
			if err != nil {
				return err
			}
			f.VirtiofsdRust = !strings.Contains(version, "FUSE") // which the one in C names
		}
	}
	f.Unshared = map[int]error{}
	for i, s := range g.Shares {
		f.Unshared[i] = isShareable(s.Path)
	}
	if len(g.CPUAffinity) > 0 || g.EmulatorAffinity != "" {
		f.CPUs = configs.CPUSet(readWord("/sys/devices/system/cpu/online")).CPUs()
	}
	if g.Hugepages != 0 {
		dir := hugepagesDir(g.Hugepages)
		if _, err := os.Stat(dir); err != nil {
			f.PagesErr = errNoPages
		}
		// What others have reserved and not used yet counts as free.
		f.FreePages = readNumber(dir, "free_hugepages", "") - readNumber(dir, "resv_hugepages", "")
	}
	return nil
}

// virtiofsds are where distributions have it, first the one in Rust.
var virtiofsds = []string{"/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"}

// findVirtiofsd is the path of virtiofsd, or "".
func findVirtiofsd() string {
	if path, err := exec.LookPath("virtiofsd"); err == nil {
		return path
	}
	for _, path := range virtiofsds {
		if unix.Access(path, unix.X_OK) == nil {
			return path
		}
	}
	return ""
}

// isShareable says why a path is no directory to share, or returns nil.
func isShareable(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s does not exist: mkdir %[1]s", path)
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory: share the one that it is in: %s", path, filepath.Dir(path))
	}
	return nil
}
