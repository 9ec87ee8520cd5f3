package launcher

import (
	"fmt"
	"strconv"

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
	tpm      string
	screen   []string // devices of a guest with a display
}

var platforms = map[configs.Arch]platform{
	configs.ArchX86: {
		goarch: "amd64", binary: "qemu-system-x86_64", pkg: "qemu-system-x86", machine: "q35", firmware: configs.FirmwareBIOS, emulated: "max", tpm: "tpm-crb",
		screen: []string{"VGA", "qemu-xhci,id=usb", "usb-tablet,bus=usb.0"}, // the chipset has a keyboard
	},
	configs.ArchARM: {
		goarch: "arm64", binary: "qemu-system-aarch64", pkg: "qemu-system-arm", machine: "virt", firmware: configs.FirmwareUEFI,
		options: ",gic-version=max", // which has no bound of 8 CPUs
		// QEMU's own algorithm for pointer authentication: emulating Arm's takes half of
		// the time (QEMU's docs/system/arm/cpu-features.rst).
		emulated: "max,pauth-impdef=on",
		tpm:      "tpm-tis-device",
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
		c.addDisk(i, d, p.chains[i], fds)
	}
	for n := range p.Ports {
		c.add("-device", port(n).line())
	}
	for _, child := range p.Children {
		c.addNIC(child, p.Ports > 0, p.firmware != nil, fds)
	}
	c.addSeed(p, fds)
	c.addDevices(g, fds)
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
	c.add("-cpu", cpu)
	c.addCPUs(g)
	c.addMemory(g)
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

// addBoot names kernel and initrd by descriptor: QEMU sees no file of the host, and
// can change neither.
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

func (c *commandLine) addNIC(child netsetup.Child, slots, uefi bool, fds *descriptors) {
	var taps, vhosts []string
	for q := range child.Queues {
		taps = append(taps, strconv.Itoa(fds.add(tapName(child, q))))
	}
	if child.Vhost == configs.VhostOn {
		for q := range child.Queues {
			vhosts = append(vhosts, strconv.Itoa(fds.add(vhostName(child, q))))
		}
	}
	c.add("-netdev", backend(child, taps, vhosts).line(), "-device", device(child, slots, uefi).line())
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
