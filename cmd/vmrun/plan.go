package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

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
			facts, err := launcher.GatherFacts(cmd.Context(), g, a.runDir)
			if err != nil {
				return err
			}
			p, err := launcher.NewPlan(g, facts, opts)
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(p)
			}
			printPlan(p)
			return nil
		},
	}
	cmd.Flags().BoolVar(&opts.Force, "force", false, "plan for a start with --force")
	cmd.Flags().BoolVar(&opts.Paused, "paused", false, "plan for a start with --paused")
	return a.jsonFlag(cmd)
}

func printPlan(p *launcher.Plan) {
	for _, w := range p.Warnings {
		warn("%s: %s", p.Guest.Name, w)
	}
	for i, s := range p.Steps {
		fmt.Printf("%2d  %-16s %s\n", i+1, s.Name, s.Text)
	}
	fmt.Println("\nQEMU's descriptors:")
	for i, f := range p.Files {
		fmt.Printf("%2d  %s\n", i, f)
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
