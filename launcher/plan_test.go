package launcher

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
	"vmrun/netsetup"
)

var update = flag.Bool("update", false, "write the golden files anew")

func parseSpec(t testing.TB, lines ...string) *configs.Guest {
	t.Helper()
	g, err := configs.Parse("/srv/web1.toml", []byte(strings.Join(lines, "\n")+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// testFacts are those of a host with two NICs.
func testFacts() Facts {
	parents := map[string]netsetup.Parent{}
	for i, name := range []string{"eth0", "eth1"} {
		parents[name] = netsetup.Parent{
			Name: name, Index: 2 + i, Kind: "device", MTU: 1500, Up: true, Carrier: true, Ethernet: true,
			MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, byte(i)},
		}
	}
	return Facts{
		MachineID: strings.Repeat("0123456789abcdef", 2),
		Arch:      configs.ArchX86,
		QEMU:      "/usr/bin/qemu-system-x86_64",
		Accel:     configs.AccelTCG,
		Users:     defaultUsers,
		Slot:      7,
		Net:       netsetup.Host{Parents: parents, Names: []string{"eth0", "eth1"}},
		Missing:   map[string]bool{},
		Devices:   map[string]bool{"/dev/vg0/data": true},
		KVMGroup:  -1,
		Vhost:     errors.New("no /dev/vhost-net"),
		State:     "/var/lib/vmrun/web1",
		Swtpm:     "/usr/bin/swtpm",
		Virtiofsd: "/usr/libexec/virtiofsd",
		CPUs:      []int{0, 1, 2, 3},
		FreePages: 512,
	}
}

var testFirmware = firmware{image{"/usr/share/fw/CODE.fd", configs.FormatRaw}, image{"/usr/share/fw/VARS.qcow2", configs.FormatQCOW2}}

// planText is everything that a plan says.
func planText(p *Plan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "uuid %s\nuid %d, groups %v\naccel %s\n", p.UUID, p.UID, p.Groups, p.Accel)
	section := func(title string) { fmt.Fprintf(&b, "\n# %s\n", title) }
	if len(p.Warnings) > 0 {
		section("warnings")
		b.WriteString(strings.Join(p.Warnings, "\n") + "\n")
	}
	section("steps")
	for _, s := range p.Steps {
		fmt.Fprintf(&b, "%s: %s\n", s.Name, s.Text)
	}
	section("files")
	for i, f := range p.Files {
		fmt.Fprintf(&b, "%d %s\n", i, f)
	}
	section("command line")
	b.WriteString(p.QEMU)
	for _, word := range p.Argv {
		separator := " "
		if strings.HasPrefix(word, "-") {
			separator = "\n"
		}
		b.WriteString(separator + word)
	}
	return b.String() + "\n"
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: go test -update writes it", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test -update writes it anew):\n%s", path, diff)
	}
}

const disk = "[[disk]]\npath = \"web1.qcow2\""

func nicOn(parent, mode string, lines ...string) string {
	return fmt.Sprintf("[[nic]]\nparent = %q\nmode = %q\n%s", parent, mode, strings.Join(lines, "\n"))
}

var allDisks = []string{
	disk, `base = "debian-12.qcow2"`, `discard = true`, `boot_index = 0`,
	"[[disk]]", `path = "new.raw"`, `size = "2GiB"`, `bus = "scsi"`, `cache = "none"`,
	"[[disk]]", `path = "/dev/vg0/data"`, `bus = "scsi"`, `cache = "directsync"`,
	"[[disk]]", `path = "shared.img"`, `readonly = true`,
	"[[disk]]", `path = "old.raw"`, `bus = "ide"`, `cache = "unsafe"`,
	"[[disk]]", `path = "tools, and \"more\".iso"`, `cdrom = true`, `boot_index = 1`,
	"[[disk]]", `path = "install.iso"`, `cdrom = true`, `bus = "scsi"`,
	"[[disk]]", `path = "through.qcow2"`, `cache = "writethrough"`,
}

func TestPlanGolden(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spec  []string
		facts func(*Facts)
		opts  PlanOptions
	}{
		{name: "minimal", spec: []string{disk}},
		{name: "paused", spec: []string{disk, nicOn("eth0", "bridge")}, opts: PlanOptions{Paused: true}},
		{name: "two-nics", spec: []string{disk,
			nicOn("eth0", "bridge", "queues = 3", "mtu = 1400", "boot_index = 2"),
			nicOn("eth1", "source", `mac = "52:54:00:12:34:56"`, `sources = ["52:54:00:00:00:aa"]`, `model = "e1000e"`, "mtu = 1400")}},
		{name: "disks", spec: allDisks, facts: func(f *Facts) {
			f.Missing["/srv/web1.qcow2"], f.Missing["/srv/new.raw"] = true, true
		}},
		{name: "kernel", spec: []string{
			`uuid = "3f1c9d62-7a0e-4b57-9c35-2e8d41f6ab90"`, "cpus = 4", `memory = "1536MiB"`, `machine = "pc-q35-7.2"`, `cpu = "qemu64,+aes"`,
			`qemu_args = ["-device", "virtio-balloon-pci"]`,
			"[boot]", `kernel = "vmlinuz"`, `initrd = "initrd.img"`, `cmdline = "console=ttyS0 root=/dev/vda, quiet"`}},
		{name: "passthru", spec: []string{disk, nicOn("eth0", "passthru"),
			nicOn("eth1", "passthru", "promisc = false", `mac = "52:54:00:12:34:56"`)}},
		{name: "passthru-forced", spec: []string{disk, nicOn("eth0", "passthru")}, opts: PlanOptions{Force: true},
			facts: func(f *Facts) {
				p := f.Net.Parents["eth0"]
				p.Default, p.Addresses, p.Up = true, []string{"192.0.2.2/24"}, false
				f.Net.Parents["eth0"] = p
			}},
		{name: "kvm", spec: []string{disk}, facts: func(f *Facts) { f.Accel, f.KVMGroup = configs.AccelKVM, 106 }},
		{name: "kvm-no-group", spec: []string{disk}, facts: func(f *Facts) { f.Accel = configs.AccelKVM }},
		{name: "knobs", spec: []string{"cpus = 3", disk,
			nicOn("eth0", "bridge", "host_access = true", "pin = true", `addresses = ["192.0.2.10", "2001:db8::10"]`,
				`bandwidth = { inbound = "100mbit", outbound = "20mbit" }`, "txqueuelen = 1000", "vhost = \"on\""),
			nicOn("eth1", "vepa", "vlan = 20", `multicast = "off"`, "queues = 2", "host_offload = false", "guest_offload = false")},
			facts: func(f *Facts) {
				f.Vhost = nil
				vlan := f.Net.Parents["eth1"]
				vlan.Name, vlan.Kind = "eth1.20", "vlan"
				f.Net.Parents["eth1.20"] = vlan
			}},
		{name: "pc", spec: []string{`machine = "pc"`, disk, nicOn("eth0", "bridge", `pin = "mac"`)}},
		{name: "devices", spec: []string{"cpus = 4", "tpm = true", "topology.threads = 2", `cpu_affinity = ["0", "1", "2-3", "2-3"]`,
			`emulator_affinity = "0-1"`, "hugepages = true", disk, nicOn("eth0", "bridge"),
			"[[share]]", `path = "src"`, `tag = "src"`, "[[share]]", `path = "/data"`, `tag = "d"`, "readonly = true",
			"[watchdog]", `action = "poweroff"`}},
		{name: "devices-arm64", spec: []string{"tpm = true", "balloon = false", disk, "[[share]]", `path = "src"`, `tag = "src"`, "[watchdog]"},
			facts: func(f *Facts) {
				f.Arch, f.QEMU, f.VirtiofsdRust = configs.ArchARM, "/usr/bin/qemu-system-aarch64", true
			}},
		{name: "arm64", spec: []string{disk, nicOn("eth0", "vepa")}, facts: func(f *Facts) {
			f.Arch, f.QEMU, f.State, f.Firmware = configs.ArchARM, "/usr/bin/qemu-system-aarch64", "/var/lib/vmrun/web1", &testFirmware
		}},
		{name: "uefi", spec: []string{`firmware = "uefi"`, "secure_boot = true", `display = "vnc"`, disk, nicOn("eth0", "bridge", "boot_index = 0"), nicOn("eth1", "bridge", `model = "e1000e"`, "boot_index = 1")},
			facts: func(f *Facts) { f.State, f.Firmware = "/var/lib/vmrun/web1", &testFirmware }},
		{name: "seed", spec: []string{"[cloud_init]", `users = ["default", "alice"]`, `packages = ["nginx"]`, `user_data = "user-data"`,
			"[[credential]]", `name = "a"`, `file = "secret"`, "[[credential]]", `name = "b"`, `value = "c"`,
			disk, nicOn("eth0", "bridge", `addresses = ["192.0.2.10/24"]`)},
			facts: func(f *Facts) {
				f.Seed = seedFacts{Keys: []string{testKey}, UserData: []byte("#cloud-config\n{}\n"), Credentials: [][]byte{[]byte("secret"), []byte("c")}}
			}},
		{name: "scsi-word-in-cmdline", spec: []string{
			"[boot]", `kernel = "vmlinuz"`, `cmdline = "name=id=scsi0"`, "[[disk]]", `path = "a.raw"`, `bus = "scsi"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			facts := testFacts()
			if tt.facts != nil {
				tt.facts(&facts)
			}
			p, err := NewPlan(parseSpec(t, tt.spec...), facts, tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata", "plan", tt.name+".txt"), planText(p))
			checkPlan(t, p)
		})
	}
}

// checkPlan holds what is true of every plan.
func checkPlan(t *testing.T, p *Plan) {
	t.Helper()
	seen := map[string]bool{}
	position := map[string]int{}
	for i, s := range p.Steps {
		if seen[s.Name] {
			t.Errorf("two steps are called %q", s.Name)
		}
		if s.apply == nil || s.Text == "" {
			t.Errorf("step %q does or says nothing", s.Name)
		}
		seen[s.Name], position[s.Name] = true, i
	}
	for _, c := range p.Children {
		for _, earlier := range []string{c.Name + " create", c.Name + " open"} {
			if position[earlier] > position["qemu start"] {
				t.Errorf("%q comes after QEMU", earlier)
			}
		}
		if position[c.Name+" up"] < position["control listen"] {
			t.Errorf("%s goes up before everything else is there", c.Name)
		}
	}
	if run, ok := position["run"]; ok && run < position["commit"] {
		t.Error("the guest runs before it is committed")
	}
	files := map[string]int{}
	for _, f := range p.Files[3:] {
		if files[f]++; files[f] > 1 {
			t.Errorf("descriptor %q is handed out twice", f)
		}
	}
}

func TestPlanIsTheSameAgain(t *testing.T) {
	for range 20 {
		g := parseSpec(t, allDisks...)
		a, errA := NewPlan(g, testFacts(), PlanOptions{})
		b, errB := NewPlan(g, testFacts(), PlanOptions{})
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if diff := cmp.Diff(planText(a), planText(b)); diff != "" {
			t.Fatalf("(-first +second):\n%s", diff)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spec  []string
		facts func(*Facts)
		want  string
	}{
		{"parent missing", []string{disk, nicOn("eth7", "bridge")}, nil,
			`/srv/web1.toml:4: nic[0].parent: this host has no link "eth7": use one of eth0, eth1`},
		{"everything at once",
			[]string{disk, nicOn("eth7", "bridge"), nicOn("eth0", "bridge", "mtu = 9000", `mac = "52:54:00:00:00:00"`), "[boot]", `kernel = "vmlinuz"`, `initrd = "initrd.img"`},
			func(f *Facts) {
				for _, name := range []string{"/srv/web1.qcow2", "/srv/vmlinuz", "/srv/initrd.img"} {
					f.Missing[name] = true
				}
			},
			`/srv/web1.toml:2: disk[0].path: /srv/web1.qcow2 does not exist: give size to have it created, or base to have it made as an overlay
/srv/web1.toml:4: nic[0].parent: this host has no link "eth7": use one of eth0, eth1
/srv/web1.toml:10: nic[1].mtu: 9000 is above the 1500 of eth0: lower it, or type: ip link set eth0 mtu 9000
/srv/web1.toml:11: nic[1].mac: 52:54:00:00:00:00 is the MAC of eth0 itself: leave mac out to have one derived
/srv/web1.toml:13: boot.kernel: /srv/vmlinuz does not exist
/srv/web1.toml:14: boot.initrd: /srv/initrd.img does not exist`},
		{"base missing", []string{disk, `base = "base.qcow2"`},
			func(f *Facts) { f.Missing["/srv/web1.qcow2"], f.Missing["/srv/base.qcow2"] = true, true },
			`/srv/web1.toml:3: disk[0].base: /srv/base.qcow2 does not exist`},
		{"devices that the host does not have", []string{"cpus = 2", "tpm = true", `cpu_affinity = ["3", "0-4"]`, `emulator_affinity = "8,9"`, `hugepages = "2MiB"`, disk,
			"[[share]]", `path = "src"`, `tag = "a"`, "[[share]]", `path = "/data"`, `tag = "b"`},
			func(f *Facts) {
				f.Swtpm, f.Virtiofsd, f.FreePages = "", "", 100
				f.Unshared = map[int]error{1: errors.New("/data does not exist: mkdir /data")}
			},
			`/srv/web1.toml:2: tpm: swtpm is not installed: apt-get install swtpm
/srv/web1.toml:3: cpu_affinity[1]: this host has no CPU 4: lscpu -e lists them
/srv/web1.toml:4: emulator_affinity: this host has no CPU 8: lscpu -e lists them
/srv/web1.toml:5: hugepages: the guest needs 512 pages of 2MiB, and 100 are free: reserve more: echo $(( $(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages) + 412 )) > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
/srv/web1.toml:8: share: virtiofsd is not installed: apt-get install virtiofsd, or before Debian 13 qemu-system-common
/srv/web1.toml:12: share[1].path: /data does not exist: mkdir /data`},
		{"a CD-ROM on a host whose guests have no IDE", []string{disk, "[[disk]]", `path = "a.iso"`, "cdrom = true"},
			func(f *Facts) { f.Arch = configs.ArchARM },
			`/srv/web1.toml:3: disk[1].bus: this host's guests are aarch64, which has no IDE: use "scsi", or "virtio" for what is no CD-ROM`},
		{"no force", []string{disk, nicOn("eth0", "passthru")},
			func(f *Facts) { p := f.Net.Parents["eth0"]; p.Default = true; f.Net.Parents["eth0"] = p },
			`/srv/web1.toml:5: nic[0].mode: passthru gives eth0 to the guest, and the host's default route is on it: the host would be cut off: use mode = "bridge", another NIC, or --force`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			facts := testFacts()
			if tt.facts != nil {
				tt.facts(&facts)
			}
			p, err := NewPlan(parseSpec(t, tt.spec...), facts, PlanOptions{})
			if err == nil {
				t.Fatalf("planned:\n%s", planText(p))
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if KindOf(err) != KindSpec {
				t.Errorf("its kind is %s", KindOf(err))
			}
		})
	}
}
