package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"vmrun/configs"
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
guest's CPUs run, and says its NICs and MACs in one line.

Where systemd has the unit vmrun@NAME.service, a guest whose spec is in /etc/vmrun
is started through it, unless --paused or --force is given.`,
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
	report, err := a.begin(ctx, g, opts)
	if err != nil {
		return a.busy(ctx, g.Name, err)
	}
	printReport(report)
	if report.Status.State != launcher.StateRunning && !opts.Paused && !report.Adopted {
		return fmt.Errorf("%s is there, but its CPUs do not run: vmrun logs %[1]s", g.Name)
	}
	return nil
}

// begin starts a guest: through systemd where its unit is there, so that there is
// one owner.
func (a *app) begin(ctx context.Context, g *configs.Guest, opts launcher.Options) (launcher.Report, error) {
	if !opts.Paused && !opts.Force && filepath.Dir(g.Path) == specDir && launcher.UnitStarts(ctx, a.runDir, g) {
		if err := launcher.StartUnit(ctx, g); err != nil {
			return launcher.Report{}, err
		}
		status, err := launcher.Observe(ctx, a.runDir, g.Name)
		return launcher.Report{Status: status, Unit: launcher.UnitOf(g.Name)}, err
	}
	self, err := os.Executable()
	if err != nil {
		return launcher.Report{}, err
	}
	words := []string{"run", "--run-dir", a.runDir}
	if opts.Paused {
		words = append(words, "--paused")
	}
	if opts.Force {
		words = append(words, "--force")
	}
	return launcher.Start(ctx, g, a.runDir, launcher.Supervisor{Path: self, Args: words})
}

// printReport is the one line that a start ends with.
func printReport(r launcher.Report) {
	for _, w := range r.Warnings {
		warn("%s: %s", r.Status.Name, w)
	}
	if r.Unit != "" {
		say("%s: started as %s", r.Status.Name, r.Unit)
	}
	state := string(r.Status.State)
	if r.Adopted {
		state = "adopted, " + state
	}
	say("%s: %s: %s", r.Status.Name, state, nicWords(r.Status.NICs))
}
