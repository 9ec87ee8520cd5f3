package launcher

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
)

// descriptor is one of a build, with changes to Debian's for a q35 without secure
// boot.
func descriptor(changes ...string) []byte {
	text := `{"description": "UEFI", "interface-types": ["uefi"], "mapping": {"device": "flash",
		"executable": {"filename": "/fw/CODE.fd", "format": "raw"}, "nvram-template": {"filename": "/fw/VARS.fd", "format": "raw"}},
		"targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
		"features": ["acpi-s3", "verbose-dynamic"], "tags": []}`
	return []byte(strings.NewReplacer(changes...).Replace(text))
}

func TestFirmwareFor(t *testing.T) {
	const secure = `"requires-smm", "secure-boot", "enrolled-keys"`
	for _, tt := range []struct {
		name       string
		spec       []string
		descriptor []byte
		want       string // the code's path, or the error
	}{
		{"by default", nil, descriptor(), "/fw/CODE.fd"},
		{"a short name", []string{`machine = "pc"`}, descriptor(), "/fw/CODE.fd"},
		{"a version", []string{`machine = "pc-q35-7.2"`}, descriptor(), "/fw/CODE.fd"},
		{"another machine", []string{`machine = "pc"`}, descriptor(`"pc-i440fx-*", `, ""), "it is for another machine"},
		{"another architecture", []string{`arch = "aarch64"`}, descriptor(), "it is for another machine"},
		{"aarch64", []string{`arch = "aarch64"`}, descriptor("x86_64", "aarch64", "pc-q35-*", "virt-*"), "/fw/CODE.fd"},
		{"split", nil, descriptor(`"device"`, `"mode": "split", "device"`), "/fw/CODE.fd"},
		{"without variables", nil, descriptor(`"device"`, `"mode": "stateless", "device"`), "it has no variables of its own"},
		{"in memory", nil, descriptor("flash", "memory"), "it has no variables of its own"},
		{"a BIOS", nil, descriptor("uefi", "bios"), "it is no UEFI"},
		{"qcow2", nil, descriptor(`"format": "raw"`, `"format": "qcow2"`), "/fw/CODE.fd"},
		{"another format", nil, descriptor(`"format": "raw"`, `"format": "vmdk"`), "its files are of another format"},
		{"relative", nil, descriptor("/fw/VARS.fd", "VARS.fd"), "its files are of another format"},
		{"secure boot", []string{"secure_boot = true"}, descriptor(`"acpi-s3"`, secure), "/fw/CODE.fd"},
		{"secure boot where there is none", []string{"secure_boot = true"}, descriptor(), "it has no secure boot with keys"},
		{"secure boot without keys", []string{"secure_boot = true"}, descriptor(`"acpi-s3"`, `"requires-smm", "secure-boot"`), "it has no secure boot with keys"},
		{"secure boot that is not asked for", nil, descriptor(`"acpi-s3"`, secure), "it is for secure boot"},
		{"secure boot that could be had", nil, descriptor(`"acpi-s3"`, `"secure-boot"`), "/fw/CODE.fd"},
		{"spoilt", nil, []byte("{"), "unexpected end of JSON input"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := settled(parseSpec(t, append([]string{`firmware = "uefi"`, "boot.kernel = \"/k\""}, tt.spec...)...), configs.ArchX86)
			f, err := firmwareFor(g, tt.descriptor)
			got := f.code.path
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// The host's owner overrides a descriptor by its name, hides one by an empty file,
// and the first by name whose files are there is taken.
func TestFindFirmware(t *testing.T) {
	files, dirs := t.TempDir(), descriptorDirs
	t.Cleanup(func() { descriptorDirs = dirs })
	descriptorDirs = []string{t.TempDir(), t.TempDir()}
	for _, name := range []string{"CODE.fd", "VARS.fd", "OWN.fd"} {
		put(t, filepath.Join(files, name), nil)
	}
	g := settled(parseSpec(t, `firmware = "uefi"`, disk), configs.ArchX86)
	find := func() string {
		f, err := findFirmware(g)
		if err != nil {
			return err.Error()
		}
		return strings.TrimPrefix(f.code.path, files+"/")
	}
	describe := func(dir int, name string, data []byte) { put(t, filepath.Join(descriptorDirs[dir], name), data) }
	missing := fmt.Sprintf("/srv/web1.toml:1: firmware: the host has no UEFI for machine q35, by what %s says: apt-get install ovmf", descriptorDirs[0])
	var got []string
	got = append(got, find())
	describe(0, "50-there.json", descriptor("/fw", files))
	describe(0, "40-not-there.json", descriptor("/fw", files+"/none"))
	describe(0, "30-spoilt.json", []byte("{"))
	got = append(got, find())
	describe(1, "50-there.json", descriptor("/fw", files, "CODE", "OWN"))
	got = append(got, find())
	describe(1, "50-there.json", nil)
	got = append(got, find())
	if diff := cmp.Diff([]string{missing, "CODE.fd", "OWN.fd", missing}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Variables begin as a copy of the template, zeros and odd end included, and are
// kept from then on. What a copy that was cut short left is no hindrance.
func TestMakeVars(t *testing.T) {
	dir := t.TempDir()
	template, vars := filepath.Join(dir, "template"), filepath.Join(dir, "uefi.vars")
	for _, data := range [][]byte{nil, []byte("short"), slicesOf(200_000, 1, 0, 2), slicesOf(128<<10, 3, 0), slicesOf(70_000, 0, 0)} {
		put(t, template, data)
		put(t, vars+".new", []byte("half a copy"))
		if made, err := makeVars(template, vars); !made || err != nil {
			t.Fatal(made, err)
		}
		got, err := os.ReadFile(vars)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes, want %d, %v", len(got), len(data), err)
		}
		if err := os.WriteFile(vars, []byte("changed"), 0o600); err != nil {
			t.Fatal(err)
		}
		if made, err := makeVars(template, vars); made || err != nil {
			t.Errorf("again: %v, %v", made, err)
		}
		if got, _ := os.ReadFile(vars); string(got) != "changed" {
			t.Error("variables were lost")
		}
		os.Remove(vars)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// slicesOf returns so many bytes of each value.
func slicesOf(n int, values ...byte) []byte {
	var data []byte
	for _, v := range values {
		data = append(data, bytes.Repeat([]byte{v}, n)...)
	}
	return data
}

// Variables of another firmware are left alone, and the words say what to do.
func TestVariablesOfAnotherFirmware(t *testing.T) {
	dir := t.TempDir()
	code, template, vars := filepath.Join(dir, "code"), filepath.Join(dir, "template"), filepath.Join(dir, "uefi.vars")
	put(t, code, make([]byte, 512))
	put(t, template, make([]byte, 4096))
	put(t, vars, make([]byte, 512))
	l := newLife(&configs.Guest{Name: "web1"}, Options{RunDir: dir})
	l.plan = &Plan{vars: vars, firmware: &firmware{image{code, configs.FormatRaw}, image{template, configs.FormatRaw}}}
	defer l.closeFiles()
	want := fmt.Sprintf("%s has 512 bytes, and this firmware's variables 4096: to begin with new variables: rm %[1]s", vars)
	if err := l.openFirmware(t.Context()); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if info, err := os.Stat(vars); err != nil || info.Size() != 512 {
		t.Error(err)
	}
}
