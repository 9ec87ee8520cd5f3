package configs

import "strings"

// isMachine tells whether g's machine type is of one of these families, as
// "pc-q35-7.2" is of "pc-q35". One that is left out is of all.
func isMachine(g *Guest, families ...string) bool {
	for _, f := range families {
		if g.Machine == "" || g.Machine == f || strings.HasPrefix(g.Machine, f+"-") {
			return true
		}
	}
	return false
}

// board checks what architecture, machine type and firmware have to do with each
// other.
func (c *resolver) board(g *Guest) {
	switch {
	case g.Machine != "" && isMachine(g, "microvm"):
		c.addf("machine", "%s has no PCI, which the guest's devices need: use \"q35\"", g.Machine)
	case g.Arch == ArchARM:
		c.boardARM(g)
	case g.Arch == ArchX86 && !isMachine(g, "q35", "pc"):
		c.addf("machine", `x86_64 has no machine %s: use "q35", or arch = "aarch64"`, quote(g.Machine))
	case !g.SecureBoot:
	case g.Firmware == FirmwareBIOS:
		c.addf("secure_boot", `only UEFI has it: use firmware = "uefi"`)
	case g.Firmware == "" && !c.isKnown("firmware"):
		c.addf("secure_boot", `it is UEFI's, and a guest has a BIOS by default: add firmware = "uefi"`)
	case !isMachine(g, "q35", "pc-q35"):
		c.addf("secure_boot", `machine %s cannot keep UEFI's variables from the guest's kernel (SMM): use "q35", or leave machine out`, quote(g.Machine))
	}
}

func (c *resolver) boardARM(g *Guest) {
	if !isMachine(g, "virt") {
		c.addf("machine", `aarch64 needs "virt", and not %s: use it, or leave machine out`, quote(g.Machine))
	}
	if g.Firmware == FirmwareBIOS {
		c.addf("firmware", `aarch64 has no BIOS: use "uefi", or leave firmware out`)
	}
	if g.SecureBoot {
		c.addf("secure_boot", "QEMU's aarch64 machine cannot keep UEFI's variables, and so its keys, from the guest's kernel: leave it out")
	}
}
