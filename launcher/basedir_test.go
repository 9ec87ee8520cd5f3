package launcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
)

func TestCheckRunDir(t *testing.T) {
	needRoot(t)
	const somebody = 4242
	for _, tt := range []struct {
		name string
		make func(at string) (base string, err error) // in a directory of root's
		want string
	}{
		{"root's", func(at string) (string, error) { return at + "/run", os.Mkdir(at+"/run", 0o755) }, ""},
		{"not there yet", func(at string) (string, error) { return at + "/not/there", nil }, ""},
		{"in a place like /tmp", func(at string) (string, error) {
			return at + "/tmp/run", mkdirs(at+"/tmp", 0o1777, 0, at+"/tmp/run", 0o700, 0)
		}, ""},
		{"a place like /tmp itself", func(at string) (string, error) { return at + "/tmp", mkdirs(at+"/tmp", 0o1777, 0) },
			`tmp is no place for run directories: others than root may write to .*/tmp \(mode 0777\): chmod go-w .*/tmp, or name a directory in it`},
		{"for everybody to write", func(at string) (string, error) { return at + "/run", mkdirs(at+"/run", 0o757, 0) }, `others than root may write to .*/run`},
		{"for its group to write", func(at string) (string, error) { return at + "/run", mkdirs(at+"/run", 0o775, 0) }, `others than root may write to .*/run`},
		{"somebody's", func(at string) (string, error) { return at + "/run", mkdirs(at+"/run", 0o755, somebody) }, `/run belongs to uid 4242`},
		{"in somebody's", func(at string) (string, error) {
			return at + "/home/run", mkdirs(at+"/home", 0o755, somebody, at+"/home/run", 0o755, 0)
		}, `/home belongs to uid 4242`},
		{"in a place for everybody that is not sticky", func(at string) (string, error) {
			return at + "/open/run", mkdirs(at+"/open", 0o777, 0, at+"/open/run", 0o755, 0)
		}, `others than root may write to .*/open`},
		{"not there yet, in somebody's", func(at string) (string, error) {
			return at + "/home/run", mkdirs(at+"/home", 0o755, somebody)
		}, `/home belongs to uid 4242`},
		{"root's link", func(at string) (string, error) {
			return at + "/link", linkTo("run", at+"/link", 0, mkdirs(at+"/run", 0o755, 0))
		}, ""},
		{"root's link to a place like /tmp", func(at string) (string, error) {
			return at + "/link", linkTo(at+"/tmp", at+"/link", 0, mkdirs(at+"/tmp", 0o1777, 0))
		}, `others than root may write to .*/tmp`},
		{"somebody's link in a place like /tmp", func(at string) (string, error) {
			return at + "/tmp/link", linkTo("../run", at+"/tmp/link", somebody, mkdirs(at+"/tmp", 0o1777, 0, at+"/run", 0o755, 0))
		}, `/tmp/link belongs to uid 4242`},
		{"root's link by way of somebody's directory", func(at string) (string, error) {
			return at + "/link", linkTo("home/../run", at+"/link", 0, mkdirs(at+"/home", 0o755, somebody, at+"/run", 0o755, 0))
		}, `/home belongs to uid 4242`},
		{"a link to itself", func(at string) (string, error) { return at + "/link", linkTo("link", at+"/link", 0, nil) }, "too many levels of symbolic links"},
		{"a file", func(at string) (string, error) { return at + "/file", os.WriteFile(at+"/file", nil, 0o644) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base, err := tt.make(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			err = CheckRunDir(base)
			if (err == nil) != (tt.want == "") || err != nil && !regexp.MustCompile(tt.want).MatchString(err.Error()) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if tt.want == "" {
				return
			}
			// Nothing is locked or made there either.
			if _, err := guestDir(base, "web1").lock(); err == nil {
				t.Error("a guest's name was locked there")
			}
			if _, err := os.Stat(filepath.Join(base, "web1")); err == nil {
				t.Error("a run directory was made there")
			}
		})
	}
}

// mkdirs makes directories: each a path, a mode and an owner.
func mkdirs(words ...any) error {
	for i := 0; i < len(words); i += 3 {
		path := words[i].(string)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		if err := unix.Chmod(path, uint32(words[i+1].(int))); err != nil {
			return err
		}
		if err := os.Chown(path, words[i+2].(int), -1); err != nil {
			return err
		}
	}
	return nil
}

func linkTo(target, path string, owner int, err error) error {
	if err == nil {
		err = os.Symlink(target, path)
	}
	if err == nil {
		err = os.Lchown(path, owner, -1)
	}
	return err
}

// What is made is for everybody to pass through, and the guest's is root's.
func TestMakeWhateverTheUmask(t *testing.T) {
	needRoot(t)
	defer unix.Umask(unix.Umask(0o077))
	base := filepath.Join(t.TempDir(), "a", "b")
	if err := guestDir(base, "web1").make(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{filepath.Dir(base): 0o755, base: 0o755, base + "/web1": 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
}

// Nobody has vmrun open a file of his choice by a link in place of one in /run.
func TestSlotsAreNoLink(t *testing.T) {
	needRoot(t)
	victim := filepath.Join(t.TempDir(), "victim")
	inOwnRun(t, func() error { return os.Symlink(victim, slotFile) }, func() {
		if _, _, err := takeSlot("web1"); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%v, want ELOOP", err)
		}
	})
	if _, err := os.Lstat(victim); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("where the link led is a file now: %v", err)
	}
}

// inOwnRun runs fn with an empty /run, as far as prepare leaves it.
func inOwnRun(t *testing.T, prepare func() error, fn func()) {
	t.Helper()
	ns, err := netsetup.CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = ns.Do(func() error {
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", "/run", "tmpfs", 0, "size=64k,mode=0755")
		}
		if err == nil {
			err = prepare()
		}
		if err == nil {
			fn()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// No name leads out of the directory that it is a name in.
func TestNamesStayInside(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../web1", "a/b", "/etc", "a\x00b", "-x", "a\nb", "\x1b[2J"} {
		if configs.CheckName(name) == nil {
			t.Errorf("%q can be a guest's name", name)
		}
		if configs.CheckInterface(name) == nil && name != "-x" { // which is one to the kernel
			t.Errorf("%q can be a link's name", name)
		}
		if _, err := configs.NICFromWords(1, []string{"parent=" + name}); err == nil && name != "-x" {
			t.Errorf("%q can be a NIC's parent", name)
		}
		if _, err := decodeRecord(fmt.Appendf(nil, `{"version":%d,"guest":{"Name":%q}}`, recordVersion, name)); err == nil {
			t.Errorf("%q can be the guest of a state file", name)
		}
	}
	base := t.TempDir()
	for _, name := range []string{"..x", ".hidden", "web 1", "web1.toml"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", filepath.Join(base, "web1")); err != nil {
		t.Fatal(err)
	}
	if names := guestNames(base); len(names) > 0 {
		t.Errorf("taken for guests: %q", names)
	}
}
