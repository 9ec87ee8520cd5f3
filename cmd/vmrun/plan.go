package main

import (
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
		Short: "Show every step that a start would take, and take none",
		Long: `Show every step that a start would take, and take none.

The steps, the descriptors and QEMU's command line are those of vmrun start at
this moment; uid and interface indexes depend on what else runs by then.`,
		GroupID:           "help",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := a.loadSpec(args[0])
			if err != nil {
				return err
			}
			p, err := launcher.PlanFor(cmd.Context(), g, a.runDir, opts)
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(viewPlan(p))
			}
			printPlan(p)
			return nil
		},
	}
	cmd.Flags().BoolVar(&opts.Force, "force", false, "plan for a start with --force")
	cmd.Flags().BoolVar(&opts.Paused, "paused", false, "plan for a start with --paused")
	return a.jsonFlag(cmd)
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
}

type stepView struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

func viewPlan(p *launcher.Plan) planView {
	v := planView{
		Name: p.Guest.Name, UUID: p.UUID.String(), Spec: p.Guest.Path, Accel: p.Accel, UID: p.UID,
		NICs: p.NICs(), Warnings: append([]string{}, p.Warnings...), Files: p.Files, QEMU: p.QEMU, Argv: p.Argv,
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
