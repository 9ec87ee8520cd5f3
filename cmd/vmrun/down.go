package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

func (a *app) downCmd() *cobra.Command {
	var force, plain bool
	cmd := &cobra.Command{
		Use:   "down FILE",
		Short: "Stop all guests of a fleet's file",
		Long: `Stop all guests that were started from a fleet's file, those that are not in it any
more too, and wait until everything of them is gone. A guest is stopped after those
that come after it, and all others at once, each as vmrun stop does it. One that does
not answer is asked again for a while, and then left alone unless --force is given.

The exit status is 1 when one could not be stopped.`,
		GroupID:           "life",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			how := launcher.Stop
			if force {
				how = launcher.Kill
			}
			return a.down(cmd.Context(), args[0], plain, how)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "end them at once, as vmrun kill does")
	plainFlag(cmd, &plain)
	return cmd
}

// ender is a way to end a guest.
type ender func(ctx context.Context, base, name string) (launcher.Outcome, error)

func (a *app) down(ctx context.Context, path string, plain bool, how ender) error {
	f, err := readFleet(path)
	if err != nil {
		if launcher.StartedFrom(a.runDir, path) == nil {
			return err
		}
		f = &configs.Fleet{} // they outlive their file: all are those that it has no more
		if f.Path, err = filepath.Abs(path); err != nil {
			return err
		}
	}
	changes, err := launcher.Changes(ctx, a.runDir, f)
	if err != nil {
		return err
	}
	var foreign []string
	for _, c := range changes {
		if c.Kind == launcher.ChangeForeign {
			foreign = append(foreign, c.Name)
		}
	}
	if foreign != nil {
		warn("left alone, for they run from another file: %s: vmrun plan %s shows which", abridged(foreign), path)
	}
	jobs := launcher.DownJobs(changes)
	w := a.newWork("down", path, plain, jobs)
	w.do = func(ctx context.Context, j launcher.Job) result { return a.stopJob(ctx, j, how) }
	w.run(ctx, launcher.NewSchedule(jobs, 0, true))
	return w.end()
}

// patience is how long a guest is given that does not answer: dozens of them that
// boot at once, by emulation above all, keep each other from it for seconds.
const patience = 20 * time.Second

// stopJob ends a guest; one that has ended by itself is as good.
func (a *app) stopJob(ctx context.Context, j launcher.Job, how ender) result {
	o, err := how(ctx, a.runDir, j.Name)
	for until := time.Now().Add(patience); errors.Is(err, launcher.ErrUnresponsive) && time.Now().Before(until) && ctx.Err() == nil; {
		time.Sleep(waitPoll)
		o, err = how(ctx, a.runDir, j.Name)
	}
	r := result{end: endStopped, words: o.String(), err: err}
	if err == nil {
		return r
	}
	if ctx.Err() != nil {
		r.end = endStopping
		return r
	}
	s, observeErr := launcher.Observe(ctx, a.runDir, j.Name)
	if errors.Is(observeErr, launcher.ErrNotFound) || observeErr == nil && s.State.Rests() {
		r.words, r.err = "has ended", nil
	}
	return r
}

// answers looks again at a guest that did not answer.
func (a *app) answers(ctx context.Context, name string) (launcher.State, bool) {
	for until := time.Now().Add(patience); time.Now().Before(until) && ctx.Err() == nil; time.Sleep(waitPoll) {
		if s, err := launcher.Observe(ctx, a.runDir, name); err == nil && s.State != launcher.StateUnresponsive {
			return s.State, !s.State.Rests()
		}
	}
	return "", false
}
