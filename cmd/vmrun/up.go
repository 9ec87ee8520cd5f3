package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

// upOptions are the words on up's command line.
type upOptions struct {
	launcher.UpOptions
	launcher.Options
	force    bool // whatever memory the host has
	parallel int
	plain    bool
}

func (a *app) upCmd() *cobra.Command {
	var opts upOptions
	cmd := &cobra.Command{
		Use:   "up FILE",
		Short: "Make what runs the same as a fleet's file says",
		Long: `Make what runs the same as a fleet's file says.

Guests that are missing or have ended are started, and those that run without a
supervisor adopted: in the order that after = [...] asks for, several at a time.
A guest that others come after has to become ready first, as its [ready] says.
What runs as the file says is left alone, so the command can be given again at any
time, after Ctrl-C too. vmrun plan FILE shows what it would do.

A guest that runs with an older spec is restarted only with --recreate, and one
that is not in the file any more stopped only with --prune. A fleet that the host's
memory cannot hold is refused.

When a guest fails the others go on, but for those that come after it. The exit
status is 1 then.`,
		GroupID:           "life",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			if opts.parallel < 0 {
				a.usage = true
				return errors.New("--parallel is how many guests are started at a time")
			}
			if opts.parallel == 0 {
				opts.parallel = max(2, runtime.NumCPU())
			}
			return a.up(cmd.Context(), args[0], opts)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&opts.Recreate, "recreate", false, "restart guests that run with an older spec")
	flags.BoolVar(&opts.Prune, "prune", false, "stop guests that are not in the file any more")
	flags.BoolVar(&opts.force, "force", false, "start more than the host's memory holds")
	flags.BoolVar(&opts.Paused, "paused", false, "leave the CPUs of what is started halted, and wait for nobody to become ready")
	flags.IntVar(&opts.parallel, "parallel", 0, "start so many guests at a time; 0 are as many as the host has CPUs, and two at least")
	plainFlag(cmd, &opts.plain)
	return cmd
}

func plainFlag(cmd *cobra.Command, plain *bool) {
	cmd.Flags().BoolVar(plain, "plain", false, "write lines and draw nothing, on a terminal too")
}

// completeFiles completes the one argument that is a file's path.
func completeFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"toml"}, cobra.ShellCompDirectiveFilterFileExt
}

func (a *app) up(ctx context.Context, path string, opts upOptions) error {
	f, err := readFleet(path)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s: only root can start guests: %w", path, os.ErrPermission)
	}
	changes, err := launcher.Changes(ctx, a.runDir, f)
	if err != nil {
		return err
	}
	stops, rest := launcher.UpJobs(changes, opts.UpOptions)
	memory := launcher.MemoryFor(append(stops[:len(stops):len(stops)], rest...))
	if !memory.Fits() && !opts.force {
		printMemory(os.Stderr, memory)
		return usageError{fmt.Errorf("%s: the host's memory does not hold this, and nothing was done: --force does it all the same", path)}
	}
	starter := starter{a, opts.Options}
	w := a.newWork("up", path, opts.plain, stops, rest)
	w.do, w.ready = starter.do, starter.awaitReady
	w.run(ctx, launcher.NewSchedule(stops, 0, true))
	w.run(ctx, launcher.NewSchedule(rest, opts.parallel, false))
	err = w.end()
	leftovers(path, changes, opts.UpOptions)
	return err
}

// printMemory shows the sum that a fleet's memory is.
func printMemory(w *os.File, m launcher.Memory) {
	t := table(w)
	cells(t, "memory to be started", plural(m.Starts, "guest"), room(m.Needed))
	if m.Stops > 0 {
		cells(t, "given back before", plural(m.Stops, "guest"), room(m.Freed))
	}
	cells(t, "available on this host", "", room(m.Available))
	if m.Fits() {
		cells(t, "left", "", room(m.Room()-m.Needed))
	} else {
		cells(t, "missing", "", room(m.Needed-m.Room()))
	}
	t.Flush()
}

// room is an amount of memory, for a column of them.
func room(n configs.Size) string { return fmt.Sprintf("%7.1f GiB", float64(n)/(1<<30)) }

// leftovers says what an up has not done, for want of a flag.
func leftovers(path string, changes []launcher.Change, opts launcher.UpOptions) {
	var older, dropped []string
	for _, c := range changes {
		switch {
		case c.Kind == launcher.ChangeRecreate && !opts.Recreate:
			older = append(older, c.Name)
		case c.Kind == launcher.ChangeRemove && !opts.Prune:
			dropped = append(dropped, c.Name)
		}
	}
	if older != nil {
		warn("with an older spec: %s: vmrun plan %s shows the difference, up --recreate restarts them", abridged(older), path)
	}
	if dropped != nil {
		warn("not in the file any more: %s: up --prune stops them", abridged(dropped))
	}
}

// abridged is a list of guests that fits on a line.
func abridged(names []string) string {
	if len(names) > 5 {
		return strings.Join(names[:4], ", ") + fmt.Sprintf(" and %d more", len(names)-4)
	}
	return strings.Join(names, ", ")
}

// doing are the words for a deed that is under way.
var doing = map[launcher.Deed]string{
	launcher.DeedStart: "starting", launcher.DeedAdopt: "adopting", launcher.DeedRecreate: "restarting", launcher.DeedStop: "stopping",
	launcher.DeedRefuse: "asking again",
}

// starter does what up does to guests.
type starter struct {
	*app
	opts launcher.Options
}

func (s starter) do(ctx context.Context, j launcher.Job) result {
	switch j.Deed {
	case launcher.DeedRefuse:
		if j.Kind == launcher.ChangeSilent {
			if state, ok := s.answers(ctx, j.Name); ok {
				return result{end: string(state)}
			}
		}
		return result{err: fmt.Errorf("%s: %s", j.Name, j.Why)}
	case launcher.DeedAdopt: // to take this back would be to end a guest that runs
		return s.start(context.WithoutCancel(ctx), j)
	case launcher.DeedStop:
		return s.stopJob(ctx, j, launcher.Stop)
	case launcher.DeedRecreate:
		return s.recreate(ctx, j)
	case launcher.DeedStart:
		if j.State == launcher.StateStopping { // its end is waited for
			return s.startAnew(ctx, j)
		}
		return s.start(ctx, j)
	}
	return result{}
}

// recreate stops a guest and starts it with its spec as it is now, unless that does
// not fit the host.
func (s starter) recreate(ctx context.Context, j launcher.Job) result {
	if _, err := launcher.PlanFor(ctx, j.Guest, s.runDir, launcher.PlanOptions{Paused: s.opts.Paused}); err != nil {
		return result{err: err}
	}
	return s.startAnew(ctx, j)
}

// startAnew starts a guest after its end.
func (s starter) startAnew(ctx context.Context, j launcher.Job) result {
	r := s.stopJob(ctx, j, launcher.Stop)
	if r.err != nil {
		return r
	}
	if r.err = ctx.Err(); r.err == nil {
		r = s.start(ctx, j)
	}
	if ctx.Err() != nil && r.err != nil {
		r.end = endStopped // which an interrupt does not take back
	}
	return r
}

func (s starter) start(ctx context.Context, j launcher.Job) result {
	report, err := s.launch(ctx, j.Guest, s.opts, nil)
	if launcher.KindOf(err) == launcher.KindState { // it has a supervisor: another up was quicker
		if state, ok := s.answers(ctx, j.Name); ok {
			return result{end: string(state), words: string(state) + ": somebody else has started it", others: true}
		}
	}
	if err == nil {
		err = halted(report, s.opts)
	}
	r := result{end: string(report.Status.State), words: reportWords(report), warnings: report.Warnings, err: err}
	if report.Unit != "" {
		r.words += ", as " + report.Unit
	}
	return r
}

// awaitReady waits until a guest is ready. One that was started with --paused never
// is.
func (s starter) awaitReady(ctx context.Context, j launcher.Job) error {
	if s.opts.Paused {
		return nil
	}
	timeout := j.Guest.Ready.Timeout
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	_, err := s.wait(ctx, j.Name, goalReady, true)
	if errors.Is(err, context.DeadlineExceeded) {
		return s.waited(j.Name, goalReady, timeout)
	}
	return err
}
