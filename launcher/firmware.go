package launcher

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"

	"vmrun/configs"
)

// firmware is a build of UEFI: code that is only read, and a template of the
// variables, of which each guest has its own copy.
type firmware struct {
	code, template image
}

// image is a file with an image of a disk, or of a flash memory.
type image struct {
	path   string
	format configs.DiskFormat
}

// firmwareDescriptor is what is read of a file by which a distribution describes a
// build to those who start QEMU (QEMU's docs/interop/firmware.json).
type firmwareDescriptor struct {
	Interfaces []string `json:"interface-types"`
	Mapping    struct {
		Device     string        `json:"device"`
		Mode       string        `json:"mode"` // "" is "split"
		Executable firmwareImage `json:"executable"`
		Template   firmwareImage `json:"nvram-template"`
	} `json:"mapping"`
	Targets []struct {
		Arch     configs.Arch `json:"architecture"`
		Machines []string     `json:"machines"` // globs
	} `json:"targets"`
	Features []string `json:"features"`
}

type firmwareImage struct {
	Filename string             `json:"filename"`
	Format   configs.DiskFormat `json:"format"`
}

func (i firmwareImage) image() image { return image{i.Filename, i.Format} }

// firmwareFor returns the build that a descriptor describes, if it is one for the
// guest g, whose architecture is known.
func firmwareFor(g *configs.Guest, descriptor []byte) (firmware, error) {
	var d firmwareDescriptor
	if err := json.Unmarshal(descriptor, &d); err != nil {
		return firmware{}, err
	}
	f := firmware{code: d.Mapping.Executable.image(), template: d.Mapping.Template.image()}
	has := func(feature string) bool { return slices.Contains(d.Features, feature) }
	switch {
	case !slices.Contains(d.Interfaces, "uefi"):
		return firmware{}, fmt.Errorf("it is no UEFI")
	case d.Mapping.Device != "flash" || d.Mapping.Mode != "" && d.Mapping.Mode != "split":
		return firmware{}, fmt.Errorf("it has no variables of its own")
	case !isImage(f.code) || !isImage(f.template):
		return firmware{}, fmt.Errorf("its files are of another format")
	case !d.fits(g.Arch, machineOf(g)):
		return firmware{}, fmt.Errorf("it is for another machine")
	case g.SecureBoot && !(has("secure-boot") && has("enrolled-keys") && has("requires-smm")):
		return firmware{}, fmt.Errorf("it has no secure boot with keys")
	case !g.SecureBoot && (has("enrolled-keys") || has("requires-smm")):
		return firmware{}, fmt.Errorf("it is for secure boot")
	}
	return f, nil
}

func isImage(i image) bool {
	return path.IsAbs(i.path) && (i.format == configs.FormatRaw || i.format == configs.FormatQCOW2)
}

// fits reports whether the build is for a machine type.
func (d firmwareDescriptor) fits(arch configs.Arch, machine string) bool {
	// What the short names stand for, in some version (hw/i386/pc_q35.c and others).
	if versioned, ok := map[string]string{"q35": "pc-q35-0", "pc": "pc-i440fx-0", "virt": "virt-0"}[machine]; ok {
		machine = versioned
	}
	for _, t := range d.Targets {
		fits := func(glob string) bool { ok, _ := path.Match(glob, machine); return ok }
		if t.Arch == arch && slices.ContainsFunc(t.Machines, fits) {
			return true
		}
	}
	return false
}

// varsFile is where the guest's variables are, in its state directory. Those with
// keys are others than those without: each begin as a copy of their own template.
func varsFile(g *configs.Guest) string {
	if g.SecureBoot {
		return "uefi-secure-boot.vars"
	}
	return "uefi.vars"
}

// addFirmware adds the two flash memories, which the machine then names.
func (c *commandLine) addFirmware(p *Plan, facts Facts, fds *descriptors) {
	if p.firmware == nil {
		return
	}
	code := layer{Path: p.firmware.code.path, Format: p.firmware.code.format}
	vars := layer{Path: p.vars, Format: p.firmware.template.format}
	c.addLayer(fdCode, fdCode, code, configs.Disk{Readonly: true}, nil, fds)
	c.addLayer(fdVars, fdVars, vars, configs.Disk{}, nil, fds)
	if p.Guest.SecureBoot { // else the guest's kernel could write the variables (OvmfPkg/README, SMM support)
		c.add("-global", "driver=cfi.pflash01,property=secure,value=on")
	}
}
