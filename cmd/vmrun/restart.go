package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) restartCmd() *cobra.Command {
	var opts launcher.Options
	cmd := &cobra.Command{
		Use:   "restart GUEST...",
		Short: "Stop guests and start them again, with their specs as they are now",
		Long: `Stop guests and start them again, with their specs as they are now.

The spec is read before the guest is stopped: one that has become wrong leaves
the guest running. A guest that does not run is started.`,
		GroupID:           "life",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, arg := range args {
				errs = append(errs, a.restart(cmd.Context(), arg, opts))
			}
			return errors.Join(errs...)
		},
	}
	startFlags(cmd, &opts)
	return cmd
}

func (a *app) restart(ctx context.Context, arg string, opts launcher.Options) error {
	g, err := a.loadSpec(arg)
	if err != nil {
		return err
	}
	err = a.end(ctx, g.Name, launcher.Stop)
	if err != nil && !errors.Is(err, launcher.ErrNotFound) && !errors.Is(err, launcher.ErrState) {
		return err
	}
	return a.start(ctx, arg, opts)
}
