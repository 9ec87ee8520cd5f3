package launcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// loadedBy lists what a QEMU reads of the host's file system by itself: the
// program, the libraries and modules, firmware, and what says how late it is
// here. All of it comes from packages and is for everybody to read. What does
// not exist is left out, and links are followed.
func loadedBy(qemu string) []string {
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	paths := []string{qemu, "/lib/" + triplet, "/usr/lib/" + triplet, "/lib64", "/usr/lib64",
		"/etc/ld.so.cache", "/etc/localtime",
		"/usr/share/qemu", "/usr/share/seabios", "/usr/share/seavgabios", "/usr/share/ipxe", "/usr/lib/ipxe",
		"/usr/share/OVMF", "/usr/share/AAVMF", "/usr/share/qemu-efi-aarch64", "/usr/share/edk2",
	}
	if real, err := filepath.EvalSymlinks(qemu); err == nil && !strings.HasPrefix(real, "/usr/bin/") {
		prefix := filepath.Dir(filepath.Dir(real)) // of make install, or of a package manager's own
		for _, dir := range []string{"/lib", "/lib64", "/share/qemu"} {
			// A prefix may be a user's, who could lead by a link to what is none of QEMU's.
			own, err := filepath.EvalSymlinks(prefix + dir)
			if err == nil && filepath.Base(filepath.Dir(real)) == "bin" && prefix != "/" && strings.HasPrefix(own, prefix+"/") {
				paths = append(paths, prefix+dir)
			}
		}
		paths = append(paths, "/usr/local/lib", "/nix/store")
	}
	if _, err := os.Stat("/usr/lib/" + triplet); err != nil { // no Debian: /usr/lib64, or one /usr/lib for all
		paths = append(paths, "/usr/lib")
	}
	var found []string
	for _, p := range paths {
		if _, err := os.Stat(p); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// wall is how everything in the root is mounted.
const wall = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID

// enterRoot builds a root directory that holds the parts and a /proc, all
// read-only, and makes it the thread's, in a mount namespace of its own. It is
// built on the directory at, of which nothing is seen then; what the kernel shows
// as its source for good is by what it is known. A staged /proc has what virtiofsd
// looks for there. The mounts end with the last process
// in the namespace.
func enterRoot(at, source string, parts []part, staged bool) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount(source, at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=64k,nr_inodes=1k,mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	for _, p := range parts {
		if err := p.attach(); err != nil {
			return fmt.Errorf("show %s: %w", p.path, err)
		}
	}
	proc := "proc"
	if staged {
		proc = stagedProc
		if err := stageProc(); err != nil {
			return fmt.Errorf("/proc: %w", err)
		}
	}
	if err := mountProc(proc); err != nil {
		return err
	}
	// The old root comes to lie on the new one, and goes (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return setAttr(unix.AT_FDCWD, "/", wall|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// rootName is the source by which the root on a directory is known (proc(5),
// mountinfo). A directory that was removed and made again has another.
func rootName(dir string) string {
	var st unix.Stat_t
	_ = unix.Stat(dir, &st) // 0, which no file has, of one that is not there
	return fmt.Sprintf("%s:%d", dir, st.Ino)
}

// isRootOn reports whether name is of a root on the directory that is there now
// or, where it was removed, on any that was.
func isRootOn(dir, name string) bool {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		rest, ok := strings.CutPrefix(name, dir+":")
		return ok && !strings.Contains(rest, "/")
	}
	return name == rootName(dir)
}

// mountProc mounts a /proc below the working directory in which a process finds
// itself alone (proc(5), hidepid and subset), for /dev/fd.
func mountProc(at string) error {
	for _, dir := range []string{at, "dev"} {
		if err := mkdirAll(dir); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", at, "proc", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "hidepid=ptraceable,subset=pid"); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	return os.Symlink("/"+at+"/self/fd", "dev/fd")
}

// stagedProc is where /proc is mounted where another one is seen, below the root.
const stagedProc = "procfs"

// stageProc makes a /proc with itself, and a file that virtiofsd insists on reading
// (tools/virtiofsd/passthrough_ll.c, get_default_rlimit_nofile).
func stageProc() error {
	err := mkdirAll("proc/sys/fs")
	if err == nil {
		err = os.WriteFile("proc/sys/fs/file-max", fmt.Appendln(nil, shareFiles), 0o444)
	}
	if err == nil {
		err = os.Symlink("/"+stagedProc+"/self", "proc/self")
	}
	return err
}

// part is a file or directory of the host's that QEMU shall see.
type part struct {
	path   string // as QEMU names it
	real   string // without links on the way
	dir    bool
	device bool
	image  bool   // a file of a disk that is named by its descriptor; a device is written
	own    bool   // a companion's own directory
	at     string // where that is seen
	write  bool   // it may be changed
	tree   int    // a mount of it that is nowhere yet
}

// openParts opens what is to be seen, before a new root covers any of it.
func openParts(files, devices []string, own ownDir) (parts []part, err error) {
	defer func() {
		if err != nil {
			closeParts(parts)
		}
	}()
	paths := append(append([]string{}, files...), devices...)
	if own.path != "" {
		paths = append(paths, own.path)
	}
	for i, path := range paths {
		p := part{path: path, device: i >= len(files)}
		if i == len(files)+len(devices) {
			p.device, p.own, p.at, p.write = false, true, own.at, !own.readonly
		}
		if p.real, err = filepath.EvalSymlinks(path); err != nil {
			return parts, err
		}
		info, err := os.Stat(p.real)
		if err != nil {
			return parts, err
		}
		p.dir = info.IsDir()
		if p.tree, err = unix.OpenTree(unix.AT_FDCWD, p.real, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
			return parts, fmt.Errorf("open %s: %w", p.real, err)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

func closeParts(parts []part) {
	for _, p := range parts {
		unix.Close(p.tree)
	}
}

// place is where the part is in the new root: at its real path, or where a
// companion looks for it.
func (p part) place() string {
	if p.own {
		return p.at
	}
	return p.real
}

// attach mounts the part below the working directory at its place.
func (p part) attach() error {
	target := "." + p.place()
	if _, err := os.Lstat(target); err != nil { // in no directory that is shown already
		err := mkdirAll(filepath.Dir(target))
		switch {
		case err != nil:
		case p.dir:
			err = mkdirAll(target)
		default:
			err = os.WriteFile(target, nil, 0o444)
		}
		if err != nil {
			return err
		}
	}
	attr := uint64(wall | unix.MOUNT_ATTR_NODEV)
	switch {
	case p.device:
		attr = wall | unix.MOUNT_ATTR_NOEXEC
	case p.own:
		attr |= unix.MOUNT_ATTR_NOEXEC
	}
	if p.write {
		attr &^= unix.MOUNT_ATTR_RDONLY
	}
	if err := setAttr(p.tree, "", attr); err != nil {
		return err
	}
	if err := unix.MoveMount(p.tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	if p.own {
		return nil
	}
	return p.link()
}

// link copies the host's link on the way to the part, as /lib64 where all
// libraries are in /usr, to below the working directory.
func (p part) link() error {
	at := ""
	for _, name := range strings.Split(strings.Trim(p.path, "/"), "/") {
		at += "/" + name
		text, err := os.Readlink(at)
		if err != nil {
			continue
		}
		if _, err := os.Lstat("." + at); err == nil {
			return nil
		}
		if err := mkdirAll(filepath.Dir("." + at)); err != nil {
			return err
		}
		return os.Symlink(text, "."+at)
	}
	return nil
}

// mkdirAll is os.MkdirAll for everybody to enter, whatever the umask is.
func mkdirAll(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for d := dir; d != "." && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
	}
	return nil
}

func setAttr(fd int, path string, attr uint64) error {
	flags := uint(0)
	if path == "" {
		flags = unix.AT_EMPTY_PATH
	}
	if err := unix.MountSetattr(fd, path, flags, &unix.MountAttr{Attr_set: attr}); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}
