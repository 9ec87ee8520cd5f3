package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
)

func TestUnitsFor(t *testing.T) {
	parse := func(path, text string) []*configs.Guest {
		t.Helper()
		f, err := configs.ParseFleet(path, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return f.Guests
	}
	guests := slices.Concat(
		parse("/etc/vmrun/web1.toml", "autostart = true\nboot.kernel = \"/k\"\n[[nic]]\nparent = \"eth0\"\n[[nic]]\nparent = \"wan-1\"\nvlan = 7\n"+
			"[[nic]]\nparent = \"eth0\"\n[stop]\ntimeout = \"5m\"\nquit_timeout = \"500ms\"\n"),
		parse(`/etc/vmrun/50%"lab.toml`, "[defaults]\nboot.kernel = \"/k\"\nready.timeout = \"0s\"\n[[guest]]\nname = \"db-1\"\n[[guest]]\nname = \"app\"\nafter = [\"db-1\"]\n"),
	)
	got := unitsFor(guests, "/usr/lib/systemd/system")
	want := unitFiles{
		files: map[string]string{
			"vmrun@web1.service.d/50-vmrun.conf": `[Unit]
SourcePath=/etc/vmrun/web1.toml
PartOf=vmrun.target
Wants=sys-subsystem-net-devices-eth0.device
After=sys-subsystem-net-devices-eth0.device
Wants=sys-subsystem-net-devices-wan\x2d1.device
After=sys-subsystem-net-devices-wan\x2d1.device

[Service]
TimeoutStartSec=761
TimeoutStopSec=326
`,
			"vmrun@db-1.service.d/50-vmrun.conf": `[Unit]
SourcePath=/etc/vmrun/50%%"lab.toml
PartOf=vmrun.target

[Service]
Environment="VMRUN_SPEC=/etc/vmrun/50%%\"lab.toml"
TimeoutStartSec=infinity
TimeoutStopSec=90
`,
			"vmrun@app.service.d/50-vmrun.conf": `[Unit]
SourcePath=/etc/vmrun/50%%"lab.toml
PartOf=vmrun.target
After=vmrun@db-1.service

[Service]
Environment="VMRUN_SPEC=/etc/vmrun/50%%\"lab.toml"
TimeoutStartSec=infinity
TimeoutStopSec=90
`,
		},
		links: map[string]string{
			"vmrun.target.wants/vmrun@web1.service": "/usr/lib/systemd/system/vmrun@.service",
			"multi-user.target.wants/vmrun.target":  "/usr/lib/systemd/system/vmrun.target",
		},
	}
	for name, text := range got.files {
		got.files[name] = text[strings.Index(text, "[Unit]"):] // behind the comment
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(unitFiles{})); diff != "" {
		t.Errorf("units (-want +got):\n%s", diff)
	}
}

// Of specs that are wrong, and of a second guest of a name, the others know nothing.
func TestSpecsIn(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.toml":         "boot.kernel = \"/k\"\n",
		"b.toml":         "boot.kernel = \"/k\"\nname = \"a\"\n",
		"bad.toml":       "memory = 12\ncpus = 0\n",
		"lab.toml":       "defaults.boot.kernel = \"/k\"\n[[guest]]\nname = \"n%02d\"\ncount = 2\n",
		"line\nbad.toml": "boot.kernel = \"/k\"\nname = \"c\"\n",
		"other.txt":      "boot.kernel = \"/k\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.toml"), 0o700); err != nil {
		t.Fatal(err)
	}
	var noted strings.Builder
	var got []string
	for _, g := range specsIn(dir, func(format string, args ...any) { fmt.Fprintf(&noted, format+"\n", args...) }) {
		got = append(got, g.Name)
	}
	if diff := cmp.Diff([]string{"a", "n01", "n02"}, got); diff != "" {
		t.Errorf("guests (-want +got):\n%s", diff)
	}
	want := `DIR/b.toml: the guest a is in DIR/a.toml already
DIR/bad.toml:1: memory: want a size with a unit, in quotes, not the number 12: write "12MiB" (and more: vmrun check DIR/bad.toml)
read DIR/dir.toml: is a directory
"DIR/line\nbad.toml": a unit cannot name a file like that
`
	if diff := cmp.Diff(want, strings.ReplaceAll(noted.String(), dir, "DIR")); diff != "" {
		t.Errorf("noted (-want +got):\n%s", diff)
	}
}
