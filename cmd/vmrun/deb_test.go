package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// debs makes packages of vmrun as it is now under a version each, and returns their
// paths.
func debs(t *testing.T, env []string, versions ...string) (paths []string) {
	t.Helper()
	needs(t, "make", "dpkg-deb")
	bin := t.TempDir() // the checkout's own is left alone
	for _, version := range versions {
		cmd := exec.Command("make", "-C", "../..", "deb", "BIN="+bin, "VERSION="+version)
		cmd.Env = append(outsideMake(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make deb: %v: %s", err, out)
		}
		found, _ := filepath.Glob(filepath.Join(bin, "vmrun_"+strings.TrimPrefix(version, "v")+"-1_*.deb"))
		if len(found) != 1 {
			t.Fatalf("make deb: packages of %s: %v", version, found)
		}
		paths = append(paths, found[0])
	}
	return paths
}

// debian runs a program of Debian's and returns its lines.
func debian(t *testing.T, program string, args ...string) []string {
	t.Helper()
	out, err := exec.Command(program, args...).Output()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// The package has what make install puts in place, where Debian wants it, all of it
// root's.
func TestDeb(t *testing.T) {
	deb := debs(t, nil, "v1.2.0")[0]
	line := regexp.MustCompile(`^(\S+) root/root +\d+ \S+ \S+ \./(\S*)( -> \S+)?$`)
	modes := map[string]string{"usr/bin/vmrun": "-rwxr-xr-x", "usr/lib/systemd/system-generators/vmrun-generator": "lrwxrwxrwx"}
	var got, dirs []string
	for _, l := range debian(t, "dpkg-deb", "--contents", deb) {
		m := line.FindStringSubmatch(l)
		if m == nil {
			t.Errorf("%s", l)
			continue
		}
		mode, name := m[1], strings.TrimSuffix(m[2], "/")
		want := modes[name]
		switch {
		case mode[0] == 'd':
			want = "drwxr-xr-x"
			dirs = append(dirs, name)
		case want == "":
			want = "-rw-r--r--"
		}
		if mode != want {
			t.Errorf("%s: mode %s, want %s", name, mode, want)
		}
		if mode[0] != 'd' {
			got = append(got, name)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(wantInDeb(t), got); diff != "" {
		t.Errorf("in the package (-want +got):\n%s", diff)
	}
	if !slices.Contains(dirs, "etc/vmrun") {
		t.Errorf("no directory for specs: %s", dirs)
	}
	for field, want := range map[string]string{
		"Package": "vmrun", "Version": `1\.2\.0-1`, "Architecture": "amd64|arm64", "Maintainer": ".+ <.+@.+>", "Installed-Size": "[1-9][0-9]{3,}",
		"Depends": `qemu-system-\S+ \| qemu-system, qemu-utils, systemd \| .*`, "Recommends": ".*swtpm.*",
	} {
		if got := strings.Join(debian(t, "dpkg-deb", "--field", deb, field), "\n"); !regexp.MustCompile("^(" + want + ")$").MatchString(got) {
			t.Errorf("%s: %s", field, got)
		}
	}
}

func wantInDeb(t *testing.T) []string {
	t.Helper()
	want := []string{
		"usr/share/doc/vmrun/README.md.gz", "usr/share/doc/vmrun/changelog.gz", "usr/share/doc/vmrun/changelog.Debian.gz",
		"usr/share/doc/vmrun/copyright", "usr/share/lintian/overrides/vmrun",
	}
	for _, name := range toInstall(t) {
		switch {
		case name == "share/doc/vmrun/LICENSE":
			continue // in the copyright
		case strings.HasPrefix(name, "share/man/"):
			name += ".gz"
		}
		want = append(want, "usr/"+strings.Replace(name, "site-functions", "vendor-completions", 1))
	}
	slices.Sort(want)
	return want
}

// The scripts that dpkg runs are right as far as a shell can tell.
func TestDebScripts(t *testing.T) {
	for _, name := range []string{"postinst", "prerm", "postrm", "version", "copyrights", "build"} {
		path := filepath.Join("../../configs/debian", name)
		if out, err := exec.Command("sh", "-n", path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		if _, err := exec.LookPath("shellcheck"); err != nil {
			continue
		}
		if out, err := exec.Command("shellcheck", path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

// To dpkg versions have the order that they have to git.
func TestDebVersion(t *testing.T) {
	needs(t, "dpkg")
	versions := []struct{ git, commits, want string }{
		{"", "", "0-1"},
		{"53aeb94", "813", "0+813.g53aeb94-1"},
		{"1234567-dirty", "1024", "0+1024.g1234567+dirty-1"},
		{"v0.9.1", "1100", "0.9.1-1"},
		{"v1.0.0-rc1", "1101", "1.0.0~rc1-1"},
		{"v1.0.0-rc1-3-gabc1234", "1104", "1.0.0~rc1+3.gabc1234-1"},
		{"v1.0.0", "1105", "1.0.0-1"},
		{"v1.0.0-9-gabc1234", "1114", "1.0.0+9.gabc1234-1"},
		{"v1.0.0-10-g0123456", "1115", "1.0.0+10.g0123456-1"},
		{"v1.0.0-10-g0123456-dirty", "1115", "1.0.0+10.g0123456+dirty-1"},
		{"v1.0.1", "1116", "1.0.1-1"},
	}
	for i, v := range versions {
		got := debian(t, "../../configs/debian/version", v.git, v.commits)[0]
		if got != v.want {
			t.Errorf("%s: %s, want %s", v.git, got, v.want)
		}
		if i > 0 && exec.Command("dpkg", "--compare-versions", versions[i-1].want, "lt", got).Run() != nil {
			t.Errorf("to dpkg %s is not newer than %s", got, versions[i-1].want)
		}
	}
}

// The same source makes the same package, whoever makes it, and lintian finds nothing
// wrong with it.
func TestDebForAll(t *testing.T) {
	if os.Getenv("VMRUN_TEST_ALL") != "1" {
		t.Skip("makes three packages, and looks at them for long: make test-all")
	}
	needs(t, "lintian")
	env := []string{"SOURCE_DATE_EPOCH=1790000000", "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8"}
	var first []byte
	for range 2 {
		deb := debs(t, env, "v1.2.0")[0]
		data, err := os.ReadFile(deb)
		if err != nil {
			t.Fatal(err)
		}
		if first != nil && !bytes.Equal(first, data) {
			t.Errorf("made again, the package is another")
		}
		first, env = data, env[:1]
	}
	for _, arch := range []string{"amd64", "arm64"} {
		deb := debs(t, []string{"DEBARCH=" + arch}, "v1.2.0")[0]
		out, err := exec.Command("lintian", "--allow-root", "--fail-on=error,warning", deb).CombinedOutput()
		if err != nil {
			t.Errorf("%s: lintian: %v:\n%s", arch, err, out)
		}
	}
}
