package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"vmrun/launcher"
	"vmrun/qmp"
)

// goal is what a guest is waited for.
type goal string

const (
	goalRunning goal = "running"
	goalIP      goal = "ip"
	goalReady   goal = "ready"
	goalStopped goal = "stopped"
)

var goals = []string{string(goalRunning), string(goalIP), string(goalReady), string(goalStopped)}

func (a *app) waitCmd() *cobra.Command {
	var until string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait GUEST...",
		Short: "Wait until guests run, have an address, are ready, or have ended",
		Long: `Wait until guests run, have an address, are ready, or have ended.

  --for=running   the guest's CPUs run; the guest need not have been started yet
  --for=ip        the guest has used an address that is not link-local, or its
                  QEMU guest agent has told of one, which is printed
  --for=ready     the guest has come as far as ready.when in its spec says
  --for=stopped   the guest has ended for good, or was never there

Of several guests all are waited for, and each is named before what is printed
of it. The exit status is 4 when the time is over, and 3 when a guest ends that
was to run.`,
		Example: `  vmrun start web1.toml && ssh root@$(vmrun wait --for=ip web1)
  vmrun wait --for=stopped --timeout=5m web1 web2`,
		GroupID:           "look",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(goals, until) {
				a.usage = true
				return fmt.Errorf("--for=%s: use one of %s", until, strings.Join(goals, ", "))
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			return a.waitAll(ctx, args, goal(until), timeout)
		},
	}
	cmd.Flags().StringVar(&until, "for", string(goalRunning), "what to wait for: "+strings.Join(goals, ", "))
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "give up after this time; 0 never does")
	cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions([]cobra.Completion{
		cobra.CompletionWithDesc(string(goalRunning), "its CPUs run"),
		cobra.CompletionWithDesc(string(goalIP), "it has an address"),
		cobra.CompletionWithDesc(string(goalReady), "it is as far as ready.when says"),
		cobra.CompletionWithDesc(string(goalStopped), "it has ended for good"),
	}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// waitAll waits for all guests at once and prints of each as it is there.
func (a *app) waitAll(ctx context.Context, args []string, g goal, timeout time.Duration) error {
	names, err := a.guestNames(args)
	var wg sync.WaitGroup
	var printing sync.Mutex
	errs := make([]error, len(names))
	for i, name := range names {
		wg.Go(func() {
			said, err := a.wait(ctx, name, g, false)
			switch {
			case errors.Is(err, context.DeadlineExceeded):
				err = a.waited(name, g, timeout)
			case errors.Is(err, context.Canceled):
				err = fmt.Errorf("%s: no longer waited for", name)
			}
			if errs[i] = err; err != nil {
				return
			}
			printing.Lock()
			defer printing.Unlock()
			if len(names) > 1 || g != goalIP {
				said = name + ": " + said
			}
			say("%s", said)
		})
	}
	wg.Wait()
	return errors.Join(append(errs, err)...)
}

// waitPoll is how often a guest is looked at that has nobody to tell of it: one
// that is not there yet, is starting, or has lost its supervisor.
const waitPoll = 200 * time.Millisecond

// wait returns what there is to say when the guest has come as far as g. One that
// was seen alive, before or by now, is not waited for after its end.
func (a *app) wait(ctx context.Context, name string, g goal, seen bool) (said string, err error) {
	for {
		said, again, err := a.waitEvents(ctx, name, g, &seen)
		if !again {
			return said, err
		}
		select {
		case <-time.After(waitPoll):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// waitEvents looks at the guest, and again with each event, for as long as
// somebody tells of it.
func (a *app) waitEvents(ctx context.Context, name string, g goal, seen *bool) (said string, again bool, err error) {
	var events <-chan qmp.Event
	// It listens first and looks then, so that nothing happens in between.
	if client, err := launcher.Control(ctx, a.runDir, name); err == nil {
		defer client.Close()
		sub := client.Subscribe(launcher.EventState, launcher.EventEnded, launcher.EventAddresses, launcher.EventReady, "RESUME", "STOP")
		defer sub.Close()
		events = sub.Events()
	}
	for {
		s, err := launcher.Observe(ctx, a.runDir, name)
		if ctx.Err() != nil {
			return "", false, ctx.Err()
		}
		if err != nil && !errors.Is(err, launcher.ErrNotFound) {
			return "", false, err
		}
		s.Name = name // of one that is not there, too
		there := err == nil && !s.State.Rests()
		said, done, err := g.reached(s, there, *seen)
		*seen = *seen || there
		if done || err != nil {
			return said, false, err
		}
		if events == nil || s.State == launcher.StateStarting {
			return "", true, nil
		}
		select {
		case _, ok := <-events:
			if !ok {
				return "", true, nil
			}
		case <-ctx.Done():
			return "", false, ctx.Err()
		}
	}
}

// reached reports whether a guest has come as far as g, and what to say then.
// seen is whether it was there before.
func (g goal) reached(s launcher.Status, there, seen bool) (said string, done bool, err error) {
	switch {
	case g == goalStopped:
		said = "stopped"
		if s.Ended != nil {
			said = s.Ended.String()
		}
		return said, !there, nil
	case !there && seen:
		return "", false, fmt.Errorf("%s: %w: it has ended: vmrun logs %[1]s", s.Name, launcher.ErrState)
	case !there:
		return "", false, nil
	case g == goalRunning:
		return string(s.State), s.State == launcher.StateRunning, nil
	case g == goalReady:
		return "ready", s.Ready, nil
	}
	if addr, ok := s.Address(); ok {
		return addr, true, nil
	}
	return "", false, nil
}

// waited says how far a guest has come that was waited for in vain.
func (a *app) waited(name string, g goal, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := launcher.Observe(ctx, a.runDir, name)
	what := string(s.State)
	switch {
	case errors.Is(err, launcher.ErrNotFound):
		what = "not there: vmrun start " + name
	case err != nil:
		what = err.Error()
	case s.State.Rests():
		what = "not running, it has ended: vmrun start " + name
	case s.Supervisor == 0:
		what += ", without a supervisor: vmrun start " + name + " adopts it"
	case g == goalIP && s.State == launcher.StateRunning:
		what += ", and has used no address so far: vmrun console " + name
	case g == goalReady && s.State == launcher.StateRunning:
		what += ", and not ready: vmrun console " + name
	case s.State == launcher.StateRestarting:
		what = stateWords(s)
	case g == goalStopped:
		what += ": vmrun stop " + name
	case s.Why != "":
		what += ": " + s.Why
	case s.State == launcher.StatePaused:
		what += ": vmrun resume " + name
	}
	return timeoutError{oneLine{fmt.Errorf("%s: timed out after %v: it is %s", name, timeout, what)}}
}
