package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

func (a *app) startCmd() *cobra.Command {
	var opts launcher.Options
	var fresh bool
	cmd := &cobra.Command{
		Use:   "start GUEST...",
		Short: "Start guests in the background, or adopt running ones",
		Long: `Start guests in the background, or adopt running ones.

GUEST is the path of a spec, or the name of a guest whose spec is in
/etc/vmrun/NAME.toml or was started before. The command returns when the
guest's CPUs run, and says its NICs and MACs in one line. The guests of a fleet's
file are started one after the other; vmrun up starts those that are missing, in
their order and several at a time.

Where systemd has the unit vmrun@NAME.service, a guest whose spec is in /etc/vmrun
is started through it, unless --paused or --force is given.

A guest that vmrun suspend has written to disk goes on from there.`,
		GroupID:           "life",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			guests, err := a.loadSpecs(args)
			return errors.Join(err, each(guests, func(g *configs.Guest) error {
				if fresh {
					if err := a.discard(g.Name); err != nil {
						return err
					}
				}
				return a.start(cmd.Context(), g, opts)
			}))
		},
	}
	startFlags(cmd, &opts)
	cmd.Flags().BoolVar(&fresh, "fresh", false, "throw away the memory of a suspended guest, as a power cut would")
	return cmd
}

// discard throws away the memory of a suspended guest.
func (a *app) discard(name string) error {
	discarded, err := launcher.Discard(a.runDir, name)
	if discarded {
		warn("%s: its memory was thrown away", name)
	}
	return inGuest(name, err)
}

// start starts a guest, or adopts it, and says so.
func (a *app) start(ctx context.Context, g *configs.Guest, opts launcher.Options) error {
	report, err := a.launch(ctx, g, opts, func(status string) { warn("%s: %s", g.Name, status) })
	if err != nil {
		return err
	}
	printReport(report)
	if err := halted(report, opts); err != nil {
		return err
	}
	if g.CloudInit.Hostname != "" && report.Status.State == launcher.StateRunning && !report.Adopted {
		a.tellLogin(ctx, g)
	}
	return nil
}

// addressPatience is how long a start on a terminal waits for the guest's address.
const addressPatience = 2 * time.Minute

// tellLogin says where a guest with a seed is to be found, once it has an address, and
// how to log in. Only who sits at a terminal is kept waiting for that, and who does not
// want to wait goes on: the guest does too.
func (a *app) tellLogin(ctx context.Context, g *configs.Guest) {
	how := "vmrun ssh " + g.Name
	if !isTerminal(os.Stdout) || len(g.NICs) == 0 {
		return
	}
	say("%s: boots; its address is waited for (Ctrl-C leaves it alone)", g.Name)
	ctx, cancel := context.WithTimeout(ctx, addressPatience)
	defer cancel()
	addr, err := a.wait(ctx, g.Name, goalIP, true)
	if err != nil {
		say("%s: still boots, and is not waited for any more: vmrun wait --for=ip %[1]s, or vmrun console %[1]s", g.Name)
		return
	}
	say("%s: %s, log in: %s", g.Name, addr, how)
}

// launch starts a guest: through systemd where its unit is there, so that there is
// one owner, and else with a supervisor in the background. Of a long start through
// systemd tell, if it is not nil, hears how it is.
func (a *app) launch(ctx context.Context, g *configs.Guest, opts launcher.Options, tell func(status string)) (report launcher.Report, err error) {
	if !opts.Paused && !opts.Force && filepath.Dir(g.Path) == specDir && launcher.UnitStarts(ctx, a.runDir, g) {
		if err := launcher.StartUnit(ctx, g, tell); err != nil {
			return report, a.busy(ctx, g.Name, err)
		}
		report.Unit = launcher.UnitOf(g.Name)
		report.Status, err = launcher.Observe(ctx, a.runDir, g.Name)
		return report, err
	}
	self, err := os.Executable()
	if err != nil {
		return report, err
	}
	words := []string{"run", "--run-dir", a.runDir}
	if opts.Paused {
		words = append(words, "--paused")
	}
	if opts.Force {
		words = append(words, "--force")
	}
	report, err = launcher.Start(ctx, g, a.runDir, launcher.Supervisor{Path: self, Args: words})
	if err != nil {
		err = a.busy(ctx, g.Name, err)
	}
	return report, err
}

// halted is the error of a guest that was to run and does not.
func halted(r launcher.Report, opts launcher.Options) error {
	if r.Status.State != launcher.StateRunning && !opts.Paused && !r.Adopted && !r.Resumed {
		return fmt.Errorf("%s is there, but its CPUs do not run: vmrun logs %[1]s", r.Status.Name)
	}
	return nil
}

// printReport is the one line that a start ends with.
func printReport(r launcher.Report) {
	for _, w := range r.Warnings {
		warn("%s: %s", r.Status.Name, w)
	}
	if r.Unit != "" {
		say("%s: started as %s", r.Status.Name, r.Unit)
	}
	say("%s: %s", r.Status.Name, reportWords(r))
}

func reportWords(r launcher.Report) string {
	state := string(r.Status.State)
	if r.Adopted {
		state = "adopted, " + state
	}
	if r.Resumed {
		state = "resumed, " + state
	}
	return state + ": " + nicWords(r.Status.NICs)
}
