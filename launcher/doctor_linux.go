package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
)

// Level is how much a finding matters.
type Level string

// The levels.
const (
	Good Level = "good"
	Warn Level = "warn" // works, with less than one would expect
	Bad  Level = "bad"  // keeps a guest from starting
)

// Finding is one thing that Diagnose looked at.
type Finding struct {
	Level  Level  `json:"level"`
	Topic  string `json:"topic"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"` // a command that mends it
}

// Diagnose looks at the host, and at the guest's needs if g is not nil. It
// changes nothing that lasts.
func Diagnose(ctx context.Context, g *configs.Guest, base string) []Finding {
	var found []Finding
	add := func(level Level, topic, text, remedy string) {
		found = append(found, Finding{level, topic, text, remedy})
	}
	if g == nil {
		g = &configs.Guest{Accel: configs.AccelAuto}
	}
	diagnosePrivileges(add)
	diagnoseQEMU(ctx, g, add)
	diagnoseKernel(add)
	diagnoseMachineID(g, add)
	diagnoseRunDir(base, add)
	if g.Name != "" {
		diagnoseGuest(ctx, g, base, add)
	} else {
		diagnoseParents(add)
	}
	return found
}

type addFinding func(level Level, topic, text, remedy string)

// needed are the capabilities without which no guest starts.
var needed = map[string]int{
	"CAP_NET_ADMIN": unix.CAP_NET_ADMIN,
	"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN,
	"CAP_MKNOD":     unix.CAP_MKNOD,
	"CAP_SETUID":    unix.CAP_SETUID,
	"CAP_SETGID":    unix.CAP_SETGID,
	"CAP_SETPCAP":   unix.CAP_SETPCAP,
}

func diagnosePrivileges(add addFinding) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		add(Bad, "privileges", err.Error(), "")
		return
	}
	var missing []string
	for name, c := range needed {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		add(Bad, "privileges", "lacks "+strings.Join(missing, ", "), "run vmrun as root")
		return
	}
	add(Good, "privileges", "all that a start needs", "")
}

func diagnoseQEMU(ctx context.Context, g *configs.Guest, add addFinding) {
	qemu, err := findQEMU(g, runtime.GOARCH)
	if err != nil {
		add(Bad, "QEMU", err.Error(), "apt-get install qemu-system")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemu, "--version").Output()
	if err != nil {
		add(Bad, "QEMU", fmt.Sprintf("%s --version: %v", qemu, err), "apt-get install --reinstall qemu-system")
		return
	}
	add(Good, "QEMU", qemu+": "+firstLine(out), "")
	if _, err := exec.LookPath("qemu-img"); err != nil {
		add(Warn, "qemu-img", "not installed: disks with base or size cannot be created", "apt-get install qemu-utils")
	}
	diagnoseAccel(ctx, g, qemu, add)
}

func diagnoseAccel(ctx context.Context, g *configs.Guest, qemu string, add addFinding) {
	err := kvmWorks(ctx, g, qemu)
	switch {
	case err == nil:
		add(Good, "accelerator", "kvm works", "")
	case errors.Is(err, os.ErrNotExist):
		add(Warn, "accelerator", "this host has no /dev/kvm: guests are emulated (tcg), at a fraction of the speed", "modprobe kvm_intel || modprobe kvm_amd")
	default:
		add(Warn, "accelerator", fmt.Sprintf("/dev/kvm is there but does not work: %v: guests are emulated (tcg), at a fraction of the speed", err), "")
	}
}

// diagnoseKernel makes a macvtap child in a namespace of its own, on a NIC made
// for it: the one sure way to know that the kernel can.
func diagnoseKernel(add addFinding) {
	err := netsetup.Try()
	switch {
	case err == nil:
		add(Good, "macvtap", "the kernel makes children and opens their taps", "")
	case errors.Is(err, unix.EOPNOTSUPP):
		add(Bad, "macvtap", "this kernel has none", "modprobe macvtap")
	default:
		add(Bad, "macvtap", err.Error(), "")
	}
}

func diagnoseMachineID(g *configs.Guest, add addFinding) {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil || len(strings.TrimSpace(string(id))) != 32 {
		add(Bad, "machine id", "/etc/machine-id is missing or empty: MACs are derived from it", "systemd-machine-id-setup")
		return
	}
	add(Good, "machine id", "set; clones of this host that share it would share MACs too", "")
}

func diagnoseRunDir(base string, add addFinding) {
	const remedy = "choose another with --run-dir"
	dir := base
	info, err := os.Stat(dir)
	for err != nil && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		info, err = os.Stat(dir)
	}
	if err == nil && !info.IsDir() {
		add(Bad, "run directory", dir+" is no directory", remedy)
		return
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		add(Bad, "run directory", fmt.Sprintf("%s cannot be written: %v", dir, err), remedy)
		return
	}
	add(Good, "run directory", base, "")
}

// diagnoseGuest plans the guest's start and reports what stands in its way.
func diagnoseGuest(ctx context.Context, g *configs.Guest, base string, add addFinding) {
	if pid, alive := guestDir(base, g.Name).supervisor(); alive {
		add(Warn, g.Name, fmt.Sprintf("it runs already (supervisor pid %d)", pid), "")
	}
	plan, err := PlanFor(ctx, g, base, PlanOptions{})
	var errs configs.Errors
	switch {
	case errors.As(err, &errs):
		for _, e := range errs {
			add(Bad, g.Name, e.Error(), "")
		}
		return
	case err != nil:
		add(Bad, g.Name, err.Error(), "")
		return
	}
	for _, w := range plan.Warnings {
		add(Warn, g.Name, w, "")
	}
	add(Good, g.Name, "nothing is known to be in its way: vmrun plan shows how it starts", "")
}

// diagnoseParents says of every link whether guests could sit on it.
func diagnoseParents(add addFinding) {
	host, err := netsetup.Survey()
	if err == nil {
		host, err = netsetup.Survey(host.Names...)
	}
	if err != nil {
		add(Bad, "parents", err.Error(), "")
		return
	}
	usable := 0
	for _, name := range host.Names {
		p := host.Parents[name]
		switch why := netsetup.Unfit(p, configs.KindMacvtap); {
		case why != "":
			add(Warn, "parent "+name, why, "")
		case !p.Up:
			add(Warn, "parent "+name, "down", "ip link set "+name+" up")
		case !p.Carrier:
			add(Warn, "parent "+name, "up, but without carrier: is the cable in?", "")
			usable++
		default:
			add(Good, "parent "+name, fmt.Sprintf("%s, MTU %d, up", p.Kind, p.MTU), "")
			usable++
		}
	}
	if usable == 0 {
		add(Bad, "parents", "this host has no NIC that guests could sit on", "ip -br link")
	}
}
