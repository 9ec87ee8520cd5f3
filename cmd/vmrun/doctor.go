package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

func (a *app) doctorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor [GUEST|SPEC|NIC]...",
		Short: "Find out what is wrong, why, and how to mend it",
		Long: `Find out what is wrong, why, and how to mend it.

Without an argument the host and all its links are looked at. With a guest that
runs, that guest is looked at as well; with a spec, whatever could be in the way
of its start; with the name of a link, whether guests could sit on it.

Findings are good, note (as it was asked for, and yet a surprise to many), warn
(works, with less than one would expect) and bad (keeps a guest from starting,
or from being of use). The exit status is 1 when any is bad.`,
		GroupID:           "help",
		ValidArgsFunction: a.completeGuests,
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			var subjects []launcher.Subject
			err := each(args, func(arg string) error {
				list, err := a.subjects(cmd.Context(), arg)
				subjects = append(subjects, list...)
				return err
			})
			if err != nil {
				return err
			}
			findings := launcher.Diagnose(cmd.Context(), a.runDir, subjects...)
			if a.json {
				if err := printJSON(findings); err != nil {
					return err
				}
			} else {
				printFindings(findings)
			}
			for _, f := range findings {
				if f.Level == launcher.Bad {
					return errQuiet
				}
			}
			return nil
		},
	}
	return a.jsonFlag(cmd)
}

// subjects are what an argument means: a guest that runs, else the guests of a
// file, else a link of the host's, which need not be there.
func (a *app) subjects(ctx context.Context, arg string) (list []launcher.Subject, err error) {
	if !isSpec(arg) && configs.CheckName(arg) == nil {
		s, err := launcher.Observe(ctx, a.runDir, arg)
		switch {
		case err == nil && !s.State.Rests() && s.State != launcher.StateRestarting:
			return []launcher.Subject{{Guest: arg}}, nil
		case err != nil && !errors.Is(err, launcher.ErrNotFound):
			return nil, err
		}
	}
	guests, err := a.loadSpecs([]string{arg})
	var wrong usageError
	noSpec := errors.Is(err, launcher.ErrNotFound) || errors.As(err, &wrong)
	if noSpec && configs.CheckInterface(arg) == nil {
		return []launcher.Subject{{Parent: arg}}, nil
	}
	for _, g := range guests {
		list = append(list, launcher.Subject{Spec: g})
	}
	return list, err
}

func printFindings(findings []launcher.Finding) {
	for _, f := range findings {
		say("%-4s  %s: %s", f.Level, f.Topic, f.Text)
		if f.Why != "" {
			say("      why: %s", f.Why)
		}
		if f.Remedy != "" {
			say("      try: %s", f.Remedy)
		}
	}
}
