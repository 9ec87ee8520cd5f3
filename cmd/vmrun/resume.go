package main

import (
	"context"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) resumeCmd() *cobra.Command {
	var opts launcher.Options
	cmd := &cobra.Command{
		Use:   "resume GUEST...",
		Short: "Let halted guests' CPUs run, and suspended guests go on",
		Long: `Let halted guests' CPUs run, and suspended guests go on.

A guest that vmrun suspend has written to disk is started, just as it was then:
what is new in its spec takes a restart. When its disks have changed since, it is
refused unless --force is given; vmrun start --fresh starts it without its memory.`,
		GroupID:           "life",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, name string) error {
				return a.resume(ctx, name, opts)
			})
		},
	}
	cmd.Flags().BoolVar(&opts.Force, "force", false, "let a suspended guest go on even where its disks have changed")
	return cmd
}

func (a *app) resume(ctx context.Context, name string, opts launcher.Options) error {
	if s, err := launcher.Observe(ctx, a.runDir, name); err == nil && s.State == launcher.StateSuspended {
		g := launcher.Suspended(a.runDir, name)
		if g == nil {
			if g, err = a.findSpec(name); err != nil {
				return err
			}
		}
		report, err := a.launch(ctx, g, opts, func(status string) { warn("%s: %s", name, status) })
		if err != nil {
			return err
		}
		printReport(report)
		if report.Status.State != launcher.StatePaused { // as it was when it was suspended
			return nil
		}
	}
	if err := a.command(ctx, name, "cont", nil, nil); err != nil {
		return err
	}
	say("%s: running", name)
	return nil
}
