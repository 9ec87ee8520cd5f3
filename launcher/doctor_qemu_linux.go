package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"vmrun/configs"
)

// qemuFacts are those about the QEMU that a guest would have.
type qemuFacts struct {
	guest   *configs.Guest
	path    string
	version string // its own line
	err     error
	remedy  string // of err
	noImg   bool   // qemu-img is missing
	kvmErr  error

	firmware   *firmware
	noFirmware error // why there is none of the sort that the guest boots by

	machines map[string]bool // whether each is deprecated; empty where they could not be had
	devices  map[string]bool
	options  map[string]bool // whether each takes an argument
}

var qemuChecks = []check[qemuFacts]{
	{"qemu", "QEMU", checkQEMU},
	{"qemu-img", "qemu-img", checkQEMUImg},
	{"firmware", "firmware", checkFirmware},
	{"kvm-unusable", "accelerator", checkKVM},
	{"qemu-machine", "", checkMachine},
	{"qemu-device", "", checkModels},
	{"qemu-option", "", checkOptions},
	{"sandbox", "", checkSandbox},
}

func gatherQEMU(ctx context.Context, g *configs.Guest) qemuFacts {
	g = settled(g, archOf(runtime.GOARCH))
	f := qemuFacts{guest: g}
	pkg := platforms[g.Arch].pkg
	if f.path, f.err = findQEMU(g); f.err != nil {
		f.remedy = "apt-get install " + pkg
		return f
	}
	f.firmware, f.noFirmware = findFirmware(g)
	version, err := ask(ctx, f.path, "--version")
	if err != nil {
		f.err, f.remedy = err, "apt-get install --reinstall "+pkg
		return f
	}
	f.version = firstLine([]byte(version))
	_, err = exec.LookPath("qemu-img")
	f.noImg = err != nil
	if g.Accel != configs.AccelTCG {
		f.kvmErr = kvmWorks(ctx, g, f.path)
	}
	// What is not told is not judged.
	machines, _ := ask(ctx, f.path, "-machine", "help")
	devices, _ := ask(ctx, f.path, "-device", "help")
	options, _ := ask(ctx, f.path, "-help")
	f.machines, f.devices, f.options = parseMachines(machines), parseDevices(devices), parseOptions(options)
	return f
}

// ask runs QEMU for what it says of itself.
func ask(ctx context.Context, qemu string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemu, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", qemu, strings.Join(args, " "), err)
	}
	return string(out), nil
}

// parseMachines reads "-machine help": a name and a description on each line.
func parseMachines(text string) map[string]bool {
	machines := map[string]bool{}
	for line := range strings.Lines(text) {
		if name, about, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasSuffix(line, ":\n") {
			machines[name] = strings.Contains(about, "(deprecated")
		}
	}
	return machines
}

// parseDevices reads "-device help": name "e1000", bus PCI, alias "e1000-82540em", …
func parseDevices(text string) map[string]bool {
	devices := map[string]bool{}
	for line := range strings.Lines(text) {
		for _, field := range strings.Split(strings.TrimSpace(line), ", ") {
			key, value, _ := strings.Cut(field, " ")
			if key == "name" || key == "alias" {
				devices[strings.Trim(value, `"`)] = true
			}
		}
	}
	return devices
}

// parseOptions reads "-help", where an argument follows its option after a
// single blank, and what an option does after several.
func parseOptions(text string) map[string]bool {
	options := map[string]bool{}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "-") {
			continue
		}
		line = strings.Replace(line, "-h or -help ", "-h/-help ", 1)
		names, rest, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		for _, name := range strings.Split(names, "/") {
			options[name] = options[name] || rest != "" && !strings.HasPrefix(rest, " ")
		}
	}
	return options
}

func checkQEMU(f qemuFacts) []Finding {
	if f.err != nil {
		return tell(Bad, f.err.Error(), "", f.remedy)
	}
	return tell(Good, f.path+": "+f.version, "", "")
}

func checkQEMUImg(f qemuFacts) []Finding {
	if f.err != nil || !f.noImg {
		return nil
	}
	return tell(Warn, "not installed: disks with base or size cannot be created", "", "apt-get install qemu-utils")
}

func checkFirmware(f qemuFacts) []Finding {
	switch {
	case f.noFirmware != nil:
		return tell(Bad, fmt.Sprintf("no UEFI for machine %s", machineOf(f.guest)), "the distribution keeps it in a package of its own, with a description for those who start QEMU",
			"apt-get install "+firmwarePackages[f.guest.Arch])
	case f.firmware != nil:
		return tell(Good, f.firmware.code.path, "", "")
	}
	return nil
}

func checkKVM(f qemuFacts) []Finding {
	const slow = "guests are emulated (tcg), at a fraction of the speed"
	level := Warn
	if f.guest.Accel == configs.AccelKVM {
		level = Bad
	}
	switch {
	case f.err != nil || f.guest.Accel == configs.AccelTCG: // which asks for no more
		return nil
	case errors.Is(f.kvmErr, errForeign):
		return tell(level, f.kvmErr.Error(), slow, `accel = "tcg" says that this is meant`)
	case f.kvmErr == nil:
		return []Finding{{ID: "kvm", Level: Good, Text: "kvm works"}}
	case errors.Is(f.kvmErr, os.ErrNotExist):
		return tell(level, "this host has no /dev/kvm", slow, "modprobe kvm_intel || modprobe kvm_amd")
	case errors.Is(f.kvmErr, os.ErrPermission):
		return tell(level, f.kvmErr.Error(), slow, "run vmrun as root")
	}
	return tell(level, fmt.Sprintf("/dev/kvm is there but does not work: %v", f.kvmErr), slow,
		`accel = "tcg" skips the probe; of a virtual machine: give it nested virtualization`)
}

func checkMachine(f qemuFacts) []Finding {
	name, _, _ := strings.Cut(strings.TrimPrefix(f.guest.Machine, "type="), ",")
	if name == "" || len(f.machines) == 0 {
		return nil
	}
	const why = "QEMU drops its versioned machine types after six years, and an upgrade takes them away"
	deprecated, there := f.machines[name]
	remedy := fmt.Sprintf("machine = %q, after a look at qemu -machine help", platforms[f.guest.Arch].machine)
	switch {
	case !there:
		return tell(Bad, fmt.Sprintf("this QEMU has no machine type %q", name), why, remedy)
	case deprecated:
		return tell(Warn, fmt.Sprintf("machine type %q is deprecated", name), why, remedy)
	}
	return nil
}

func checkModels(f qemuFacts) []Finding {
	var found []Finding
	for i, n := range f.guest.NICs {
		if len(f.devices) > 0 && n.Model != "" && !f.devices[n.Model] {
			found = append(found, tell(Bad, fmt.Sprintf("nic[%d]: this QEMU has no device %q", i, n.Model),
				"distributions keep devices in packages of their own, and some leave them out", `model = "virtio-net-pci"`)...)
		}
	}
	return found
}

// goneOptions are options that newer QEMUs have not got any more, and what has
// taken their place (QEMU's docs/about/removed-features.rst).
var goneOptions = map[string]struct{ since, instead string }{
	"-watchdog":   {"7.2", "-device i6300esb"},
	"-chroot":     {"9.0", "nothing: vmrun confines QEMU"},
	"-no-acpi":    {"9.0", "-machine acpi=off"},
	"-no-hpet":    {"9.0", "-machine hpet=off"},
	"-runas":      {"10.0", "nothing: vmrun gives QEMU a uid of its own"},
	"-singlestep": {"9.0", "-accel tcg,one-insn-per-tb=on"},
}

// checkOptions holds the words of qemu_args against what this QEMU knows.
func checkOptions(f qemuFacts) []Finding {
	var found []Finding
	words := f.guest.QEMUArgs
	for i := 0; i < len(words) && len(f.options) > 0; i++ {
		option := strings.Replace(words[i], "--", "-", 1)
		if !strings.HasPrefix(option, "-") {
			continue
		}
		takes, there := f.options[option]
		gone, known := goneOptions[option]
		remedy := "take it out of qemu_args"
		if known {
			remedy = "in qemu_args, instead of it: " + gone.instead
		}
		switch {
		case !there && known:
			found = append(found, tell(Bad, "qemu_args: this QEMU has no "+option,
				"it was removed in QEMU "+gone.since, remedy)...)
		case !there:
			found = append(found, tell(Warn, "qemu_args: this QEMU's help has no "+option,
				"an option that it does not know keeps it from starting", remedy)...)
		case known:
			found = append(found, tell(Note, "qemu_args: "+option,
				"it is gone from QEMU "+gone.since+" on, and an upgrade would keep the guest from starting", remedy)...)
		}
		if takes {
			i++
		}
	}
	return found
}

func checkSandbox(f qemuFacts) []Finding {
	var found []Finding
	for _, option := range []string{"-daemonize", "-runas", "-chroot"} {
		if slices.Contains(f.guest.QEMUArgs, option) || slices.Contains(f.guest.QEMUArgs, "-"+option) {
			found = append(found, tell(Bad, "qemu_args: "+option,
				"QEMU runs under -sandbox, whose filter kills it for what this does; vmrun is its supervisor and has taken its privileges already",
				"take it out of qemu_args")...)
		}
	}
	return found
}
