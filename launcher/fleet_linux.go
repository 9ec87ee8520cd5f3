package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"

	"vmrun/configs"
)

// Changes holds a fleet against the guests below base. That the caller may not look
// at one of its guests is an error.
func Changes(ctx context.Context, base string, f *configs.Fleet) ([]Change, error) {
	list, err := List(ctx, base)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil { // those that were not asked any more would be thought silent
		return nil, fmt.Errorf("not all guests were looked at: %w", err)
	}
	for _, g := range f.Guests {
		if _, err := guestDir(base, g.Name).readRecord(); errors.Is(err, os.ErrPermission) {
			return nil, named(g.Name, err)
		}
	}
	var there []existing
	isSpec := sameSpec(f.Path)
	for _, s := range list {
		p := existing{Status: s}
		if rec, err := guestDir(base, s.Name).readRecord(); err == nil {
			p.guest, p.ofFile = rec.Guest, isSpec(rec.Guest.Path)
		}
		there = append(there, p)
	}
	return changes(f, there), nil
}

// sameSpec tells of paths whether they lead to the same file as path does, which
// they can by other ways: the shell's working directory may be behind a symbolic
// link. A file that is not there any more is known by its path alone.
func sameSpec(path string) func(other string) bool {
	file, err := os.Stat(path)
	return func(other string) bool {
		if other == path || err != nil {
			return other == path
		}
		info, err := os.Stat(other)
		return err == nil && os.SameFile(file, info)
	}
}

// DifferencesToRunning are those between the spec that a guest runs with and g. One
// that does not run has none.
func DifferencesToRunning(ctx context.Context, base string, g *configs.Guest) []configs.Difference {
	s, err := Observe(ctx, base, g.Name)
	rec, recErr := guestDir(base, g.Name).readRecord()
	if err != nil || recErr != nil || s.State.Rests() {
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
			m.Needed = sum(m.Needed, expectedMemory(j.Guest, bootSize(j.Guest.Boot)))
		}
		// A start may have to wait for the end of a guest that is just stopping.
		if j.Deed == DeedStop || j.Deed == DeedRecreate || j.Deed == DeedStart && j.PID != 0 {
			m.Stops++
			m.Freed += configs.Size(resident(j.PID))
		}
	}
	return m
}
