package main

import (
	"os"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

// stopPostCmd is what vmrun@.service runs when its main process has ended.
func (a *app) stopPostCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "stop-post GUEST",
		Short:             "See to a guest whose unit has lost its supervisor (ExecStopPost= of its unit)",
		Hidden:            true,
		GroupID:           "life",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := a.guestName(args[0])
			if err != nil {
				return err
			}
			did, err := launcher.SettleUnit(cmd.Context(), a.runDir, name, os.Getenv("SERVICE_RESULT"))
			if did != "" {
				say("%s: %s", name, did)
			}
			return err
		},
	}
}
