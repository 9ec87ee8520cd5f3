package launcher

import (
	"cmp"
	"context"
	"slices"

	"vmrun/configs"
)

// Level is how much a finding matters.
type Level string

// The levels.
const (
	Good Level = "good"
	Note Level = "note" // as it was asked for, and yet a surprise to many
	Warn Level = "warn" // works, with less than one would expect
	Bad  Level = "bad"  // keeps a guest from starting, or from being of use
)

// Finding is one thing that Diagnose looked at.
type Finding struct {
	ID     string `json:"id"` // what was looked for, the same in all versions: "wifi-parent"
	Level  Level  `json:"level"`
	Topic  string `json:"topic"`            // where it was found
	Text   string `json:"text"`             // what is
	Why    string `json:"why,omitempty"`    // why that is so, or matters
	Remedy string `json:"remedy,omitempty"` // a command that mends it, or a line of the spec
}

// Subject is something to look at beside the host: one of the three.
type Subject struct {
	Parent string         // a link of the host's, whether or not it is there
	Spec   *configs.Guest // a guest that is to start
	Guest  string         // the name of one that runs
}

// Diagnose looks at the host, and at the subjects; without any at all links of
// the host's. The network is that of the calling thread's namespace. It changes
// nothing that lasts.
//
// To have it know one more thing, add a check to the table of what the check
// looks at (hostChecks, qemuChecks, parentChecks, specChecks, startChecks,
// guestChecks), and what it needs to the facts that are gathered for that table.
func Diagnose(ctx context.Context, base string, subjects ...Subject) []Finding {
	found := examine("", gatherHost(ctx, base), hostChecks)
	for _, g := range described(base, subjects) {
		found = append(found, examine(g.Name, gatherQEMU(ctx, g), qemuChecks)...)
	}
	if len(subjects) == 0 {
		found = append(found, diagnoseParents()...)
	}
	for _, s := range subjects {
		switch {
		case s.Spec != nil:
			found = append(found, diagnoseSpec(ctx, base, s.Spec)...)
		case s.Guest != "":
			found = append(found, diagnoseGuest(ctx, base, s.Guest)...)
		default:
			found = append(found, diagnoseParent(s.Parent)...)
		}
	}
	return distinct(found)
}

// check is one thing to look for. It is pure: what it needs of the world is in
// the facts.
type check[Facts any] struct {
	id    string
	topic string // "" for that of its table
	look  func(Facts) []Finding
}

// examine makes all checks of a table.
func examine[Facts any](topic string, facts Facts, checks []check[Facts]) []Finding {
	var found []Finding
	for _, c := range checks {
		for _, f := range c.look(facts) {
			f.ID = cmp.Or(f.ID, c.id)
			f.Topic = cmp.Or(f.Topic, c.topic, topic)
			found = append(found, f)
		}
	}
	return found
}

// tell is a single finding; why and remedy may be empty.
func tell(level Level, text, why, remedy string) []Finding {
	return []Finding{{Level: level, Text: text, Why: why, Remedy: remedy}}
}

// distinct leaves out what two subjects share.
func distinct(found []Finding) []Finding {
	var once []Finding
	for _, f := range found {
		if !slices.Contains(once, f) {
			once = append(once, f)
		}
	}
	return once
}

// worse reports whether anything is more than a note.
func worse(found []Finding) bool {
	return slices.ContainsFunc(found, func(f Finding) bool { return f.Level == Warn || f.Level == Bad })
}

// described are the subjects' guests, or one of which nothing is known.
func described(base string, subjects []Subject) []*configs.Guest {
	var guests []*configs.Guest
	for _, s := range subjects {
		if s.Spec != nil {
			guests = append(guests, s.Spec)
		}
		if rec, err := guestDir(base, s.Guest).readRecord(); s.Guest != "" && err == nil {
			guests = append(guests, rec.Guest)
		}
	}
	if len(guests) == 0 {
		guests = append(guests, &configs.Guest{Accel: configs.AccelAuto})
	}
	return guests
}

// diagnoseSpec looks at a guest that is to start.
func diagnoseSpec(ctx context.Context, base string, g *configs.Guest) []Finding {
	own := 0
	if rec, err := guestDir(base, g.Name).readRecord(); err == nil && rec.alive() {
		own = rec.QEMU.PID
	}
	facts := gatherSpec(ctx, base, g, own)
	facts.runs = own != 0
	facts.plan, facts.planErr = PlanFor(ctx, g, base, PlanOptions{})
	facts.tryNICs()
	facts.findMACs(base)
	found := examine(g.Name, facts, startChecks)
	found = append(found, examine(g.Name, facts, specChecks)...)
	found = append(found, facts.diagnoseParents()...)
	if facts.planErr == nil && !slices.ContainsFunc(found, func(f Finding) bool { return f.Level == Bad }) {
		found = append(found, Finding{ID: "start", Level: Good, Topic: g.Name,
			Text: "nothing is known to be in its way: vmrun plan shows how it starts"})
	}
	return found
}

// diagnoseGuest looks at a guest that runs.
func diagnoseGuest(ctx context.Context, base, name string) []Finding {
	facts, err := gatherGuest(ctx, base, name)
	if err != nil {
		return []Finding{{ID: "guest", Level: Bad, Topic: name, Text: err.Error(), Remedy: "vmrun ps --all"}}
	}
	spec := gatherSpec(ctx, base, facts.rec.Guest, facts.status.PID)
	spec.plan = &Plan{Children: facts.rec.Children}
	found := examine(name, facts, guestChecks)
	found = append(found, examine(name, spec, specChecks)...)
	found = append(found, spec.diagnoseParents()...)
	if !worse(found) {
		found = append(found, Finding{ID: "guest", Level: Good, Topic: name, Text: string(facts.status.State) + ", and nothing is known to be wrong"})
	}
	return found
}

// lowers names the links that a guest's children sit on, or would.
func lowers(g *configs.Guest) []string {
	var names []string
	for _, n := range g.NICs {
		names = append(names, n.Parent, n.Lower())
	}
	slices.Sort(names)
	return slices.Compact(names)
}
