package launcher

import (
	"context"
	"fmt"
	"os"

	"vmrun/configs"
)

// Changes holds a fleet against the guests below base.
func Changes(ctx context.Context, base string, f *configs.Fleet) ([]Change, error) {
	list, err := List(ctx, base)
	if err != nil {
		return nil, err
	}
	var there []existing
	for _, s := range list {
		p := existing{Status: s}
		if rec, err := guestDir(base, s.Name).readRecord(); err == nil {
			p.guest = rec.Guest
		}
		there = append(there, p)
	}
	return changes(f, there), nil
}

// DifferencesToRunning are those between the spec that a guest runs with and g. One
// that does not run has none.
func DifferencesToRunning(ctx context.Context, base string, g *configs.Guest) []configs.Difference {
	s, err := Observe(ctx, base, g.Name)
	rec, recErr := guestDir(base, g.Name).readRecord()
	if err != nil || recErr != nil || s.State == StateEnded {
		return nil
	}
	return differences(rec.Guest, g)
}

// MemoryFor sums up what these jobs need of the host's memory.
func MemoryFor(jobs []Job) Memory {
	m := Memory{Available: configs.Size(availableMemory())}
	for _, j := range jobs {
		if j.Deed == DeedStart || j.Deed == DeedRecreate {
			m.Starts++
			m.Needed += expectedMemory(j.Guest, bootSize(j.Guest.Boot))
		}
		if j.Deed == DeedStop || j.Deed == DeedRecreate {
			m.Stops++
			m.Freed += residentMemory(j.PID)
		}
	}
	return m
}

// residentMemory is what a process has of the host's memory, 0 of one that is gone.
func residentMemory(pid int) configs.Size {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)) // proc(5)
	var size, resident configs.Size
	fmt.Sscanf(string(text), "%d %d", &size, &resident)
	return resident * configs.Size(os.Getpagesize())
}
