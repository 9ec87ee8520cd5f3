package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) stopCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "stop GUEST...",
		Short: "Stop guests: agent or power button, then quit, then SIGKILL",
		Long: `Stop guests and wait until everything of them is gone.

A QEMU guest agent that answers is told to power the guest down; without one, or
when it does not answer within a second, the guest's power button is pressed. When
the spec's stop.timeout is over QEMU is told to quit, and after stop.quit_timeout
it is killed. The rung that did it is shown. A guest whose QEMU does not answer is left alone, exit status 4,
unless --force is given.`,
		GroupID:           "life",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			end := launcher.Stop
			if force {
				end = launcher.Kill
			}
			return a.forEach(cmd.Context(), args, func(ctx context.Context, name string) error {
				return a.end(ctx, name, end)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "end it at once, as vmrun kill does")
	return cmd
}

// end ends a guest one way or another and says how it went.
func (a *app) end(ctx context.Context, name string, how func(context.Context, string, string) (launcher.Outcome, error)) error {
	outcome, err := how(ctx, a.runDir, name)
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: not waited for any longer; the guest goes on stopping: vmrun status %s", name, name)
	}
	if err != nil {
		return err
	}
	say("%s: %s", name, outcome)
	return nil
}
