package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/launcher/systemdtest"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

// pain is one thing that hurts users, and a situation in which it does.
type pain struct {
	number int
	name   string
	id     string // of the finding that tells it
	level  Level
	in     func(*testing.T) []Finding
}

// painsAtRest are those that need no guest to run.
var painsAtRest = []pain{
	{1, "the host cannot reach the guest", "host-access", Note, ofNIC("")},
	{2, "IPv6 and mDNS are dead: multicast is off", "multicast", Warn, ofNIC(`multicast = "off"`)},
	{2, "IPv6 and mDNS are dead: a bridge without querier", "multicast-snooping", Warn, aboutNIC("br0", bridge("br0"))},
	{3, "stop is a power cut: no time", "power-cut", Warn, ofSpec("[stop]\ntimeout = \"0s\"")},
	{3, "stop is a power cut: no ACPI", "power-cut", Warn, ofSpec(`qemu_args = ["-no-acpi"]`)},
	{3, "stop is a power cut: systemd does not wait", "power-cut", Warn, shortUnit},
	{4, "a MAC is in use in another namespace", "mac-in-use", Bad, macInUse},
	{4, "a macvtap was left behind", "leaked-child", Warn, leakedChild},
	{5, "the tap is forbidden", "tap-forbidden", Bad, withoutMknod},
	{6, "a file is where a tap should be", "tap-file", Warn, aboutHost(overmount("/dev", map[string]string{"tap7": ""}))},
	{7, "the parent is a bridge's", "owned-parent", Bad, aboutNIC("eth0", bridge("br0", "eth0"))},
	{8, "the parent is Wi-Fi", "wifi-parent", Bad, aboutNIC("eth0", overmount("/sys", map[string]string{"class/net/eth0/phy80211/name": "phy0"}))},
	{9, "a virtual switch drops unknown MACs", "virtual-switch", Warn, aboutHost(overmount("/sys", map[string]string{"class/dmi/id/sys_vendor": "VMware, Inc.\n"}))},
	{11, "an image has no machine id", "machine-id", Bad, aboutHost(bind("/etc/machine-id", "uninitialized\n"))},
	{12, "KVM is there and does not work", "kvm-unusable", Warn, brokenKVM},
	{13, "vhost is missing: asked for by the NIC", "vhost-missing", Bad, withoutVhost(nic("bridge", `vhost = "on"`))},
	{13, "vhost is missing: asked for by qemu_args", "vhost-missing", Bad, withoutVhost(`qemu_args = ["-netdev", "tap,id=x,vhost=on"]`)},
	{16, "the disk's file system is full", "disk-full", Warn, fullDisk},
	{17, "more memory than there is", "low-memory", Warn, ofSpec(`memory = "900GiB"`)},
	{18, "the NIC is not there: asked for by name", "missing-nic", Bad, aboutNIC("eth1", nothing)},
	{18, "the NIC is not there: asked for by a spec", "missing-nic", Bad, ofSpec("[[nic]]\nparent = \"eth1\"")},
	{20, "there is no link", "no-carrier", Warn, aboutNIC("eth0", unplug)},
	{21, "a monitor of the user's own", "monitor", Note, ofSpec(`qemu_args = ["-qmp", "unix:/tmp/qmp,server=on,wait=off"]`)},
	{22, "-daemonize under -sandbox", "sandbox", Bad, ofSpec(`qemu_args = ["-daemonize"]`)},
	{23, "a machine type that is no more", "qemu-machine", Bad, ofSpec(`machine = "pc-q35-1.4"`)},
	{23, "an option that is no more", "qemu-option", Bad, ofSpec(`qemu_args = ["-watchdog", "i6300esb"]`)},
	{24, "passthru takes the host's NIC", "passthru-host", Bad, passthruHost},
}

// TestPains makes every situation of the list, as really as this machine can,
// and wants it told.
func TestPains(t *testing.T) {
	needRoot(t)
	requireQEMU(t)
	told := map[int]bool{}
	try := func(p pain) {
		t.Run(fmt.Sprintf("%d %s", p.number, p.name), func(t *testing.T) {
			found := p.in(t)
			for _, f := range found {
				if f.ID != p.id || f.Level != p.level {
					continue
				}
				if f.Why == "" || f.Remedy == "" {
					t.Errorf("says not why, or not what to do: %+v", f)
				}
				t.Logf("%s: %s\n\twhy: %s\n\ttry: %s", f.Topic, f.Text, f.Why, f.Remedy)
				told[p.number] = true
				return
			}
			t.Errorf("no %s %s in:\n%+v", p.level, p.id, found)
		})
	}
	for _, p := range painsAtRest {
		try(p)
	}
	for _, p := range painsOfAGuest(t) {
		try(p)
	}
	delete(told, 0) // what is not on the list
	t.Logf("%d of the 25 pains are told", len(told))
	if len(told) < 20 {
		t.Error("fewer than 20")
	}
}

// A host without any of this has nothing to complain of.
func TestNoPains(t *testing.T) {
	requireQEMU(t)
	g := specOf(t, nic("bridge", "host_access = true"))
	quiet := map[string]bool{"virtual-switch": true, "disk-full": true} // this machine's own
	for _, f := range inspectHost(t, t.TempDir(), hostWith(nothing), Subject{Spec: g}, Subject{Parent: "lab0"}) {
		if f.Level != Good && !quiet[f.ID] {
			t.Errorf("%+v", f)
		}
	}
}

// What follows makes the situations: a function prepares a host, which has the
// link eth0, or lab0 for specs, with its cable in.

func nothing() error { return nil }

// hostWith adds the links to what prepare makes of them.
func hostWith(prepare func() error) func() error {
	return func() error {
		for _, name := range []string{"eth0", "lab0"} {
			pair := vethPair(name)
			if err := addUp(pair); err != nil {
				return err
			}
			peer, err := netlink.LinkByName(name + "-peer")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(peer); err != nil {
				return err
			}
		}
		return prepare()
	}
}

func addUp(link netlink.Link) error {
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func aboutHost(prepare func() error) func(*testing.T) []Finding {
	return func(t *testing.T) []Finding { return inspectHost(t, t.TempDir(), hostWith(prepare)) }
}

func aboutNIC(name string, prepare func() error) func(*testing.T) []Finding {
	return func(t *testing.T) []Finding {
		return inspectHost(t, t.TempDir(), hostWith(prepare), Subject{Parent: name})
	}
}

func ofSpec(lines ...string) func(*testing.T) []Finding {
	return func(t *testing.T) []Finding {
		return inspectHost(t, t.TempDir(), hostWith(nothing), Subject{Spec: specOf(t, lines...)})
	}
}

func ofNIC(lines ...string) func(*testing.T) []Finding { return ofSpec(nic("bridge", lines...)) }

// specOf reads a spec with a disk of its own, and these lines on top where they
// are keys.
func specOf(t *testing.T, lines ...string) *configs.Guest {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	text := "accel = \"tcg\"\n" + strings.Join(lines, "\n") + fmt.Sprintf("\n[[disk]]\npath = %q\n", disk)
	path := filepath.Join(dir, "web1.toml")
	if err := errors.Join(os.WriteFile(disk, make([]byte, 512), 0o600), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return mustLoad(t, path)
}

// bridge makes one that snoops and asks nobody, as all do at first, and mounts
// the sysfs of this network namespace.
func bridge(name string, ports ...string) func() error {
	return func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		snoop := true
		br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}
		if err := addUp(br); err != nil {
			return err
		}
		for _, port := range ports {
			link, err := netlink.LinkByName(port)
			if err == nil {
				err = netlink.LinkSetMaster(link, br)
			}
			if err != nil {
				return err
			}
		}
		return unix.Mount("sysfs", "/sys", "sysfs", 0, "")
	}
}

func unplug() error {
	peer, err := netlink.LinkByName("eth0-peer")
	if err != nil {
		return err
	}
	return netlink.LinkSetDown(peer)
}

// overmount puts a file system with nothing but these files over a directory, of
// which this machine lacks the like.
func overmount(dir string, files map[string]string) func() error {
	return func() error {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
			return err
		}
		for name, text := range files {
			path := filepath.Join(dir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
				return err
			}
		}
		return nil
	}
}

// bind puts a file with this text over one that is there.
func bind(path, text string) func() error {
	return func() error {
		f, err := os.CreateTemp("", "vmrun-test-")
		if err != nil {
			return err
		}
		defer os.Remove(f.Name()) // the mount keeps it
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			return err
		}
		return unix.Mount(f.Name(), path, "", unix.MS_BIND, "")
	}
}

// macInUse has another process keep a child with the guest's MAC, out of sight.
func macInUse(t *testing.T) []Finding {
	mac := net.HardwareAddr{2, 0, 0, 0, 0x77, 1}
	ns, err := netsetup.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return inspectHost(t, t.TempDir(), hostWith(func() error {
		c := netsetup.Child{Name: "net0", Index: 1<<24 + 7, NIC: configs.NIC{Parent: "lab0", Mode: configs.ModeBridge, MAC: mac, Queues: 1}}
		if err := ns.Create(c); err != nil {
			return err
		}
		keeper := exec.Command("sleep", "60")
		t.Cleanup(func() { keeper.Process.Kill(); keeper.Wait() })
		return ns.Do(keeper.Start)
	}), Subject{Spec: specOf(t, nic("bridge", fmt.Sprintf("mac = %q", mac)))})
}

// leakedChild has a macvtap without anybody behind it in the host's namespace.
func leakedChild(t *testing.T) []Finding {
	return aboutNIC("eth0", func() error {
		parent, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = "macvtap0", parent.Attrs().Index
		if err := netlink.LinkAdd(&netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}}); err != nil {
			return err
		}
		return unix.Mount("sysfs", "/sys", "sysfs", 0, "")
	})(t)
}

func init() { children["doctor"] = diagnoseForTest }

// diagnoseForTest is a vmrun doctor whose privileges and whereabouts its parent
// has chosen, and the spec if there is one.
func diagnoseForTest() error {
	var subjects []Subject
	if len(os.Args) > 1 {
		g, err := configs.Load(os.Args[1])
		if err != nil {
			return err
		}
		subjects = append(subjects, Subject{Spec: g})
	}
	ns, err := netsetup.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		return json.NewEncoder(os.Stdout).Encode(Diagnose(context.Background(), os.TempDir(), subjects...))
	})
}

func decodeFindings(t *testing.T, text string) []Finding {
	t.Helper()
	var found []Finding
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	wellFormed(t, found)
	return found
}

// shortUnit has a real systemd with a unit that gives its guest no time.
func shortUnit(t *testing.T) []Finding {
	systemdtest.Require(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := systemdtest.Boot(t, systemdtest.Options{
		Etc: map[string]string{
			"systemd/system/vmrun@.service": "[Service]\nExecStart=/usr/bin/sleep infinity\nTimeoutStopSec=10\n",
			"vmrun/web1.toml":               "accel = \"tcg\"\n[boot]\nkernel = \"/etc/hostname\"\n[stop]\ntimeout = \"60s\"\n",
		},
		Binds: map[string]string{"/srv/doctor": self},
	})
	return decodeFindings(t, c.Run("env", childEnv+"=doctor", "/srv/doctor", "/etc/vmrun/web1.toml"))
}

// withoutMknod runs a doctor that may make no devices, as in most containers.
func withoutMknod(t *testing.T) []Finding {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=doctor")
	cmd.Stderr = os.Stderr
	ns, err := netsetup.CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var out []byte
	if err := ns.Do(func() (err error) {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_MKNOD, 0, 0, 0); err != nil {
			return err
		}
		out, err = cmd.Output()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return decodeFindings(t, string(out))
}

// brokenKVM gives a QEMU of another name, whose verdict is nobody else's, a
// /dev/kvm that is none; where KVM does not work anyway it is left alone.
func brokenKVM(t *testing.T) []Finding {
	needKVMDevice(t)
	qemu, err := findQEMU(&configs.Guest{Arch: configs.ArchX86})
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), filepath.Base(qemu))
	if err := os.Symlink(qemu, link); err != nil {
		t.Fatal(err)
	}
	g := specOf(t, fmt.Sprintf("qemu = %q", link))
	g.Accel = configs.AccelAuto
	forgetVerdict(t, link, "host")
	return inspectHost(t, t.TempDir(), hostWith(func() error {
		if kvmWorks(t.Context(), &configs.Guest{}, qemu) != nil {
			return nil
		}
		return unix.Mount("/dev/null", kvmDevice, "", unix.MS_BIND, "")
	}), Subject{Spec: g})
}

// withoutVhost has a host whose kernel has no vhost-net.
func withoutVhost(lines ...string) func(*testing.T) []Finding {
	return func(t *testing.T) []Finding {
		g := specOf(t, lines...)
		return inspectHost(t, t.TempDir(), hostWith(overmount("/dev", map[string]string{"null": ""})), Subject{Spec: g})
	}
}

// fullDisk has a sparse image on a file system without room.
func fullDisk(t *testing.T) []Finding {
	g := specOf(t)
	dir := filepath.Dir(g.Disks[0].Path)
	return inspectHost(t, t.TempDir(), hostWith(func() error {
		if err := overmount(dir, map[string]string{"filler": strings.Repeat("x", 1<<20-16<<10)})(); err != nil {
			return err
		}
		return errors.Join(os.WriteFile(g.Disks[0].Path, nil, 0o600), os.Truncate(g.Disks[0].Path, 1<<30))
	}), Subject{Spec: g})
}

// passthruHost gives the NIC with the host's default route away.
func passthruHost(t *testing.T) []Finding {
	return inspectHost(t, t.TempDir(), hostWith(func() error {
		link, err := netlink.LinkByName("lab0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(nettest.HostAddr4.String())
		if err == nil {
			err = netlink.AddrAdd(link, addr)
		}
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IP(nettest.OutsideAddr4.Addr().AsSlice())})
	}), Subject{Spec: specOf(t, nic("passthru"))})
}
