package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

func (a *app) doctorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor [SPEC]",
		Short: "Find out what this host lacks, and how to mend it",
		Long: `Find out what this host lacks, and how to mend it.

With a spec its parents, files and accelerator are looked at too. The exit
status is 1 when something would keep a guest from starting.`,
		GroupID: "help",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var g *configs.Guest
			if len(args) == 1 {
				var err error
				if g, err = a.loadSpec(args[0]); err != nil {
					return err
				}
			}
			findings := launcher.Diagnose(cmd.Context(), g, a.runDir)
			bad := false
			for _, f := range findings {
				bad = bad || f.Level == launcher.Bad
			}
			if a.json {
				if err := printJSON(findings); err != nil {
					return err
				}
			} else {
				printFindings(findings)
			}
			if bad {
				return errQuiet
			}
			return nil
		},
	}
	return a.jsonFlag(cmd)
}

func printFindings(findings []launcher.Finding) {
	for _, f := range findings {
		fmt.Printf("%-4s  %s: %s\n", f.Level, f.Topic, f.Text)
		if f.Remedy != "" {
			fmt.Printf("      try: %s\n", f.Remedy)
		}
	}
}
