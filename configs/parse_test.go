package configs

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
)

var update = flag.Bool("update", false, "write the expected errors in testdata/bad")

var cmpGuest = cmp.Options{cmpopts.IgnoreUnexported(Guest{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("examples/*.toml")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %d examples, err %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			if _, err := LoadFleet(file); err != nil {
				t.Error(err)
			}
		})
	}
}

func completeExample(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("examples/complete.toml")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func allKeys(path string, t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		key := joinKey(path, t.Field(i).Tag.Get("toml"))
		keys = append(keys, key)
		switch ft := t.Field(i).Type; {
		case ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct:
			keys = append(keys, allKeys(key+"[]", ft.Elem())...)
		case ft.Kind() == reflect.Pointer && ft.Elem().Kind() == reflect.Struct:
			keys = append(keys, allKeys(key, ft.Elem())...)
		}
	}
	return keys
}

// testNIC is a guest's NIC with the defaults for one CPU, and a change.
func testNIC(parent string, change func(*NIC)) NIC {
	n := NIC{
		Parent: parent, Kind: KindMacvtap, Mode: ModeBridge, Queues: 1, Model: "virtio-net-pci", Promisc: true, BootIndex: -1,
		Multicast: MulticastGuest, Trust: TrustNone, Vhost: VhostAuto, HostOffload: true, GuestOffload: true,
	}
	if change != nil {
		change(&n)
	}
	return n
}

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		spec string
		want Guest
	}{
		{
			name: "defaults",
			spec: "[[disk]]\npath = \"a.qcow2\"\n[[nic]]\nparent = \"eth0\"\n",
			want: Guest{
				Disks: []Disk{{Path: "/specs/a.qcow2", Format: FormatQCOW2, Bus: BusVirtio, Cache: CacheWriteback, IO: IOThreads, BootIndex: -1}},
				NICs:  []NIC{testNIC("eth0", nil)},
			},
		},
		{
			name: "everything set",
			spec: `
name = "other"
uuid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
cpus = 255
arch = "x86_64"
machine = "pc-q35-7.2"
firmware = "uefi"
secure_boot = true
display = "vnc"
accel = "tcg"
cpu = "host,-vmx,+aes"
qemu = "bin/qemu"
qemu_args = ["-device", "x,y=z"]
group = "Lab_1.a-b$"
topology = {cores = 17, threads = 3}
emulator_affinity = "7,0-3,2,4"
hugepages = "1GiB"
memory = "2GiB"
tpm = true
boot = {kernel = "../vmlinuz", initrd = "/i", cmdline = "a=b"}
console.log_size = "0"
[stop]
timeout = "1m30s"
quit_timeout = "0s"
[restart]
policy = "on-failure"
delay = "500ms"
max_delay = "1h"
limit = 0
interval = "24h"
[ready]
when = 'console:^Login \(now\): $'
timeout = "0s"
[cloud_init]
hostname = "web1.example.org"
users = ["alice", "default"]
ssh_keys = ["owner", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHSYpdb03l1xGEg66IuIA+tT+W+P1A2HPQwFuMv1xlhG me", "keys.pub"]
packages = ["nginx", "linux-image-amd64=6.1+1~2"]
user_data = "user-data"
network_config = "/network"
[[credential]]
name = "passwd.hashed-password.root"
file = "hash"
[[credential]]
name = "a"
value = ""
[limits]
memory = "2GiB"
cpus = 2.5
tasks = 64
[watchdog]
[[share]]
path = "../src"
tag = "a/b"
readonly = true
[[share]]
path = "/"
tag = "host"
[confine]
user = false
seccomp = false
root = false
namespaces = false
landlock = false
rlimits = false
[[disk]]
path = "a,b.img"
format = "qcow2"
base = "base.qcow3"
base_format = "qcow2"
size = "20G"
bus = "scsi"
cache = "none"
serial = "a-b.c_0123456789-longer-than-20"
io = "native"
throttle = {bps_read = "10M", bps_write = "4KiB", iops_read = 1, iops_write = 1000000000}
discard = true
boot_index = 3
[[disk]]
path = "c.iso"
cdrom = true
[[disk]]
cdrom = true
bus = "scsi"
[[disk]]
path = "/dev/sdb"
readonly = true
iothread = true
io = "io_uring"
throttle.bps_total = "1G"
throttle.iops_total = 100
[[nic]]
parent = "eth1"
vlan = 4094
kind = "macvtap"
mode = "source"
mac = "52-54-00-AB-00-01"
queues = 3
mtu = 9000
sources = ["52:54:00:00:00:01"]
multicast = "off"
trust = "all"
vhost = "on"
txqueuelen = 1000
bcqueuelen = 65536
host_offload = false
guest_offload = false
[[nic]]
parent = "eth2"
mode = "passthru"
model = "e1000"
promisc = false
pin = "mac"
boot_index = 1
[[nic]]
parent = "eth3"
host_access = true
addresses = ["192.0.2.10/24", "FE80:0::10", "2001:db8::1:10/112"]
gateways = ["192.0.2.1", "fe80::1"]
nameservers = ["198.51.100.1"]
pin = true
bandwidth = {inbound = "100mbit", outbound = "20.48Mbit"}
[[nic]]
parent = "eth4"
kind = "ipvtap"
addresses = ["2001:db8::1"]
pin = false
bandwidth.inbound = "1.5GBIT"
`,
			want: Guest{
				Name: "other", UUID: uuid.MustParse("6ba7b810-9dad-41d1-80b4-00c04fd430c8"),
				CPUs: 255, Memory: 2 * gib, Arch: ArchX86, Machine: "pc-q35-7.2", Firmware: FirmwareUEFI, SecureBoot: true,
				Display: DisplayVNC, Accel: AccelTCG, CPU: "host,-vmx,+aes",
				QEMU: "/specs/bin/qemu", QEMUArgs: []string{"-device", "x,y=z"},
				Boot: Boot{Kernel: "/vmlinuz", Initrd: "/i", Cmdline: "a=b"},
				Disks: []Disk{
					{
						Path: "/specs/a,b.img", Format: FormatQCOW2, Base: "/specs/base.qcow3", BaseFormat: FormatQCOW2,
						Size: 20 * gib, Bus: BusSCSI, Cache: CacheNone, Discard: true, BootIndex: 3,
						Serial: "a-b.c_0123456789-longer-than-20", IO: IONative,
						Throttle: Throttle{BPSRead: 10 * mib, BPSWrite: 4 * kib, IOPSRead: 1, IOPSWrite: 1_000_000_000},
					},
					{Path: "/specs/c.iso", Format: FormatRaw, CDROM: true, Readonly: true, Bus: BusIDE, Cache: CacheWriteback, IO: IOThreads, BootIndex: -1},
					{CDROM: true, Readonly: true, Bus: BusSCSI, Cache: CacheWriteback, IO: IOThreads, BootIndex: -1},
					{
						Path: "/dev/sdb", Format: FormatRaw, Readonly: true, Bus: BusVirtio, Cache: CacheWriteback, BootIndex: -1,
						IO: IOUring, IOThread: true, Throttle: Throttle{BPSTotal: gib, IOPSTotal: 100},
					},
				},
				NICs: []NIC{
					testNIC("eth1", func(n *NIC) {
						n.VLAN, n.Mode, n.MAC, n.MTU = 4094, ModeSource, net.HardwareAddr{0x52, 0x54, 0, 0xab, 0, 1}, 9000
						n.Sources = []net.HardwareAddr{{0x52, 0x54, 0, 0, 0, 1}}
						n.Multicast, n.Trust = MulticastOff, TrustAll
						n.Queues, n.Vhost, n.TxQueueLen, n.BcQueueLen = 3, VhostOn, 1000, 65536
						n.HostOffload, n.GuestOffload = false, false
					}),
					testNIC("eth2", func(n *NIC) {
						n.Mode, n.Promisc, n.Model, n.Queues, n.BootIndex = ModePassthru, false, "e1000", 1, 1
						n.Pin = PinMAC
					}),
					testNIC("eth3", func(n *NIC) {
						n.HostAccess, n.Pin, n.Queues = true, PinAll, 8
						n.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("fe80::10"), netip.MustParseAddr("2001:db8::1:10")}
						n.Prefixes = []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("2001:db8::1:10/112")}
						n.Gateways = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fe80::1")}
						n.Nameservers = []netip.Addr{netip.MustParseAddr("198.51.100.1")}
						n.Bandwidth = Bandwidth{Inbound: 100 * mbit, Outbound: 20480 * kbit}
					}),
					testNIC("eth4", func(n *NIC) {
						n.Kind, n.Mode, n.Multicast, n.Queues = KindIPvtap, "", MulticastAll, 8
						n.Addresses = []netip.Addr{netip.MustParseAddr("2001:db8::1")}
						n.Bandwidth.Inbound = 1500 * mbit
					}),
				},
				CloudInit: CloudInit{
					Hostname: "web1.example.org", Users: []string{"alice", UserDefault}, Packages: []string{"nginx", "linux-image-amd64=6.1+1~2"},
					SSHKeys:  []string{KeysOwner, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHSYpdb03l1xGEg66IuIA+tT+W+P1A2HPQwFuMv1xlhG me", "/specs/keys.pub"},
					UserData: "/specs/user-data", NetworkConfig: "/network",
				},
				Credentials: []Credential{{Name: "passwd.hashed-password.root", File: "/specs/hash"}, {Name: "a"}},
				Console:     Console{},
				Stop:        Stop{Timeout: 90 * time.Second},
				Restart:     Restart{Policy: RestartOnFailure, Delay: time.Second / 2, MaxDelay: time.Hour, Interval: 24 * time.Hour},
				Ready:       Ready{When: ReadyConsole, Console: `^Login \(now\): $`},
				Group:       "Lab_1.a-b$",

				Topology: Topology{Sockets: 5, Cores: 17, Threads: 3}, EmulatorAffinity: "0-4,7", Hugepages: gib, TPM: true,
				Shares:   []Share{{Path: "/src", Tag: "a/b", Readonly: true}, {Path: "/", Tag: "host"}},
				Watchdog: Watchdog{Action: WatchdogReset},
				Limits:   Limits{Memory: 2 * gib, CPUs: 2.5, Tasks: 64},
			},
		},
		{
			name: "one image read by two disks",
			spec: "[[disk]]\npath = \"a.img\"\nreadonly = true\n[[disk]]\npath = \"a.img\"\ncdrom = true\n",
			want: Guest{Disks: []Disk{
				{Path: "/specs/a.img", Format: FormatRaw, Readonly: true, Bus: BusVirtio, Cache: CacheWriteback, IO: IOThreads, BootIndex: -1},
				{Path: "/specs/a.img", Format: FormatRaw, Readonly: true, CDROM: true, Bus: BusIDE, Cache: CacheWriteback, IO: IOThreads, BootIndex: -1},
			}},
		},
		{
			name: "the other architecture",
			spec: "arch = \"aarch64\"\nmachine = \"virt-7.2\"\n[[disk]]\npath = \"a.iso\"\ncdrom = true\n",
			want: Guest{Arch: ArchARM, Machine: "virt-7.2", Disks: []Disk{
				{Path: "/specs/a.iso", Format: FormatRaw, Readonly: true, CDROM: true, Bus: BusSCSI, Cache: CacheWriteback, IO: IOThreads, BootIndex: -1},
			}},
		},
		{
			name: "limits in their other forms",
			spec: "boot.kernel = \"/k\"\n[limits]\nmemory = \"auto\"\ncpus = 2\ntasks = 0\n",
			want: Guest{Boot: Boot{Kernel: "/k"}, Limits: Limits{MemoryAuto: true, CPUs: 2}},
		},
		{
			name: "a seed of nothing but defaults",
			spec: "cloud_init = {}\nboot.kernel = \"/k\"\n",
			want: Guest{CloudInit: CloudInit{Hostname: "web1", Users: []string{UserDefault}, SSHKeys: []string{KeysOwner}}, Boot: Boot{Kernel: "/k"}},
		},
		{
			name: "a seed for nobody",
			spec: "cloud_init.users = []\ncloud_init.ssh_keys = []\nboot.kernel = \"/k\"\n",
			want: Guest{CloudInit: CloudInit{Hostname: "web1", Users: []string{}, SSHKeys: []string{}}, Boot: Boot{Kernel: "/k"}},
		},
		{
			name: "starts with the host",
			spec: "autostart = true\nboot.kernel = \"/k\"\n",
			want: Guest{Autostart: true, Boot: Boot{Kernel: "/k"}},
		},
		{
			name: "no limits",
			spec: "boot.kernel = \"/k\"\nlimits.memory = \"none\"\nconfine.rlimits = true\n[restart]\n",
			want: Guest{Boot: Boot{Kernel: "/k"}},
		},
		{
			name: "pinned CPUs, huge pages",
			spec: "boot.kernel = \"/k\"\ncpu_affinity = [\"3,2\"]\nhugepages = true\nballoon = false\ntopology.sockets = 1\nwatchdog.action = \"poweroff\"\n",
			want: Guest{Boot: Boot{Kernel: "/k"}, Topology: Topology{1, 1, 1}, CPUAffinity: []CPUSet{"2-3"}, Hugepages: 2 * mib, Watchdog: Watchdog{WatchdogPoweroff}},
		},
		{
			name: "no disk, booted by its owner's arguments",
			spec: "qemu_args = [\"-kernel\", \"/x\"]\n",
			want: Guest{QEMUArgs: []string{"-kernel", "/x"}},
		},
	}
	tested := map[string]bool{}
	for _, tt := range tests {
		for key := range scan(tt.spec).lines {
			tested[regexp.MustCompile(`\[\d+\]`).ReplaceAllString(key, "")] = true
		}
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse("/specs/web1.toml", []byte(tt.spec))
			if err != nil {
				t.Fatal(err)
			}
			want := tt.want
			want.Path = "/specs/web1.toml"
			if want.Name == "" { // the defaults of the whole guest
				want.Name, want.CPUs, want.Memory, want.Accel = "web1", 1, gib, AccelAuto
				want.Display = DisplayNone
				want.Console.LogSize = 4 * mib
				want.Stop = Stop{Timeout: time.Minute, QuitTimeout: 5 * time.Second}
				want.Restart = Restart{Policy: RestartNo, Delay: time.Second, MaxDelay: time.Minute, Limit: 5, Interval: 10 * time.Minute}
				want.Ready = Ready{When: ReadyStarted, Timeout: 5 * time.Minute}
				want.Balloon = want.Hugepages == 0
				want.Confine = Confine{User: true, Seccomp: true, Root: true, Namespaces: true, Landlock: true, RLimits: true}
			}
			if diff := cmp.Diff(&want, got, cmpGuest); diff != "" {
				t.Errorf("guest (-want +got):\n%s", diff)
			}
			checkGuest(t, got)
		})
	}
	for _, k := range Reference()[1:] {
		if !tested[k.Path] {
			t.Errorf("no spec here has %s", k.Path)
		}
	}
}

// TestBad compares the errors of each spec in testdata/bad with the text
// beside it.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.toml")
	if err != nil || len(files) < 60 {
		t.Fatalf("found %d bad specs, err %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = ParseFleet(filepath.Base(file), data)
			var errs Errors
			if !errors.As(err, &errs) {
				t.Fatalf("Parse: %v, want Errors", err)
			}
			got := err.Error() + "\n"
			golden := strings.TrimSuffix(file, ".toml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("web1.toml", []byte("[boot]\nkernel = \"vmlinuz\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	g, err := Load("web1.toml")
	if err != nil {
		t.Fatal(err)
	}
	// The working directory may be spelled in another way than dir.
	if !filepath.IsAbs(g.Path) || g.Boot.Kernel != filepath.Join(filepath.Dir(g.Path), "vmlinuz") || g.Name != "web1" {
		t.Errorf("got path %q, kernel %q, name %q", g.Path, g.Boot.Kernel, g.Name)
	}
	if _, err := Load("absent.toml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of no file: %v", err)
	}
	if err := errors.Join(os.WriteFile("big.toml", nil, 0o644), os.Truncate("big.toml", 1<<30)); err != nil {
		t.Fatal(err)
	}
	var e *Error
	if _, err := Load("big.toml"); !errors.As(err, &e) || e.Error() != "big.toml: larger than 1MiB: is this a spec?" {
		t.Errorf("Load of a big file: %v", err)
	}
}

func TestErrorf(t *testing.T) {
	spec := "boot.kernel = \"k\" # 1\n" +
		"disk = [\n  {path = \"a.img\"},\n  {\n    path = \"b.img\",\n  },\n]\n" + // 2 to 7
		"[[nic]] # 8\nparent = \"eth0\"\n[[nic]] # 10\n\nparent = \"eth1\" # 12\n"
	g, err := Parse("dir/../web1.toml", []byte(spec))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		key  string
		want int
	}{
		{"a key", "nic[1].parent", 12},
		{"a key that is not there", "nic[0].mac", 8},
		{"another", "nic[1].mac", 10},
		{"a dotted key", "boot.kernel", 1},
		{"beside a dotted key", "boot.initrd", 1},
		{"an inline table", "disk[0].path", 3},
		{"one on several lines", "disk[1].path", 5},
		{"beside it", "disk[1].base", 4},
		{"an array", "disk", 2},
		{"a NIC that is not there", "nic[2].mac", 8},
		{"a table that is not there", "stop.timeout", 0},
		{"a top key that is not there", "memory", 0},
		{"the guest", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := &Error{File: "dir/../web1.toml", Line: tt.want, Key: tt.key, Msg: "is 7"}
			if diff := cmp.Diff(want, g.Errorf(tt.key, "is %d", 7)); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
	if got := (&Guest{}).Errorf("nic[0].parent", "no such link").Error(); got != "nic[0].parent: no such link" {
		t.Errorf("error of a guest without a file: %q", got)
	}
}

func TestParseWithoutFile(t *testing.T) {
	t.Chdir(t.TempDir())
	_, err := Parse("", []byte("[boot]\nkernel = \"vmlinuz\"\n"))
	if want := `name: missing: a spec that is not a file needs one, as name = "web1"`; err == nil || err.Error() != want {
		t.Errorf("Parse: %v, want %s", err, want)
	}
	g, err := Parse("", []byte("name = \"a\"\n[boot]\nkernel = \"vmlinuz\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if g.Path != "" || g.Boot.Kernel != filepath.Join(wd, "vmlinuz") {
		t.Errorf("path %q, kernel %q", g.Path, g.Boot.Kernel)
	}
}

// A pipe keeps nobody who reads all specs of a directory.
func TestLoadPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web1.toml")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	loaded := make(chan error, 1)
	go func() {
		_, err := Load(path)
		loaded <- err
	}()
	select {
	case err := <-loaded:
		if !errors.As(err, new(Errors)) {
			t.Errorf("%v", err)
		}
	case <-time.After(2 * pipeTimeout):
		t.Fatal("it waits for somebody to write")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("name = \"web1\"\nboot.kernel = \"/k\"\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if g, err := Load(fmt.Sprintf("/dev/fd/%d", r.Fd())); err != nil || g.Name != "web1" {
		t.Errorf("from a pipe: %+v, %v", g, err)
	}
}
