package main

import (
	"context"
	"fmt"
	"os"

	"vmrun/configs"
	"vmrun/launcher"
)

// planFleet shows what up would do about the guests of a file.
func (a *app) planFleet(ctx context.Context, path string, f *configs.Fleet) error {
	changes, err := launcher.Changes(ctx, a.runDir, f)
	if err != nil {
		return err
	}
	stops, rest := launcher.UpJobs(changes, launcher.UpOptions{Recreate: true, Prune: true})
	memory := launcher.MemoryFor(append(stops, rest...))
	if a.json {
		return printJSON(viewChanges(f.Path, changes, memory))
	}
	printChanges(changes, penFor(os.Stdout))
	if memory.Starts > 0 {
		say("")
		printMemory(os.Stdout, memory)
	}
	if !memory.Fits() {
		warn("the host's memory does not hold this: vmrun up %s refuses it", path)
	}
	return nil
}

// The marks of changes.
var marks = map[launcher.ChangeKind]cell{
	launcher.ChangeStart:    {"+", good},
	launcher.ChangeAdopt:    {"+", good},
	launcher.ChangeRecreate: {"~", bold},
	launcher.ChangeRemove:   {"-", bad},
	launcher.ChangeForeign:  {"!", bad},
	launcher.ChangeSilent:   {"!", bad},
}

func printChanges(changes []launcher.Change, p pen) {
	same := 0
	for _, c := range changes {
		if c.Kind == launcher.ChangeNone {
			same++
			continue
		}
		fmt.Printf("%s ", p.paint(marks[c.Kind]))
		say("%s: %s", c.Name, changeWords(c))
		printDifferences(c.Differences)
	}
	if same > 0 {
		say("= %d unchanged", same)
	}
}

func printDifferences(list []configs.Difference) {
	for _, d := range list {
		say("    %s: %s", d.Key, fromTo(d.Before, d.After))
	}
}

// changeWords say what would be done to a guest, and why.
func changeWords(c launcher.Change) string {
	switch c.Kind {
	case launcher.ChangeStart:
		switch {
		case !c.State.Rests():
			return fmt.Sprintf("it is %s, and is started after that", c.State)
		case c.Why != "":
			return "is started again; it ended: " + c.Why
		}
		return "is started"
	case launcher.ChangeAdopt:
		return fmt.Sprintf("%s without a supervisor: is adopted", c.State)
	case launcher.ChangeRecreate:
		if c.Orphan {
			return fmt.Sprintf("%s with an older spec, without a supervisor: is adopted, and restarted with --recreate", c.State)
		}
		return fmt.Sprintf("%s with an older spec: is restarted with --recreate", c.State)
	case launcher.ChangeRemove:
		return fmt.Sprintf("%s, and not in the file any more: is stopped with --prune", c.State)
	}
	return c.Why
}

// fleetView is a fleet's plan as JSON.
type fleetView struct {
	Spec    string          `json:"spec"`
	Changes []changeView    `json:"changes"`
	Memory  launcher.Memory `json:"memory"` // with --recreate and --prune
	Fits    bool            `json:"fits"`
}

type changeView struct {
	Name        string              `json:"name"`
	Change      launcher.ChangeKind `json:"change"`
	State       launcher.State      `json:"state"`
	Orphan      bool                `json:"orphan"` // it has no supervisor
	Why         string              `json:"why,omitempty"`
	After       []string            `json:"after"`
	Differences []differenceView    `json:"differences"`
}

type differenceView struct {
	Key    string `json:"key"`
	Before string `json:"before"` // "" for unset
	After  string `json:"after"`
}

func viewChanges(path string, changes []launcher.Change, memory launcher.Memory) fleetView {
	v := fleetView{Spec: path, Changes: []changeView{}, Memory: memory, Fits: memory.Fits()}
	for _, c := range changes {
		v.Changes = append(v.Changes, changeView{c.Name, c.Kind, c.State, c.Orphan, c.Why, append([]string{}, c.Guest.After...), viewDifferences(c.Differences)})
	}
	return v
}

func viewDifferences(list []configs.Difference) []differenceView {
	views := []differenceView{}
	for _, d := range list {
		views = append(views, differenceView(d))
	}
	return views
}
