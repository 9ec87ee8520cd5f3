package launcher

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vmrun/configs"
	"vmrun/netsetup"
)

// platform is what QEMU needs to be told for a guest of one architecture.
type platform struct {
	goarch   string // GOARCH's word for it
	binary   string
	pkg      string // Debian's package that has it
	machine  string
	options  string           // of any of its machine types
	firmware configs.Firmware // by default
	emulated string           // the CPU model
	screen   []string         // devices of a guest with a display
}

var platforms = map[configs.Arch]platform{
	configs.ArchX86: {
		goarch: "amd64", binary: "qemu-system-x86_64", pkg: "qemu-system-x86", machine: "q35", firmware: configs.FirmwareBIOS, emulated: "max",
		screen: []string{"VGA", "qemu-xhci,id=usb", "usb-tablet,bus=usb.0"}, // the chipset has a keyboard
	},
	configs.ArchARM: {
		goarch: "arm64", binary: "qemu-system-aarch64", pkg: "qemu-system-arm", machine: "virt", firmware: configs.FirmwareUEFI,
		options: ",gic-version=max", // which has no bound of 8 CPUs
		// QEMU's own algorithm for pointer authentication: emulating Arm's takes half of
		// the time (QEMU's docs/system/arm/cpu-features.rst).
		emulated: "max,pauth-impdef=on",
		screen:   []string{"virtio-gpu-pci", "qemu-xhci,id=usb", "usb-kbd,bus=usb.0", "usb-tablet,bus=usb.0"},
	},
}

// archOf is the architecture that goes by this word of GOARCH, "" for none here.
func archOf(goarch string) configs.Arch {
	for arch, p := range platforms {
		if p.goarch == goarch {
			return arch
		}
	}
	return ""
}

// settled is the guest with what follows from its architecture, which is the host's
// where its spec says nothing.
func settled(g *configs.Guest, host configs.Arch) *configs.Guest {
	s := *g
	if s.Arch == "" {
		s.Arch = host
	}
	if s.Firmware == "" {
		s.Firmware = platforms[s.Arch].firmware
	}
	return &s
}

// machineOf is the machine type of a settled guest.
func machineOf(g *configs.Guest) string {
	if g.Machine != "" {
		return g.Machine
	}
	return platforms[g.Arch].machine
}

// sandbox is QEMU's own seccomp filter (qemu-system-x86_64(1), -sandbox). It
// denies nothing that QEMU needs once it starts without privileges.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// commandLine collects QEMU's options.
type commandLine []string

func (c *commandLine) add(words ...string) { *c = append(*c, words...) }

// argv is QEMU's command line without the program's own name, and fds the
// numbers of the files that it expects to find open.
func argv(p *Plan, facts Facts, fds *descriptors) []string {
	g := p.Guest
	var c commandLine
	c.add("-name", "guest="+g.Name+",debug-threads=on", "-uuid", p.UUID.String())
	c.add("-nodefaults", "-no-user-config", "-display", "none", "-S")
	if g.Confine.Seccomp {
		c.add("-sandbox", sandbox)
	}
	c.addMachine(p)
	c.addFirmware(p, facts, fds)
	c.add("-chardev", fmt.Sprintf("socket,id=monitor,fd=%d,server=on,wait=off", fds.add(fdMonitor)), "-mon", "chardev=monitor,mode=control")
	c.add("-chardev", fmt.Sprintf("socket,id=console,fd=%d,server=on,wait=off", fds.add(fdConsole)), "-serial", "chardev:console")
	c.add("-device", "virtio-rng-pci", "-device", "pvpanic-pci")
	c.addAgent(fds.add(fdAgent))
	c.addScreen(g)
	c.addBoot(g, fds)
	for i, d := range g.Disks {
		c.addDisk(i, d, facts, fds)
	}
	for n := range p.Ports {
		c.add("-device", port(n).line())
	}
	for _, child := range p.Children {
		c.addNIC(child, p.Ports > 0, fds)
	}
	c.add(g.QEMUArgs...)
	return c
}

func (c *commandLine) addMachine(p *Plan) {
	g := p.Guest
	machine := machineOf(g) + platforms[g.Arch].options
	if p.firmware != nil {
		machine += ",pflash0=" + fdCode + ",pflash1=" + fdVars
	}
	if g.SecureBoot {
		machine += ",smm=on"
	}
	if p.memory != nil {
		machine = machineNow(machine, p.memory.Machine)
		c.add("-incoming", "defer")
	}
	c.add("-machine", machine)
	cpu := g.CPU
	switch {
	case p.Accel == configs.AccelKVM:
		c.add("-accel", "kvm")
		if cpu == "" {
			cpu = "host"
		}
	default:
		c.add("-accel", "tcg,thread=multi")
		if cpu == "" {
			cpu = platforms[g.Arch].emulated
		}
	}
	c.add("-cpu", cpu, "-smp", strconv.Itoa(g.CPUs), "-m", fmt.Sprintf("%dM", g.Memory>>20))
}

// addScreen adds a screen that nobody can see yet: those who look at it are handed
// to QEMU one by one (display_linux.go).
func (c *commandLine) addScreen(g *configs.Guest) {
	if g.Display != configs.DisplayVNC {
		return
	}
	c.add("-vnc", "none,share=force-shared")
	for _, device := range platforms[g.Arch].screen {
		c.add("-device", device)
	}
}

// addBoot names kernel and initrd by descriptor: they are sealed memfds, which
// QEMU can open whatever its uid is, and nobody can change under it.
func (c *commandLine) addBoot(g *configs.Guest, fds *descriptors) {
	if g.Boot.Kernel == "" {
		return
	}
	c.add("-kernel", fmt.Sprintf("/dev/fd/%d", fds.add(fdKernel)))
	if g.Boot.Initrd != "" {
		c.add("-initrd", fmt.Sprintf("/dev/fd/%d", fds.add(fdInitrd)))
	}
	if g.Boot.Cmdline != "" {
		c.add("-append", g.Boot.Cmdline)
	}
}

func (c *commandLine) addNIC(child netsetup.Child, slots bool, fds *descriptors) {
	var taps, vhosts []string
	for q := range child.Queues {
		taps = append(taps, strconv.Itoa(fds.add(tapName(child, q))))
	}
	if child.Vhost == configs.VhostOn {
		for q := range child.Queues {
			vhosts = append(vhosts, strconv.Itoa(fds.add(vhostName(child, q))))
		}
	}
	c.add("-netdev", backend(child, taps, vhosts).line(), "-device", device(child, slots).line())
}

func tapName(c netsetup.Child, queue int) string   { return fmt.Sprintf("%s queue %d", c.Name, queue) }
func vhostName(c netsetup.Child, queue int) string { return fmt.Sprintf("%s vhost %d", c.Name, queue) }

// bootIndex is the device option that puts it into the boot order, or otherwise.
func bootIndex(index int, otherwise string) string {
	if index < 0 {
		return otherwise
	}
	return fmt.Sprintf(",bootindex=%d", index)
}

const scsiController = "virtio-scsi-pci,id=scsi0"

// addDisk builds the chain of block nodes bottom up. Each layer is opened by
// number and has its format and its backing spelt out, so that QEMU looks into
// no image to find out.
func (c *commandLine) addDisk(i int, d configs.Disk, facts Facts, fds *descriptors) {
	node := fmt.Sprintf("disk%d", i)
	var backing any // nil: JSON null, which forbids a backing file named inside the image
	if d.Base != "" {
		base := d
		base.Path, base.Format, base.Readonly, base.Discard = d.Base, d.BaseFormat, true, false
		c.addLayer(node+"-base", base, nil, facts, fds)
		backing = node + "-base"
	}
	c.addLayer(node, d, backing, facts, fds)
	if d.Bus == configs.BusSCSI && !slices.Contains(*c, scsiController) {
		c.add("-device", scsiController)
	}
	device := fmt.Sprintf("%s,id=drive%d,drive=%s", diskDevice(d)+c.idePort(d), i, node)
	if !d.Readonly && (d.Cache == configs.CacheWritethrough || d.Cache == configs.CacheDirectsync) {
		device += ",write-cache=off"
	}
	c.add("-device", device+bootIndex(d.BootIndex, ""))
}

func diskDevice(d configs.Disk) string {
	kind := "hd"
	if d.CDROM {
		kind = "cd"
	}
	switch d.Bus {
	case configs.BusSCSI:
		return "scsi-" + kind + ",bus=scsi0.0"
	case configs.BusIDE:
		return "ide-" + kind
	}
	return "virtio-blk-pci"
}

// idePort says where a drive on IDE goes: each port of q35's controller takes one,
// and QEMU would put the second on the first port too.
func (c commandLine) idePort(d configs.Disk) string {
	ports, drives := false, 0
	for i, word := range c {
		ports = ports || i > 0 && c[i-1] == "-machine" && strings.Contains(word, "q35")
		if strings.HasPrefix(word, "ide-") {
			drives++
		}
	}
	if d.Bus != configs.BusIDE || !ports {
		return ""
	}
	return fmt.Sprintf(",bus=ide.%d", drives)
}

// addLayer adds one image: a node for the open file and one for its format.
func (c *commandLine) addLayer(node string, d configs.Disk, backing any, facts Facts, fds *descriptors) {
	fd, set := fds.addSet(node, d.Path)
	c.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, set))
	discard := "ignore"
	if d.Discard {
		discard = "unmap"
	}
	driver := "file"
	if facts.Devices[d.Path] {
		driver = "host_device"
	}
	c.addBlockdev(map[string]any{
		"driver":         driver,
		"node-name":      node + "-file",
		"filename":       fmt.Sprintf("/dev/fdset/%d", set),
		"read-only":      d.Readonly,
		"auto-read-only": false,
		"discard":        discard,
		"cache": map[string]bool{
			"direct":   d.Cache == configs.CacheNone || d.Cache == configs.CacheDirectsync,
			"no-flush": d.Cache == configs.CacheUnsafe,
		},
	})
	format := map[string]any{
		"driver":         string(d.Format),
		"node-name":      node,
		"file":           node + "-file",
		"read-only":      d.Readonly,
		"auto-read-only": false,
		"discard":        discard,
	}
	if d.Format == configs.FormatQCOW2 {
		format["backing"] = backing
	}
	c.addBlockdev(format)
}

// addBlockdev writes the option as JSON, which needs no escaping of its own.
func (c *commandLine) addBlockdev(options map[string]any) {
	text, err := json.Marshal(options)
	if err != nil {
		panic(err) // strings, booleans and nil only
	}
	c.add("-blockdev", string(text))
}
