package launcher

import (
	"fmt"
	"slices"
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

// LiveArguments are those of the commands about snapshots of a guest that runs.
type LiveArguments struct {
	Tag   string `json:"tag"`             // the snapshot's name
	Disks bool   `json:"disks,omitempty"` // of the disks alone
	Force bool   `json:"force,omitempty"` // roll back to one of which it is not known what the guest was then
}

// LiveResult is what came of one.
type LiveResult struct {
	Freeze Freeze        `json:"freeze"` // of one of the disks alone
	Halted time.Duration `json:"halted"` // how long the guest's CPUs stood still, or the disks
}

// LiveSnapshot is a snapshot of several disks under one name, and of the memory.
type LiveSnapshot struct {
	Tag    string    `json:"tag"`
	At     time.Time `json:"at"`
	Memory uint64    `json:"memory"`          // bytes, 0 where it is of the disks alone
	Disks  []string  `json:"disks"`           // that it is of
	Lacks  []string  `json:"lacks,omitempty"` // written disks that it is not of
}

// liveNodes are the block nodes that a snapshot is of: all that the guest writes.
func liveNodes(disks []configs.Disk) (nodes []string, err error) {
	for i, d := range disks {
		switch {
		case d.Readonly:
			continue
		case d.Format != configs.FormatQCOW2:
			return nil, qmp.Errorf("%s is a %s image, and only qcow2 images keep snapshots: stop the guest and type: qemu-img convert -O qcow2 %s NEW.qcow2", diskNode(i), d.Format, d.Path)
		}
		nodes = append(nodes, diskNode(i))
	}
	if len(nodes) == 0 {
		return nil, qmp.Errorf("the guest writes no disk, which would hold the snapshot: vmrun suspend keeps its memory otherwise")
	}
	return nodes, nil
}

// hardware is what of a guest has to be the same for its memory to fit.
func hardware(g *configs.Guest, machine string, ports int, uefi bool, children []netsetup.Child) []string {
	list := []string{"machine " + machine, fmt.Sprintf("%d CPUs, %s", g.CPUs, g.CPU), "memory " + g.Memory.String(), fmt.Sprintf("%d places for NICs", ports)}
	for i, d := range g.Disks {
		list = append(list, fmt.Sprintf("%s on %s", diskNode(i), d.Bus))
	}
	for _, c := range children {
		list = append(list, c.Name+": "+device(c, ports > 0, uefi).line())
	}
	return list
}

// unlike says what is in one list and not in the other, or "".
func unlike(then, now []string) string {
	for _, what := range then {
		if !slices.Contains(now, what) {
			return "it had " + what
		}
	}
	for _, what := range now {
		if !slices.Contains(then, what) {
			return "it did not have " + what
		}
	}
	return ""
}
