package launcher

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vmrun/configs"
	"vmrun/netsetup"
)

// diagnose looks at a host made of these links, in a namespace of its own.
func diagnose(t *testing.T, g *configs.Guest, base string, links ...netlink.Link) []Finding {
	t.Helper()
	needRoot(t)
	ns, err := netsetup.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var found []Finding
	if err := ns.Do(func() error {
		for _, l := range links {
			if err := netlink.LinkAdd(l); err != nil {
				return err
			}
		}
		found = Diagnose(t.Context(), g, base)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if !slices.Contains([]Level{Good, Warn, Bad}, f.Level) || f.Topic == "" || f.Text == "" {
			t.Errorf("%+v says too little", f)
		}
		if f.Level == Good && f.Remedy != "" {
			t.Errorf("%+v has a remedy, though nothing is wrong", f)
		}
	}
	return found
}

func finding(found []Finding, topic string) *Finding {
	for i := range found {
		if found[i].Topic == topic {
			return &found[i]
		}
	}
	return nil
}

func expect(t *testing.T, found []Finding, level Level, topic, text string) {
	t.Helper()
	for _, f := range found {
		if f.Topic == topic && f.Level == level && strings.Contains(f.Text, text) {
			return
		}
	}
	t.Errorf("no %s %q with %q in:\n%+v", level, topic, text, found)
}

func vethPair(name string) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return &netlink.Veth{LinkAttrs: attrs, PeerName: name + "-peer"}
}

func TestDiagnoseHost(t *testing.T) {
	base := t.TempDir()
	found := diagnose(t, nil, base, vethPair("eth0"))
	for _, topic := range []string{"privileges", "macvtap", "run directory"} {
		if f := finding(found, topic); f == nil || f.Level != Good {
			t.Errorf("%s: %+v", topic, f)
		}
	}
	expect(t, found, Warn, "parent eth0", "down")
	expect(t, found, Bad, "parents", "no NIC that guests could sit on")
	if f := finding(found, "accelerator"); f == nil || f.Level == Bad {
		t.Errorf("accelerator: %+v; it never keeps a guest from starting", f)
	}
	if entries, err := os.ReadDir(base); err != nil || len(entries) != 0 {
		t.Errorf("made %v, %v", entries, err)
	}
}

func TestDiagnoseParents(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	pair := vethPair("eth0")
	found := diagnose(t, nil, t.TempDir(), pair, &netlink.Bridge{LinkAttrs: attrs})
	expect(t, found, Warn, "parent br0", "down")
	for _, f := range found {
		if f.Topic == "parent eth0" && f.Remedy != "ip link set eth0 up" {
			t.Errorf("%+v", f)
		}
	}
}

func TestDiagnoseWithoutQEMU(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	found := diagnose(t, nil, t.TempDir())
	expect(t, found, Bad, "QEMU", "not installed")
	if f := finding(found, "QEMU"); f != nil && f.Remedy != "apt-get install qemu-system" {
		t.Errorf("%+v", f)
	}
}

func TestDiagnoseBrokenQEMU(t *testing.T) {
	g := &configs.Guest{QEMU: fakeQEMU(t, "exit 3"), Accel: configs.AccelTCG}
	expect(t, diagnose(t, g, t.TempDir()), Bad, "QEMU", "exit status 3")
}

func TestDiagnoseAccel(t *testing.T) {
	needKVMDevice(t)
	works := fakeQEMU(t, "echo QEMU emulator version 7.2")
	expect(t, diagnose(t, &configs.Guest{QEMU: works}, t.TempDir()), Good, "accelerator", "kvm works")
	broken := fakeQEMU(t, `case "$1" in --version) echo QEMU;; *) echo no MSR >&2; exit 1;; esac`)
	expect(t, diagnose(t, &configs.Guest{QEMU: broken}, t.TempDir()), Warn, "accelerator", "no MSR")
}

func TestDiagnoseRunDir(t *testing.T) {
	deep := filepath.Join(t.TempDir(), "not", "yet", "there")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, base string
		want       Level
	}{
		{"to be made", deep, Good}, {"relative", "not-there", Good},
		{"a file", file, Bad}, {"below a file", filepath.Join(file, "run"), Bad},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var found []Finding
			diagnoseRunDir(tt.base, func(level Level, topic, text, remedy string) {
				found = append(found, Finding{level, topic, text, remedy})
			})
			if len(found) != 1 || found[0].Level != tt.want {
				t.Errorf("%+v, want %s", found, tt.want)
			}
		})
	}
	if _, err := os.Stat(deep); !errors.Is(err, os.ErrNotExist) {
		t.Error("it was made")
	}
}

func TestDiagnoseGuest(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("disk.raw", strings.Repeat("\x00", 512))
	load := func(name, text string) *configs.Guest {
		return mustLoad(t, write(name+".toml", "accel = \"tcg\"\n"+text))
	}
	nic := "[[nic]]\nparent = \"eth0\"\n"
	good := load("good", "[[disk]]\npath = \"disk.raw\"\n"+nic)
	found := diagnose(t, good, t.TempDir(), vethPair("eth0"))
	expect(t, found, Good, "good", "nothing is known to be in its way")
	expect(t, found, Warn, "good", "eth0 is down")
	bad := load("bad", "[[disk]]\npath = \"nowhere.raw\"\n[[nic]]\nparent = \"eth7\"\n")
	found = diagnose(t, bad, t.TempDir(), vethPair("eth0"))
	expect(t, found, Bad, "bad", `no link "eth7"`)
	expect(t, found, Bad, "bad", "nowhere.raw does not exist")
	if f := finding(found, "bad"); f != nil && f.Level == Good {
		t.Errorf("would start all the same: %+v", found)
	}
}
