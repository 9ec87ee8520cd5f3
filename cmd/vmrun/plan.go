package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

func (a *app) planCmd() *cobra.Command {
	var opts launcher.PlanOptions
	cmd := &cobra.Command{
		Use:   "plan GUEST",
		Short: "Show what a start or an up would do, and do nothing",
		Long: `Show what vmrun start would do for a guest, or vmrun up for a fleet, and do nothing.

For a guest these are every step, the descriptors and QEMU's command line at this
moment; uid and interface indexes depend on what else runs by then. In what the
spec differs from that of a guest that runs is shown first.

For a fleet's file it is the difference to what runs: a + is started or adopted, a ~
runs with an older spec, whose keys are shown before -> after, and needs
up --recreate, a - runs and is not in the file any more, which needs up --prune, and
a ! is left alone for the reason given.`,
		GroupID:           "help",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f := aFleet(args[0]); f != nil {
				return a.planFleet(cmd.Context(), args[0], f)
			}
			g, err := a.loadSpec(args[0])
			if err != nil {
				return err
			}
			return a.planGuest(cmd.Context(), g, opts)
		},
	}
	cmd.Flags().BoolVar(&opts.Force, "force", false, "plan for a start with --force")
	cmd.Flags().BoolVar(&opts.Paused, "paused", false, "plan for a start with --paused")
	return a.jsonFlag(cmd)
}

// aFleet is the fleet that an argument means, nil for anything else: a spec of one
// guest is planned step by step.
func aFleet(arg string) *configs.Fleet {
	if !isSpec(arg) {
		return nil
	}
	if _, err := configs.Load(arg); err == nil {
		return nil
	}
	f, _ := configs.LoadFleet(arg) // what is wrong with it is said by loadSpec
	return f
}

func (a *app) planGuest(ctx context.Context, g *configs.Guest, opts launcher.PlanOptions) error {
	p, err := launcher.PlanFor(ctx, g, a.runDir, opts)
	if err != nil {
		return err
	}
	differences := launcher.DifferencesToRunning(ctx, a.runDir, g)
	if a.json {
		return printJSON(viewPlan(p, differences))
	}
	if len(differences) > 0 {
		say("~ %s runs with an older spec: vmrun restart %[1]s", g.Name)
		printDifferences(differences)
		say("")
	}
	printPlan(p)
	return nil
}

// planView is a plan as JSON, with the words of vmrun ps --json.
type planView struct {
	Name     string               `json:"name"`
	UUID     string               `json:"uuid"`
	Spec     string               `json:"spec"`
	Accel    configs.Accel        `json:"accel"`
	UID      int                  `json:"uid"`
	NICs     []launcher.NICStatus `json:"nics"`
	Warnings []string             `json:"warnings"`
	Steps    []stepView           `json:"steps"`
	Files    []string             `json:"files"` // QEMU's descriptors, by number
	QEMU     string               `json:"qemu"`
	Argv     []string             `json:"argv"`

	Differences []differenceView `json:"differences"` // to the spec that the guest runs with
}

type stepView struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

func viewPlan(p *launcher.Plan, differences []configs.Difference) planView {
	v := planView{
		Name: p.Guest.Name, UUID: p.UUID.String(), Spec: p.Guest.Path, Accel: p.Accel, UID: p.UID,
		NICs: p.NICs(), Warnings: append([]string{}, p.Warnings...), Files: p.Files, QEMU: p.QEMU, Argv: p.Argv,
		Differences: viewDifferences(differences),
	}
	for _, s := range p.Steps {
		v.Steps = append(v.Steps, stepView{s.Name, s.Text})
	}
	return v
}

func printPlan(p *launcher.Plan) {
	for _, w := range p.Warnings {
		warn("%s: %s", p.Guest.Name, w)
	}
	for i, s := range p.Steps {
		say("%2d  %-16s %s", i+1, s.Name, s.Text)
	}
	fmt.Println("\nQEMU's descriptors:")
	for i, f := range p.Files {
		say("%2d  %s", i, f)
	}
	fmt.Printf("\n%s", p.QEMU)
	for _, word := range p.Argv {
		separator := " "
		if strings.HasPrefix(word, "-") {
			separator = " \\\n    "
		}
		fmt.Print(separator + shellQuote(word))
	}
	fmt.Println()
}

// shellQuote makes a word safe to paste into a shell.
func shellQuote(word string) string {
	if word != "" && !strings.ContainsAny(word, " \t\n\"'\\$`&|;<>()*?[]{}~#!") {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
