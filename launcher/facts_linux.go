package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"vmrun/configs"
	"vmrun/netsetup"
)

// GatherFacts looks at the host for the guest g, and leaves the slot to the
// caller.
func GatherFacts(ctx context.Context, g *configs.Guest, runBase string) (Facts, error) {
	return gatherFacts(ctx, g, runBase, nil)
}

// gatherFacts is GatherFacts for a guest that goes on from m, if that is not nil.
func gatherFacts(ctx context.Context, g *configs.Guest, runBase string, m *memory) (Facts, error) {
	facts := Facts{Arch: archOf(runtime.GOARCH), KVMGroup: -1, Missing: map[string]bool{}, Devices: map[string]bool{}, State: StateDir(runBase, g.Name), memory: m}
	g = settled(g, facts.Arch)
	nics := g.NICs
	if m != nil {
		nics = m.nics()
	}
	err := facts.gatherNetwork(g, runBase, nics...)
	if err != nil {
		return facts, err
	}
	if facts.Users, err = guestUsers(); err != nil {
		return facts, err
	}
	if facts.Group, err = groupID(g, facts.Users); err != nil {
		return facts, err
	}
	if facts.QEMU, err = findQEMU(g); err != nil {
		return facts, err
	}
	if facts.Firmware, err = findFirmware(g); err != nil {
		return facts, err
	}
	if facts.Accel, err = chooseAccel(ctx, g, facts.QEMU); err != nil {
		return facts, err
	}
	if facts.Accel == configs.AccelKVM {
		facts.KVMGroup = groupOf(kvmDevice)
	}
	for _, path := range inputs(g) {
		info, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			facts.Missing[path] = true
		}
		if err == nil && info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice {
			facts.Devices[path] = true
		}
	}
	if err := facts.gatherDevices(ctx, g); err != nil {
		return facts, err
	}
	facts.BootSize = bootSize(g.Boot)
	if facts.Firmware != nil {
		facts.BootSize += facts.Firmware.size()
	}
	facts.Seed = readSeed(g)
	if g.Limits != (configs.Limits{}) {
		facts.Cgroup = findDelegation()
	}
	facts.gatherChains(g)
	return facts, nil
}

// gatherChains reads what the disks are made of. Who may not read an image gets the
// chain that the spec tells; a start is root's.
func (f *Facts) gatherChains(g *configs.Guest) {
	f.Misfits, f.Chains = map[int]error{}, map[int][]layer{}
	for i, d := range g.Disks {
		if d.Path == "" || d.Base != "" && f.Missing[d.Base] || d.Base == "" && f.Missing[d.Path] {
			continue
		}
		chain, err := readChain(d)
		switch {
		case errors.Is(err, os.ErrPermission):
		case err != nil:
			f.Misfits[i] = err
		default:
			f.Chains[i] = chain
		}
	}
	for i := range g.Disks {
		for j, d := range g.Disks {
			if i == j || d.Readonly || len(f.Chains[i]) < 2 {
				continue
			}
			for _, l := range f.Chains[i][1:] {
				if samePath(l.Path, d.Path) && f.Misfits[i] == nil {
					f.Misfits[i] = fmt.Errorf("%s is made of %s, which disk[%d] would write: make that readonly", g.Disks[i].Path, l.Path, j)
				}
			}
		}
	}
}

// gatherNetwork fills in what NICs of the guest g depend on.
func (f *Facts) gatherNetwork(g *configs.Guest, runBase string, nics ...configs.NIC) error {
	id, err := os.ReadFile("/etc/machine-id")
	switch {
	case err == nil || g.UUID != uuid.Nil:
	case !errors.Is(err, os.ErrNotExist):
		return err // for want of descriptors, say
	default:
		return fmt.Errorf("the host has no machine id to derive MACs from: give uuid in the spec, or type: systemd-machine-id-setup")
	}
	f.MachineID = strings.TrimSpace(string(id))
	f.Vhost = netsetup.VhostWorks()
	f.Others = otherChildren(runBase, g.Name)
	var parents []string
	for _, nic := range nics {
		parents = append(parents, nic.Parent, netsetup.Child{NIC: nic}.Lower())
	}
	f.Net, err = netsetup.Survey(parents...)
	return err
}

// PlanFor works out the start of g on this host as it is now, and takes nothing:
// by the time of a start its slot may be somebody else's.
func PlanFor(ctx context.Context, g *configs.Guest, runBase string, opts PlanOptions) (*Plan, error) {
	m, err := findMemory(runBase, g.Name)
	if err != nil {
		return nil, err
	}
	if m != nil {
		g, opts.Paused = m.Guest, opts.Paused || m.isPaused()
	}
	facts, err := gatherFacts(ctx, g, runBase, m)
	if err != nil {
		return nil, err
	}
	facts.Slot = freeSlot(g.Name)
	if facts.Cgroup.err != nil && hasSystemd() { // which gives a supervisor in the background one
		facts.Cgroup = scopeDelegation()
	}
	return NewPlan(g, facts, opts)
}

// inputs lists the files that the guest is made of.
func inputs(g *configs.Guest) []string {
	var paths []string
	for _, path := range []string{g.Boot.Kernel, g.Boot.Initrd} {
		if path != "" {
			paths = append(paths, path)
		}
	}
	for _, d := range g.Disks {
		if d.Path != "" {
			paths = append(paths, d.Path)
		}
		if d.Base != "" {
			paths = append(paths, d.Base)
		}
	}
	return paths
}

// findQEMU finds the QEMU of a settled guest.
func findQEMU(g *configs.Guest) (string, error) {
	name := g.QEMU
	if name == "" {
		name = platforms[g.Arch].binary
	}
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	if g.QEMU != "" {
		return "", g.Errorf("qemu", "%v", err)
	}
	return "", fmt.Errorf("%s is not installed: apt-get install %s", name, platforms[g.Arch].pkg)
}

// groupOf is the group that may read and write a device, or -1.
func groupOf(path string) int {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o060 != 0o060 {
		return -1
	}
	return int(info.Sys().(*syscall.Stat_t).Gid)
}

// otherChildren collects the children of all other guests that live, which
// cannot be seen from the host's namespace. Of records that are there by the hundred
// no more is read than that.
func otherChildren(runBase, self string) []netsetup.Sibling {
	var others []netsetup.Sibling
	var data bytes.Buffer
	for _, name := range guestNames(runBase) {
		if name == self {
			continue
		}
		if err := readBoundedInto(&data, guestDir(runBase, name).path(fileState), maxRecord); err != nil {
			continue
		}
		var r struct {
			BootID   string           `json:"boot_id"`
			QEMU     processID        `json:"qemu"`
			Children []netsetup.Child `json:"children"`
			Ended    *struct{}        `json:"ended"`
		}
		if err := json.Unmarshal(data.Bytes(), &r); err != nil || r.Ended != nil || r.BootID != bootID() {
			continue
		}
		if start, err := startTime(r.QEMU.PID); err != nil || start != r.QEMU.Start {
			continue
		}
		for _, c := range r.Children {
			others = append(others, netsetup.Sibling{Parent: c.Lower(), Name: c.Name, Guest: name, Kind: c.Kind, Mode: c.Mode, MAC: c.MAC})
		}
	}
	return others
}
