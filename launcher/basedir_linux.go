package launcher

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// CheckRunDir makes sure that nobody but root can put something of his own where
// root will look for run directories: a record that names another's process, a
// socket, a link. It says why that is not so, or returns nil. Of a directory
// that is not there yet, the ones above it count.
func CheckRunDir(base string) error {
	if os.Geteuid() != 0 {
		return nil // with no more rights than whoever put it there
	}
	if err := onlyRootWrites(base); err != nil {
		return fmt.Errorf("%s is no place for run directories: %w", base, err)
	}
	return nil
}

// onlyRootWrites goes down a path as the kernel does (path_resolution(7)). On the
// way directories may be for everybody if they are sticky, as /tmp is: what root
// has in there stays. The last may not.
func onlyRootWrites(path string) error {
	const maxLinks = 40
	links, at, rest := 0, "/", names(path)
	for len(rest) > 0 {
		step := rest[0]
		rest = rest[1:]
		switch step {
		case "..":
			at = filepath.Dir(at)
			continue
		case ".":
			continue
		}
		next := filepath.Join(at, step)
		info, err := os.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
			return fmt.Errorf("%s belongs to uid %d", next, uid)
		}
		if info.Mode()&os.ModeSymlink != 0 {
			target, err := os.Readlink(next)
			if links++; err != nil || links > maxLinks {
				return errors.Join(err, &os.PathError{Op: "follow", Path: path, Err: unix.ELOOP})
			}
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = append(names(target), rest...)
			continue
		}
		if !info.IsDir() {
			return nil // nothing can be in it
		}
		shared := len(rest) > 0 && info.Mode()&os.ModeSticky != 0
		if mode := info.Mode().Perm(); mode&0o022 != 0 && !shared {
			return fmt.Errorf("others than root may write to %s (mode %#o): chmod go-w %[1]s, or name a directory in it that is root's", next, mode)
		}
		at = next
	}
	return nil
}

// names are those in a path.
func names(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// makeAll is os.MkdirAll for everybody to pass through, whatever the umask is.
func makeAll(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeAll(filepath.Dir(dir)); err == nil {
			err = os.Mkdir(dir, 0o755)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}
