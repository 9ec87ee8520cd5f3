package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) reexecCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "reexec [GUEST...]",
		Short: "Have supervisors go on as the vmrun that is installed now",
		Long: `Have supervisors go on as the vmrun that is installed now, all of them without a name.

That is for after an upgrade, and the Debian package does it. The guests notice
nothing: they run on, and the same processes adopt them as another program. Clients
of the consoles and control sockets have to connect again. A supervisor that is
starting or stopping its guest stays as it is.`,
		GroupID:           "help",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := a.guestNames(args)
			if len(args) == 0 {
				names = launcher.Supervised(a.runDir)
			}
			return errors.Join(err, each(names, func(name string) error { return a.reexec(cmd.Context(), name) }))
		},
	}
}

func (a *app) reexec(ctx context.Context, name string) error {
	s, err := launcher.Reexec(ctx, a.runDir, name)
	if err != nil {
		return err
	}
	say("%s: %s", name, reportWords(launcher.Report{Status: s, Adopted: true}))
	return nil
}

// execAnew puts the program that is installed under this one's name in its place. It
// returns only when it could not.
func execAnew(args, env []string) error {
	self, err := os.Executable() // without the mark of a file that was replaced (proc(5))
	if err != nil {
		return err
	}
	return &os.PathError{Op: "exec", Path: self, Err: syscall.Exec(self, args, env)}
}

// withoutReport are the arguments of a supervisor that has reported its start.
func withoutReport(args []string) []string {
	args = slices.Clone(args)
	if i := slices.Index(args, "--report-fd"); i > 0 && i+1 < len(args) {
		args[i+1] = launcher.NoReport
	}
	return args
}
