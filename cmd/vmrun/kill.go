package main

import (
	"context"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) killCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "kill GUEST...",
		Short:             "End guests at once, like pulling the plug",
		GroupID:           "life",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, name string) error {
				return a.end(ctx, name, launcher.Kill)
			})
		},
	}
}
