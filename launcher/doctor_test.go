package launcher

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
)

// diagnose looks at a host made of these links, in a namespace of its own.
func diagnose(t *testing.T, g *configs.Guest, base string, links ...netlink.Link) []Finding {
	t.Helper()
	if g == nil {
		return inspectHost(t, base, addAll(links))
	}
	return inspectHost(t, base, addAll(links), Subject{Spec: g})
}

func addAll(links []netlink.Link) func() error {
	return func() error {
		for _, l := range links {
			if err := netlink.LinkAdd(l); err != nil {
				return err
			}
		}
		return nil
	}
}

// inspectHost looks at a host in namespaces of its own, of networks and of mounts,
// after prepare has made of it what it is.
func inspectHost(t *testing.T, base string, prepare func() error, subjects ...Subject) []Finding {
	t.Helper()
	needRoot(t)
	ns, err := netsetup.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var found []Finding
	if err := ns.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := prepare(); err != nil {
			return err
		}
		found = Diagnose(t.Context(), base, subjects...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, found)
	return found
}

// wellFormed holds findings to what their readers count on.
func wellFormed(t *testing.T, found []Finding) {
	t.Helper()
	for _, f := range found {
		if !slices.Contains([]Level{Good, Note, Warn, Bad}, f.Level) || f.ID == "" || f.Topic == "" || f.Text == "" {
			t.Errorf("%+v says too little", f)
		}
		if f.Level == Good && f.Remedy+f.Why != "" {
			t.Errorf("%+v has a remedy, though nothing is wrong", f)
		}
	}
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
	if f := finding(found, "QEMU"); f != nil && f.Remedy != "apt-get install qemu-system-x86" {
		t.Errorf("%+v", f)
	}
}

func diagnoseQEMU(t *testing.T, g *configs.Guest) []Finding {
	t.Helper()
	found := examine("QEMU", gatherQEMU(t.Context(), g), qemuChecks)
	wellFormed(t, found)
	return found
}

func TestDiagnoseBrokenQEMU(t *testing.T) {
	g := &configs.Guest{QEMU: fakeQEMU(t, "exit 3"), Accel: configs.AccelTCG}
	expect(t, diagnoseQEMU(t, g), Bad, "QEMU", "exit status 3")
}

func TestDiagnoseAccel(t *testing.T) {
	fakeKVM(t)
	works := fakeQEMU(t, "echo QEMU emulator version 7.2")
	expect(t, diagnoseQEMU(t, &configs.Guest{QEMU: works}), Good, "accelerator", "kvm works")
	broken := fakeQEMU(t, `case "$1" in --version) echo QEMU;; *) echo no MSR >&2; exit 1;; esac`)
	expect(t, diagnoseQEMU(t, &configs.Guest{QEMU: broken}), Warn, "accelerator", "no MSR")
}

func TestDiagnoseFirmware(t *testing.T) {
	dirs := descriptorDirs
	t.Cleanup(func() { descriptorDirs = dirs })
	descriptorDirs = []string{t.TempDir()}
	works := fakeQEMU(t, "echo QEMU emulator version 7.2")
	g := &configs.Guest{QEMU: works, Accel: configs.AccelTCG, Arch: configs.ArchX86, Firmware: configs.FirmwareUEFI}
	found := diagnoseQEMU(t, g)
	expect(t, found, Bad, "firmware", "no UEFI for machine q35")
	if f := finding(found, "firmware"); f != nil && f.Remedy != "apt-get install ovmf" {
		t.Errorf("%+v", f)
	}
	files := t.TempDir()
	for _, name := range []string{"CODE.fd", "VARS.fd"} {
		put(t, filepath.Join(files, name), nil)
	}
	put(t, filepath.Join(descriptorDirs[0], "50.json"), descriptor("/fw", files))
	expect(t, diagnoseQEMU(t, g), Good, "firmware", files+"/CODE.fd")
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
			found := checkRunDir(hostFacts{base: tt.base, baseErr: canWrite(tt.base)})
			if len(found) != 1 || found[0].Level != tt.want {
				t.Errorf("%+v, want %s", found, tt.want)
			}
		})
	}
	if _, err := os.Stat(deep); !errors.Is(err, os.ErrNotExist) {
		t.Error("it was made")
	}
}

func TestDiagnoseSpec(t *testing.T) {
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
