package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

func (a *app) runCmd() *cobra.Command {
	var opts launcher.Options
	var guest, reportFD string
	cmd := &cobra.Command{
		Use:   "run GUEST",
		Short: "Start a guest and stay with it until it ends",
		Long: `Start a guest and stay with it until it ends.

The first SIGINT or SIGTERM stops the guest gracefully, a second one at once.
A guest that runs without a supervisor is adopted. One that ends is started again
as restart.policy in its spec says. The exit status is that of the last end: 0 when
the guest powered itself off or was stopped.`,
		GroupID:           "life",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.RunDir = a.runDir
			// Nothing is there yet that would need a stop: a signal simply ends the process.
			signal.Reset(os.Interrupt, syscall.SIGTERM)
			if err := cmd.Context().Err(); err != nil { // one came before
				return err
			}
			if err := launcher.ShedPrivileges(); err != nil {
				return fmt.Errorf("give up privileges: %w", err)
			}
			which := wanted{args[0], guest}
			if reportFD == "" {
				return a.runForeground(cmd.Context(), which, opts)
			}
			return a.runBackground(cmd.Context(), which, reportFD, opts)
		},
	}
	startFlags(cmd, &opts)
	cmd.Flags().DurationVar(&opts.WaitParents, "wait-parents", 0, "wait for parents that are not there yet, for at most this time")
	cmd.Flags().StringVar(&guest, "guest", "", "run this guest of a fleet's file")
	cmd.Flags().StringVar(&reportFD, "report-fd", "", "write the start's result to this descriptor")
	cmd.Flags().MarkHidden("report-fd")
	return cmd
}

// wanted is the guest that run is for.
type wanted struct {
	arg   string // a guest's name or a file
	guest string // the one of the file, "" where it has one only
}

func (a *app) loadWanted(w wanted) (*configs.Guest, error) {
	if w.guest != "" {
		return readGuest(w.arg, w.guest)
	}
	return a.loadSpec(w.arg)
}

func startFlags(cmd *cobra.Command, opts *launcher.Options) {
	cmd.Flags().BoolVar(&opts.Paused, "paused", false, "leave the guest's CPUs halted; vmrun resume lets them run")
	cmd.Flags().BoolVar(&opts.Force, "force", false, "start even where it would cut the host off its network")
}

func (a *app) runForeground(ctx context.Context, which wanted, opts launcher.Options) error {
	m, err := newManager()
	if err != nil {
		return err
	}
	inJournal, _ := journal.StderrIsJournalStream()
	if opts.Log = newLogger(os.Stderr); inJournal {
		opts.Log = slog.New(newJournalHandler())
	}
	opts.Reexec = func() error { return execAnew(os.Args, append(os.Environ(), m.environment()...)) }
	g, err := a.loadWanted(which)
	if err != nil {
		g, err = a.insteadOf(err, which, opts.Log)
	}
	if err == nil {
		m.attach(g, &opts)
		err = a.lead(ctx, g, opts, m, inJournal)
	}
	if err == nil || isTold(err) || !inJournal {
		return err
	}
	for line := range strings.Lines(err.Error()) {
		opts.Log.Error(strings.TrimSpace(line), guestKey, nameOf(g, which))
	}
	return told{err}
}

// insteadOf is for a guest whose spec cannot be used. One that runs, or is suspended,
// needs it for its next start only, and a supervisor all the same.
func (a *app) insteadOf(err error, w wanted, log *slog.Logger) (*configs.Guest, error) {
	g := launcher.Abandoned(a.runDir, nameOf(nil, w))
	if g == nil {
		g = launcher.Suspended(a.runDir, nameOf(nil, w))
	}
	if g == nil {
		return nil, err
	}
	log.Warn("the guest goes on as it was: its spec is wrong by now", guestKey, g.Name, "error", oneLine{err}.Error())
	return g, nil
}

// nameOf is the name of a guest whose spec may not even say it.
func nameOf(g *configs.Guest, w wanted) string {
	if g != nil {
		return g.Name
	}
	return cmp.Or(w.guest, strings.TrimSuffix(filepath.Base(w.arg), ".toml"))
}

// lead is a guest's life in the foreground. In the journal the supervisor itself
// says how it begins and ends.
func (a *app) lead(ctx context.Context, g *configs.Guest, opts launcher.Options, m *manager, inJournal bool) error {
	if !inJournal {
		opts.Ready = printReport
	}
	outcome, err := supervise(ctx, g, opts, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	takenBack := m != nil && errors.Is(err, context.Canceled) // a unit that is stopped before its guest is there has not failed
	if takenBack || err == nil && outcome.Good() {
		m.ended()
	}
	switch {
	case takenBack:
		opts.Log.Info("the start was taken back: "+oneLine{err}.Error(), guestKey, g.Name)
		return nil
	case err != nil:
		return a.busy(context.WithoutCancel(ctx), g.Name, err)
	case !inJournal:
		return judge(g.Name, outcome)
	case outcome.Good():
		return nil
	}
	for _, line := range outcome.Log {
		opts.Log.Error("QEMU said: "+line, guestKey, g.Name)
	}
	return told{errQuiet}
}

// runBackground is the supervisor that start has put into the background.
func (a *app) runBackground(ctx context.Context, which wanted, fd string, opts launcher.Options) error {
	reporter, err := launcher.NewReporter(fd)
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGHUP) // the login that started it may go
	g, err := a.loadWanted(which)
	if err != nil {
		reporter.Failed(err)
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if err := launcher.LeaveSession(a.runDir, g, stop); err != nil {
		warn("%s stays in the control group that it was started from: %v", g.Name, err)
	}
	opts.Ready, opts.Log = reporter.Ready, newLogger(launcher.SupervisorLog(a.runDir, g.Name))
	opts.Reexec = func() error { return execAnew(withoutReport(os.Args), os.Environ()) }
	if _, err = supervise(ctx, g, opts, os.Interrupt, syscall.SIGTERM); err != nil {
		reporter.Failed(err)
	}
	return err
}

// supervise runs a guest's life under signals: the first asks it to stop, a
// second one ends it at once.
func supervise(parent context.Context, g *configs.Guest, opts launcher.Options, on ...os.Signal) (launcher.Outcome, error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, on...)
	signal.Ignore(syscall.SIGPIPE) // whoever reads the log may go
	defer signal.Stop(signals)
	kill := make(chan struct{})
	opts.Kill = kill
	go func() {
		select {
		case <-signals:
		case <-parent.Done(): // it came before this was ready for it
		}
		cancel()
		for first := time.Now(); ; {
			<-signals
			if time.Since(first) > oneSignal {
				close(kill)
				return
			}
		}
	}()
	return launcher.Run(ctx, g, opts)
}

// oneSignal is how close signals come that mean one wish: a terminal and
// timeout(1) signal both a process and its group.
const oneSignal = 300 * time.Millisecond

// newLogger logs to a supervisor's standard error, w.
func newLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// judge turns a guest's end into the verb's.
func judge(name string, o launcher.Outcome) error {
	if o.Good() {
		say("%s: %s", name, o)
		return nil
	}
	warn("%s: %s", name, o)
	for _, line := range o.Log {
		complain("\t", safe(line))
	}
	return errQuiet
}
