package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/netsetup"
)

// hostFacts are those about the host that no guest has a part in.
type hostFacts struct {
	capsErr error
	missing []string // capabilities that a supervisor needs

	tapErr   error    // of making a child and opening its tap
	tapFiles []string // regular files named like tap devices
	vendor   string   // of the machine (DMI), "" for unknown
	product  string

	machineID string
	idErr     error
	dbusID    string    // D-Bus's own copy, "" for none
	idAge     time.Time // when the id was written
	keyAge    time.Time // when the host's SSH keys were; zero for none

	base    string
	baseErr error
	baseGap room     // of the run directory's file system
	stale   []string // guests whose records say that they run

	shared map[string][]string // guests by an address that more than one of them has
}

var hostChecks = []check[hostFacts]{
	{"privileges", "privileges", checkPrivileges},
	{"macvtap", "macvtap", checkTap},
	{"tap-file", "macvtap", checkTapFiles},
	{"virtual-switch", "virtual switch", checkVirtualSwitch},
	{"machine-id", "machine id", checkMachineID},
	{"run-directory", "run directory", checkRunDir},
	{"stale-record", "run directory", checkStale},
	{"shared-address", "addresses", checkSharedAddresses},
}

func gatherHost(ctx context.Context, base string) hostFacts {
	f := hostFacts{base: base, tapErr: netsetup.Try(), vendor: dmi("sys_vendor"), product: dmi("product_name")}
	f.missing, f.capsErr = missingCapabilities()
	names, _ := filepath.Glob("/dev/tap[0-9]*")
	for _, name := range names {
		if info, err := os.Lstat(name); err == nil && info.Mode().IsRegular() {
			f.tapFiles = append(f.tapFiles, name)
		}
	}
	id, err := os.ReadFile("/etc/machine-id")
	f.machineID, f.idErr = strings.TrimSpace(string(id)), err
	if id, err := os.ReadFile("/var/lib/dbus/machine-id"); err == nil {
		f.dbusID = strings.TrimSpace(string(id))
	}
	f.idAge = oldest("/etc/machine-id")
	f.keyAge = oldest("/etc/ssh/ssh_host_*_key")
	f.baseErr = canWrite(base)
	f.baseGap = roomAt(base)
	for _, name := range guestNames(base) {
		if guestDir(base, name).isStale() {
			f.stale = append(f.stale, name)
		}
	}
	guests, _ := List(ctx, base) // of those that cannot be looked at nothing is known
	f.shared = sharedAddresses(guests)
	return f
}

// dmi is one of the words that the machine's maker has left in its firmware.
func dmi(key string) string {
	text, _ := os.ReadFile("/sys/class/dmi/id/" + key)
	return strings.TrimSpace(string(text))
}

// oldest is when the oldest of the files was written, zero for none.
func oldest(pattern string) time.Time {
	var first time.Time
	paths, _ := filepath.Glob(pattern)
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && (first.IsZero() || info.ModTime().Before(first)) {
			first = info.ModTime()
		}
	}
	return first
}

// isStale reports whether a guest is recorded as running and is not there.
func (d runDir) isStale() bool {
	if _, supervised := d.supervisor(); supervised {
		return false
	}
	rec, err := d.readRecord()
	return err == nil && rec.Ended == nil && !rec.alive()
}

func missingCapabilities() (missing []string, err error) {
	held, err := heldCapabilities()
	for _, p := range privileges {
		if err == nil && held&(1<<p.bit) == 0 {
			missing = append(missing, fmt.Sprintf("%s (to %s)", p.name, p.why))
		}
	}
	return missing, err
}

func checkPrivileges(f hostFacts) []Finding {
	switch {
	case f.capsErr != nil:
		return tell(Bad, f.capsErr.Error(), "", "")
	case len(f.missing) > 0:
		return tell(Bad, "lacks "+strings.Join(f.missing, ", "), "", "run vmrun as root")
	}
	return tell(Good, "all that a start needs", "", "")
}

// checkTap judges the making of a macvtap child in a namespace of its own, on a
// NIC made for it: the one sure way to know that the kernel can.
func checkTap(f hostFacts) []Finding {
	var link *netsetup.LinkError
	switch {
	case f.tapErr == nil:
		return tell(Good, "the kernel makes children and opens their taps", "", "")
	case errors.Is(f.tapErr, unix.EOPNOTSUPP):
		return tell(Bad, "this kernel has none", "", "modprobe macvtap")
	case errors.As(f.tapErr, &link) && link.Op == "open tap" && errors.Is(f.tapErr, unix.EPERM):
		found := tell(Bad, f.tapErr.Error(),
			"the tap of a child is a new character device each time: the container, or unit, that vmrun runs in has no CAP_MKNOD, or its device controller allows no macvtap",
			"systemctl edit, and DeviceAllow=char-macvtap rwm; of a container: allow c MAJOR:* rwm, the number that /proc/devices has for macvtap")
		found[0].ID = "tap-forbidden"
		return found
	}
	return tell(Bad, f.tapErr.Error(), "", "")
}

func checkTapFiles(f hostFacts) []Finding {
	if len(f.tapFiles) == 0 {
		return nil
	}
	names := strings.Join(f.tapFiles, " ")
	return tell(Warn, names+": a regular file where tap devices are",
		`a shell's "3<>/dev/tapN" makes one when the device is not there yet, and then other tools fail with "Inappropriate ioctl for device"; vmrun does not use these names`,
		"rm "+names)
}

// virtualSwitches are the makers of virtual machines, and how each lets the
// frames of further MACs through.
var virtualSwitches = []struct{ vendor, product, name, remedy string }{
	{"VMware", "", "VMware", "in the port group's security policy accept promiscuous mode, MAC address changes and forged transmits"},
	{"innotek", "", "VirtualBox", "VBoxManage modifyvm THIS-VM --nicpromisc1 allow-all"},
	{"Microsoft", "", "Hyper-V", "Set-VMNetworkAdapter -VMName THIS-VM -MacAddressSpoofing On; on Azure nothing helps"},
	{"Xen", "", "Xen", "give this domain's interface no MAC filter, or a NIC of its own"},
	{"Amazon EC2", "", "Amazon EC2", "no setting helps: route addresses of the subnet to the guests (kind = \"ipvtap\" shares the NIC's MAC)"},
	{"Google", "", "Google Compute Engine", "no setting helps: route alias addresses to the guests (kind = \"ipvtap\" shares the NIC's MAC)"},
	{"DigitalOcean", "", "DigitalOcean", "no setting helps (kind = \"ipvtap\" shares the NIC's MAC)"},
	{"Hetzner", "", "Hetzner", "order a MAC for each guest and set it with mac = …"},
	{"OpenStack", "", "OpenStack", "openstack port set --no-security-group --disable-port-security THIS-PORT"},
	{"", "OpenStack", "OpenStack", "openstack port set --no-security-group --disable-port-security THIS-PORT"},
	{"QEMU", "", "QEMU", "on the machine below: a bridge without MAC filter, or for libvirt's direct interfaces trustGuestRxFilters='yes'"},
	{"", "KVM", "KVM", "on the machine below: a bridge without MAC filter, or for libvirt's direct interfaces trustGuestRxFilters='yes'"},
}

func checkVirtualSwitch(f hostFacts) []Finding {
	for _, v := range virtualSwitches {
		if strings.HasPrefix(f.vendor, v.vendor) && strings.HasPrefix(f.product, v.product) {
			return tell(Warn, fmt.Sprintf("this host is itself a virtual machine (%s)", v.name),
				"virtual switches drop frames of MACs that they have not given out: guests send, and hear no answer", v.remedy)
		}
	}
	return nil
}

func checkMachineID(f hostFacts) []Finding {
	const clones = "MACs of guests are derived from it: two hosts with one id give their guests the same MACs"
	const renew = "rm -f /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup"
	switch {
	case f.idErr != nil || !isMachineID(f.machineID):
		return tell(Bad, "/etc/machine-id is missing or empty", "MACs of guests are derived from it", "systemd-machine-id-setup")
	case f.dbusID != "" && f.dbusID != f.machineID:
		return tell(Warn, "D-Bus has another: /var/lib/dbus/machine-id came from elsewhere, so this host may be a clone", clones, renew)
	case !f.keyAge.IsZero() && f.keyAge.Sub(f.idAge) > 24*time.Hour:
		return tell(Note, fmt.Sprintf("written on %s, the SSH keys of this host on %s: it may be a clone that has kept its original's id",
			f.idAge.Format(time.DateOnly), f.keyAge.Format(time.DateOnly)), clones, renew)
	}
	return tell(Good, "set; clones of this host that share it would share MACs too", "", "")
}

// isMachineID tells the 32 hexadecimal digits of an id from what images have in
// their place (machine-id(5)).
func isMachineID(text string) bool {
	return len(text) == 32 && strings.Trim(text, "0123456789abcdef") == "" && strings.Trim(text, "0") != ""
}

func canWrite(dir string) error {
	info, err := os.Stat(dir)
	for err != nil && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		info, err = os.Stat(dir)
	}
	if err == nil && !info.IsDir() {
		return fmt.Errorf("%s is no directory", dir)
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return fmt.Errorf("%s cannot be written: %w", dir, err)
	}
	return nil
}

func checkRunDir(f hostFacts) []Finding {
	switch {
	case f.baseErr != nil:
		return tell(Bad, f.baseErr.Error(), "", "choose another with --run-dir")
	case f.baseGap.full(1 << 20):
		found := tell(Bad, fmt.Sprintf("%s has %s left", f.base, f.baseGap), "records of guests and their logs are written there", "df -h "+f.base)
		found[0].ID = "disk-full"
		return found
	}
	return tell(Good, f.base, "", "")
}

func checkStale(f hostFacts) []Finding {
	if len(f.stale) == 0 {
		return nil
	}
	return tell(Warn, fmt.Sprintf("recorded as running, and gone: %s", strings.Join(f.stale, ", ")),
		"the host or the guest's processes ended while nobody watched; vmrun itself believes no record, but what reads the files may", "vmrun cleanup")
}

func checkSharedAddresses(f hostFacts) []Finding {
	var found []Finding
	for addr, names := range f.shared {
		found = append(found, tell(Warn, fmt.Sprintf("%s is used by %s", addr, strings.Join(names, " and ")),
			"clones of one image share its machine-id, which is what a DHCP server knows them by, and so get the same lease", renewInGuest)...)
	}
	return found
}

// renewInGuest gives a clone an identity of its own.
const renewInGuest = "in the guest: rm -f /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup; reboot"
