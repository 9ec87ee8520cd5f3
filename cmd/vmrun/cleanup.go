package main

import (
	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) cleanupCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what guests that have ended left: logs, records, half-done starts",
		Long: `Remove what guests that have ended left: logs, records, half-done starts.

Guests that run are not touched, whether or not they have a supervisor. Every
start does this for its own guest by itself.`,
		GroupID: "help",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cleaned, err := launcher.Cleanup(cmd.Context(), a.runDir)
			for _, name := range cleaned {
				say("%s: cleaned up", name)
			}
			return err
		},
	}
}
