package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) runCmd() *cobra.Command {
	var opts launcher.Options
	var reportFD string
	cmd := &cobra.Command{
		Use:   "run GUEST",
		Short: "Start a guest and stay with it until it ends",
		Long: `Start a guest and stay with it until it ends.

The first SIGINT or SIGTERM stops the guest gracefully, a second one at once.
A guest that runs without a supervisor is adopted. The exit status is 0 when
the guest powered itself off or was stopped.`,
		GroupID:           "life",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.RunDir = a.runDir
			if reportFD == "" {
				return a.runForeground(args[0], opts)
			}
			return a.runBackground(args[0], reportFD, opts)
		},
	}
	startFlags(cmd, &opts)
	cmd.Flags().StringVar(&reportFD, "report-fd", "", "write the start's result to this descriptor")
	cmd.Flags().MarkHidden("report-fd")
	return cmd
}

func startFlags(cmd *cobra.Command, opts *launcher.Options) {
	cmd.Flags().BoolVar(&opts.Paused, "paused", false, "leave the guest's CPUs halted; vmrun resume lets them run")
	cmd.Flags().BoolVar(&opts.Force, "force", false, "start even where it would cut the host off its network")
}

func (a *app) runForeground(arg string, opts launcher.Options) error {
	g, err := a.loadSpec(arg)
	if err != nil {
		return err
	}
	opts.Ready = func(r launcher.Report) { printReport(r) }
	outcome, err := supervise(opts, func(ctx context.Context, opts launcher.Options) (launcher.Outcome, error) {
		return launcher.Run(ctx, g, opts)
	})
	if err != nil {
		return err
	}
	return judge(g.Name, outcome)
}

// runBackground is the supervisor that start has put into the background.
func (a *app) runBackground(arg, fd string, opts launcher.Options) error {
	reporter, err := launcher.NewReporter(fd)
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGHUP) // the login that started it may go
	g, err := a.loadSpec(arg)
	if err != nil {
		reporter.Failed(err)
		return err
	}
	if err := launcher.LeaveSession(g.Name); err != nil {
		warn("%s stays in the control group that it was started from: %v", g.Name, err)
	}
	opts.Ready = reporter.Ready
	_, err = supervise(opts, func(ctx context.Context, opts launcher.Options) (launcher.Outcome, error) {
		return launcher.Run(ctx, g, opts)
	})
	if err != nil {
		reporter.Failed(err)
	}
	return err
}

// supervise runs a guest's life under signals: the first asks, the second kills.
func supervise(opts launcher.Options, life func(context.Context, launcher.Options) (launcher.Outcome, error)) (launcher.Outcome, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	kill := make(chan struct{})
	opts.Kill, opts.Log = kill, newLogger()
	go func() {
		<-signals
		cancel()
		<-signals
		close(kill)
	}()
	return life(ctx, opts)
}

// newLogger logs to standard error, without time stamps where the journal has
// its own (systemd.exec(5), $JOURNAL_STREAM).
func newLogger() *slog.Logger {
	opts := &slog.HandlerOptions{}
	if os.Getenv("JOURNAL_STREAM") != "" {
		opts.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}

// judge turns a guest's end into the verb's.
func judge(name string, o launcher.Outcome) error {
	if o.Good() {
		fmt.Printf("%s: %s\n", name, o)
		return nil
	}
	warn("%s: %s", name, o)
	for _, line := range o.Log {
		fmt.Fprintln(os.Stderr, "\t"+line)
	}
	return errQuiet
}
