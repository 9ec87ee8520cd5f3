package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) startCmd() *cobra.Command {
	var opts launcher.Options
	cmd := &cobra.Command{
		Use:   "start GUEST...",
		Short: "Start guests in the background, or adopt running ones",
		Long: `Start guests in the background, or adopt running ones.

GUEST is the path of a spec, or the name of a guest whose spec is in
/etc/vmrun/NAME.toml or was started before. The command returns when the
guest's CPUs run, and says its NICs and MACs in one line.`,
		GroupID:           "life",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			return each(args, func(arg string) error { return a.start(cmd.Context(), arg, opts) })
		},
	}
	startFlags(cmd, &opts)
	return cmd
}

func (a *app) start(ctx context.Context, arg string, opts launcher.Options) error {
	g, err := a.loadSpec(arg)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	words := []string{"run", "--run-dir", a.runDir}
	if opts.Paused {
		words = append(words, "--paused")
	}
	if opts.Force {
		words = append(words, "--force")
	}
	report, err := launcher.Start(ctx, g, a.runDir, launcher.Supervisor{Path: self, Args: words})
	if err != nil {
		return a.busy(ctx, g.Name, err)
	}
	printReport(report)
	if report.Status.State != launcher.StateRunning && !opts.Paused && !report.Adopted {
		return fmt.Errorf("%s is there, but its CPUs do not run: vmrun logs %[1]s", g.Name)
	}
	return nil
}

// printReport is the one line that a start ends with.
func printReport(r launcher.Report) {
	for _, w := range r.Warnings {
		warn("%s: %s", r.Status.Name, w)
	}
	state := string(r.Status.State)
	if r.Adopted {
		state = "adopted, " + state
	}
	say("%s: %s: %s", r.Status.Name, state, nicWords(r.Status.NICs))
}
