package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vmrun/launcher"
)

// logView is what of which logs is shown.
type logView struct {
	console, qemu bool
	follow        bool
	lines         int // the last ones, or all where it is negative
}

// followedLines are shown of the past where nobody says how many.
const followedLines = 10

func (a *app) logsCmd() *cobra.Command {
	var v logView
	cmd := &cobra.Command{
		Use:   "logs [GUEST...]",
		Short: "Show logs of guests: their supervisors', QEMU's, or their consoles'",
		Long: `Show logs of guests: their supervisors', QEMU's, or their consoles'. Without a
name, those of all guests, and with --follow of those that are started meanwhile.
The lines of several guests have the name in front.

A supervisor that runs in the foreground logs to its own standard error
instead. Of each log the newest part is kept, and the one before it. The logs
are kept after the guest's end, until vmrun cleanup.

--follow shows the last lines and those to come, over rotations, until the guests
that were named have ended for good. Ctrl-C ends it, with exit status 0.

A terminal is shown no colours, and other control characters as \x1b. A file or
a pipe gets the log as it is: vmrun logs --console GUEST | less -R`,
		Example: `  vmrun logs -n 20 web1
  vmrun logs --follow --console`,
		GroupID:           "look",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			if v.follow && !cmd.Flags().Changed("lines") {
				v.lines = followedLines
			}
			names, err := a.guestNames(args)
			switch {
			case err != nil:
				return err
			case v.follow:
				return a.followLogs(cmd.Context(), names, v)
			case len(names) == 1:
				return a.printLog(names[0], v)
			case len(args) == 0:
				names = launcher.Names(a.runDir)
			}
			return a.printLogs(names, v, len(args) == 0)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&v.console, "console", false, "show what the guest wrote to its serial console")
	f.BoolVar(&v.qemu, "qemu", false, "show QEMU's standard error")
	f.BoolVarP(&v.follow, "follow", "f", false, "show what comes, too")
	f.IntVarP(&v.lines, "lines", "n", -1, "the last `lines` of each alone, -1 for all; 10 with --follow")
	cmd.MarkFlagsMutuallyExclusive("console", "qemu")
	return cmd
}

// path is where the log of a guest is that was asked for.
func (a *app) logPath(name string, v logView) string {
	supervisorLog, qemuLog, consoleLog := launcher.Logs(a.runDir, name)
	switch {
	case v.console:
		return consoleLog
	case v.qemu:
		return qemuLog
	}
	return supervisorLog
}

func (a *app) openLog(name string, v logView) (io.ReadCloser, error) {
	log, err := launcher.OpenLog(a.logPath(name, v), v.lines)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%s: %w, or it has no such log", name, launcher.ErrNotFound)
	}
	return log, err
}

// printLog writes a log to standard output: as it is, but for a terminal, which
// a guest must not steer.
func (a *app) printLog(name string, v logView) error {
	log, err := a.openLog(name, v)
	if err != nil {
		return err
	}
	defer log.Close()
	if term.IsTerminal(int(os.Stdout.Fd())) {
		return writeLog(os.Stdout, log)
	}
	_, err = io.Copy(os.Stdout, log)
	return err
}

// printLogs writes logs one after the other. Of all guests some have no such log.
func (a *app) printLogs(names []string, v logView, all bool) error {
	l := newLabels(os.Stdout, names)
	return each(names, func(name string) error {
		log, err := a.openLog(name, v)
		if all && (errors.Is(err, launcher.ErrNotFound) || errors.Is(err, os.ErrPermission)) {
			return nil
		}
		if err != nil {
			return err
		}
		defer log.Close()
		return l.copy(name, log)
	})
}

// followLogs writes what comes, of guests until they have ended, or of all.
func (a *app) followLogs(ctx context.Context, names []string, v logView) error {
	if len(names) == 0 {
		return a.followAllLogs(ctx, v)
	}
	if err := a.present(ctx, names); err != nil {
		return err
	}
	l := newLabels(os.Stdout, names)
	return follow(ctx, names, func(ctx context.Context, name string) error {
		log, err := launcher.FollowLog(a.whileThere(ctx, name), a.logPath(name, v), v.lines)
		if err != nil {
			return inGuest(name, err)
		}
		defer log.Close()
		if len(names) == 1 {
			return l.copyOne(untilOver{ctx, log})
		}
		return l.copy(name, untilOver{ctx, log})
	})
}

// untilOver is a log until somebody has enough of it: one that a guest floods may
// have no end.
type untilOver struct {
	ctx context.Context
	io.Reader
}

func (r untilOver) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, io.EOF
	}
	return r.Reader.Read(p)
}

// whileThere is ctx until a guest has ended for good.
func (a *app) whileThere(ctx context.Context, name string) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // it ends with ctx, at the latest
		defer cancel()
		a.wait(ctx, name, goalStopped, false)
	}()
	return ctx
}

// followAllLogs goes on after a guest's end: its next start goes on with the log.
func (a *app) followAllLogs(ctx context.Context, v logView) error {
	there, err := launcher.List(ctx, a.runDir)
	if len(there) == 0 && err != nil {
		return err
	}
	past := map[string]int{} // lines of those that are there already
	for _, s := range there {
		past[s.Name] = v.lines
		if s.State.Rests() {
			past[s.Name] = 0
		}
	}
	var names []string
	for name := range past {
		names = append(names, name)
	}
	l := newLabels(os.Stdout, names)
	followAll(ctx, func() []string { return launcher.Names(a.runDir) }, func(ctx context.Context, name string) {
		lines, old := past[name]
		if !old {
			lines = -1
		}
		log, err := launcher.FollowLog(ctx, a.logPath(name, v), lines)
		if err != nil {
			<-ctx.Done() // not for this user
			return
		}
		defer log.Close()
		l.copy(name, untilOver{ctx, log})
	})
	return nil
}

// present makes sure that there are such guests, or have been.
func (a *app) present(ctx context.Context, names []string) error {
	return each(names, func(name string) error {
		_, err := launcher.Observe(ctx, a.runDir, name)
		return err
	})
}
