package launcher

import (
	"fmt"
	"math"
	"slices"

	"vmrun/configs"
)

// Change is what becomes of one guest when a fleet's file is made so.
type Change struct {
	Name        string
	Kind        ChangeKind
	State       State // as it is; StateEnded also of one that never was
	Why         string
	Orphan      bool                 // it lives without a supervisor
	Differences []configs.Difference // of one that runs with another spec
	Guest       *configs.Guest       // as the file has it, and of one that it has no more as it was started
	PID         int                  // QEMU's, 0 when there is none
}

// ChangeKind sorts changes by what it takes to make them.
type ChangeKind string

// The kinds of change.
const (
	ChangeNone     ChangeKind = "unchanged"
	ChangeStart    ChangeKind = "start"
	ChangeAdopt    ChangeKind = "adopt"    // it runs, and nobody looks after it
	ChangeRecreate ChangeKind = "recreate" // it runs with another spec
	ChangeRemove   ChangeKind = "remove"   // it runs, and is not in the file any more
	ChangeForeign  ChangeKind = "foreign"  // it runs from another file
	ChangeSilent   ChangeKind = "silent"   // it does not answer
)

// existing is a guest as it is.
type existing struct {
	Status
	guest  *configs.Guest // as it was started, nil where nobody knows
	ofFile bool           // it was started from the fleet's file, by whatever path
}

// lives reports whether there is something to stop.
func (p existing) lives() bool { return !p.State.Rests() && p.State != "" }

// changes holds a fleet against the guests that are there: first those of the file
// in its order, and then those that it has no more.
func changes(f *configs.Fleet, there []existing) []Change {
	byName := map[string]existing{}
	for _, p := range there {
		byName[p.Name] = p
	}
	var list []Change
	for _, g := range f.Guests {
		list = append(list, changeOf(g, byName[g.Name]))
		delete(byName, g.Name)
	}
	for _, p := range there {
		if _, left := byName[p.Name]; left && p.lives() && p.guest != nil && p.ofFile {
			list = append(list, Change{Name: p.Name, Kind: ChangeRemove, State: p.State, Guest: p.guest, PID: p.PID,
				Orphan: p.Supervisor == 0, Why: p.Why})
		}
	}
	return list
}

// changeOf is what becomes of the file's guest g, of whom p is there.
func changeOf(g *configs.Guest, p existing) Change {
	c := Change{Name: g.Name, Kind: ChangeNone, State: p.State, Guest: g, PID: p.PID, Why: p.Why, Orphan: p.lives() && p.Supervisor == 0}
	switch {
	case !p.lives():
		c.State, c.Kind = StateEnded, ChangeStart
		if p.Ended != nil {
			c.Why = p.Ended.String()
		}
		return c
	case p.guest != nil && !p.ofFile:
		c.Kind = ChangeForeign
		c.Why = fmt.Sprintf("it runs from %s: vmrun stop %s, or give one of the two another name", p.guest.Path, g.Name)
		return c
	case p.State == StateUnresponsive:
		c.Kind = ChangeSilent
		c.Why = fmt.Sprintf("%s does not answer: vmrun stop --force %s ends it", p.Silent, g.Name)
		return c
	case p.State == StateStopping, p.State == StateStarting && c.Orphan: // the next start ends what is left
		c.Kind = ChangeStart
		return c
	}
	if p.guest != nil {
		c.Differences = differences(p.guest, g)
	}
	switch {
	case len(c.Differences) > 0:
		c.Kind = ChangeRecreate
	case c.Orphan:
		c.Kind = ChangeAdopt
	}
	return c
}

// differences are those that matter to a guest that runs.
func differences(before, after *configs.Guest) []configs.Difference {
	return slices.DeleteFunc(configs.Differences(before, after), func(d configs.Difference) bool {
		return slices.Contains([]string{"after", "autostart", "ready.when", "ready.timeout"}, d.Key)
	})
}

// Deed is what is done to a guest.
type Deed string

// The deeds.
const (
	DeedNone     Deed = "" // it is as it should be
	DeedStart    Deed = "start"
	DeedAdopt    Deed = "adopt"
	DeedRecreate Deed = "recreate"
	DeedStop     Deed = "stop"
	DeedRefuse   Deed = "refuse" // for the reason that its Change has
)

// Job is one guest's part in an up or a down.
type Job struct {
	Change
	Deed  Deed
	After []string // the guests whose jobs come before
}

// UpOptions say how far an up goes.
type UpOptions struct {
	Recreate bool // restart what runs with another spec
	Prune    bool // stop what is not in the file any more
}

// UpJobs are what is to be done about changes: first the stops, which make room
// for the others, and then all guests of the file, those included that only others
// wait for. One that runs already comes after nobody.
func UpJobs(list []Change, opts UpOptions) (stops, rest []Job) {
	for _, c := range list {
		job := Job{Change: c}
		switch {
		case c.Kind == ChangeRemove && opts.Prune:
			job.Deed, job.After = DeedStop, c.Guest.After
			stops = append(stops, job)
			continue
		case c.Kind == ChangeRemove:
			continue
		case c.Kind == ChangeRecreate && opts.Recreate:
			job.Deed, job.After = DeedRecreate, c.Guest.After
		case c.Kind == ChangeStart:
			job.Deed, job.After = DeedStart, c.Guest.After
		case c.Kind == ChangeForeign, c.Kind == ChangeSilent:
			job.Deed = DeedRefuse
		case c.Orphan:
			job.Deed = DeedAdopt
		}
		rest = append(rest, job)
	}
	return reversed(stops), rest
}

// DownJobs are the stops of all guests that are there, those first that others
// come after.
func DownJobs(list []Change) []Job {
	var jobs []Job
	for _, c := range list {
		if !c.State.Rests() && c.Kind != ChangeForeign {
			jobs = append(jobs, Job{Change: c, Deed: DeedStop, After: c.Guest.After})
		}
	}
	return reversed(jobs)
}

// reversed are jobs of which those come first that came last, and each comes after
// those that came after it.
func reversed(jobs []Job) []Job {
	before := map[string][]string{}
	for _, j := range jobs {
		for _, name := range j.After {
			before[name] = append(before[name], j.Name)
		}
	}
	list := slices.Clone(jobs)
	slices.Reverse(list)
	for i := range list {
		list[i].After = before[list[i].Name]
	}
	return list
}

// Memory is what a fleet needs of the host's, in bytes.
type Memory struct {
	Starts    int          `json:"starts"`    // guests that are to be started
	Needed    configs.Size `json:"needed"`    // by them, QEMU's own included
	Stops     int          `json:"stops"`     // guests that are stopped before
	Freed     configs.Size `json:"freed"`     // by them: what they use now
	Available configs.Size `json:"available"` // MemAvailable of /proc/meminfo
}

// Room is what there will be for those that are to be started.
func (m Memory) Room() configs.Size { return sum(m.Available, m.Freed) }

// Fits reports whether the host can hold what is to be started.
func (m Memory) Fits() bool { return m.Starts == 0 || m.Needed <= m.Room() }

// sum is that of two sizes, or the largest size that there is.
func sum(a, b configs.Size) configs.Size {
	if a+b < a {
		return math.MaxUint64
	}
	return a + b
}

// expectedMemory is what a guest's QEMU takes when the guest uses all of its
// memory. Unlike the limit that autoMemory is for, it leaves out the translated
// code that there may be at most: 50 MiB of it were measured, which qemuMemory has
// room for.
func expectedMemory(g *configs.Guest, boot configs.Size) configs.Size {
	return autoMemory(g, configs.AccelKVM, boot)
}
