package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

func (a *app) restartCmd() *cobra.Command {
	var opts launcher.Options
	cmd := &cobra.Command{
		Use:   "restart GUEST...",
		Short: "Stop guests and start them again, with their specs as they are now",
		Long: `Stop guests and start them again, with their specs as they are now.

The start is planned before the guest is stopped: a spec that has become wrong,
or does not fit the host any more, leaves the guest running. A guest that does
not run is started.`,
		GroupID:           "life",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			guests, err := a.loadSpecs(args)
			return errors.Join(err, each(guests, func(g *configs.Guest) error { return a.restart(cmd.Context(), g, opts) }))
		},
	}
	startFlags(cmd, &opts)
	return cmd
}

func (a *app) restart(ctx context.Context, g *configs.Guest, opts launcher.Options) error {
	if os.Geteuid() != 0 { // who may stop a guest need not be able to start it again
		return fmt.Errorf("%s: only root can start it again: %w", g.Name, os.ErrPermission)
	}
	plan := launcher.PlanOptions{Force: opts.Force, Paused: opts.Paused}
	if _, err := launcher.PlanFor(ctx, g, a.runDir, plan); err != nil {
		return inGuest(g.Name, err) // it could not be started again
	}
	err := a.end(ctx, g.Name, launcher.Stop)
	if err != nil && !errors.Is(err, launcher.ErrNotFound) && !errors.Is(err, launcher.ErrState) {
		return err
	}
	return a.start(ctx, g, opts)
}
