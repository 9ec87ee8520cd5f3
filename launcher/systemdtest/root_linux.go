package systemdtest

import (
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"path/filepath"
)

// copied is what the container shares of this machine's /etc where it is there:
// who owns what, and where the links and libraries in /usr lead.
var copied = []string{"os-release", "passwd", "group", "ld.so.cache", "alternatives"}

// written is the rest of its /etc. PAM does what the test is about and leaves
// out what an administrator may have asked for here.
var written = map[string]string{
	"nsswitch.conf":         "passwd: files systemd\ngroup: files systemd\nhosts: files\n",
	"pam.d/login":           session,
	"pam.d/systemd-user":    session,
	"pam.d/other":           "auth required pam_deny.so\naccount required pam_deny.so\nsession required pam_deny.so\n",
	"systemd/journald.conf": "[Journal]\nStorage=volatile\n",
}

const session = "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_systemd.so\n"

// masked are units that multi-user.target wants and a test does not.
var masked = []string{"getty.target", "console-getty.service", "systemd-tmpfiles-clean.timer"}

// plant makes the container's root directory.
func plant(root string, etc map[string]string) error {
	for _, dir := range []string{"usr", "etc/systemd/system", "var/lib", "run", "root", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"bin", "lib", "lib64", "sbin"} {
		if err := os.Symlink("usr/"+name, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	for _, name := range copied {
		if err := replicate(filepath.Join("/etc", name), filepath.Join(root, "etc", name)); err != nil {
			return err
		}
	}
	for _, unit := range masked {
		if err := os.Symlink("/dev/null", filepath.Join(root, "etc/systemd/system", unit)); err != nil {
			return err
		}
	}
	files := maps.Clone(written)
	id := make([]byte, 16)
	rand.Read(id)
	files["machine-id"] = fmt.Sprintf("%x\n", id)
	maps.Copy(files, etc)
	for name, text := range files {
		path := filepath.Join(root, "etc", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// replicate copies a file, or a directory of symbolic links.
func replicate(from, to string) error {
	st, err := os.Stat(from)
	switch {
	case os.IsNotExist(err):
		return nil
	case err != nil:
		return err
	case st.IsDir():
		return os.CopyFS(to, os.DirFS(from))
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}
