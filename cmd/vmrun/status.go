package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

func (a *app) statusCmd() *cobra.Command {
	var security bool
	cmd := &cobra.Command{
		Use:               "status GUEST",
		Short:             "Show everything about one guest",
		GroupID:           "look",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.observe(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if security {
				walls, err := launcher.Security(a.runDir, s.Name)
				switch {
				case err != nil:
					return err
				case a.json:
					return printJSON(walls)
				}
				return printSecurity(os.Stdout, walls)
			}
			if a.json {
				return printJSON(s)
			}
			return printStatus(os.Stdout, s)
		},
	}
	cmd.Flags().BoolVar(&security, "security", false, "show what keeps the guest's QEMU in its place, as the kernel has it; for root")
	return a.jsonFlag(cmd)
}

func printStatus(w io.Writer, s launcher.Status) error {
	t := table(w)
	row := func(key, format string, args ...any) {
		cells(t, key, fmt.Sprintf(format, args...))
	}
	row("name", "%s", s.Name)
	row("state", "%s", stateWords(s))
	row("uuid", "%s", s.UUID)
	row("spec", "%s", s.Spec)
	row("hardware", "%s, %s, %s", plural(s.CPUs, "CPU"), configs.Size(s.Memory), s.Accel)
	if r := s.Restarts; r != nil && r.Count > 0 {
		row("restarts", "%d, the last %s, after: %s", r.Count, r.Last.At.Format(time.RFC3339), r.Last)
	}
	if !s.State.Rests() {
		if s.PID != 0 {
			row("qemu", "pid %d, up %s, since %s", s.PID, age(s.Started), s.Started.Format(time.RFC3339))
		}
		if s.Supervisor != 0 {
			row("supervisor", "pid %d", s.Supervisor)
		} else {
			row("supervisor", "none: vmrun start %s adopts the guest", s.Name)
		}
	}
	for _, c := range s.Companions {
		if c.PID == 0 {
			row(c.Name, "dead: its process has ended: vmrun restart %s (%s)", s.Name, c.Text)
			continue
		}
		row(c.Name, "pid %d, %s", c.PID, c.Text)
	}
	for _, line := range limitLines(s) {
		row(line[0], "%s", line[1])
	}
	for _, n := range s.NICs {
		for _, line := range nicLines(s, n) {
			row(line[0], "%s", line[1])
		}
	}
	end := s.Ended
	if s.State == launcher.StateRestarting {
		end = s.Restarts.Last
	}
	if end != nil {
		for _, line := range end.Log {
			row("qemu said", "%s", line)
		}
	}
	return t.Flush()
}

// stateWords is the state with what there is to say about it.
func stateWords(s launcher.Status) string {
	switch {
	case s.State == launcher.StateSuspended:
		return fmt.Sprintf("%s at %s: vmrun resume %s lets it go on", s.State, s.Ended.At.Format(time.RFC3339), s.Name)
	case s.Ended != nil && !s.Ended.At.IsZero():
		return fmt.Sprintf("%s at %s: %s", s.State, s.Ended.At.Format(time.RFC3339), s.Ended)
	case s.Ended != nil:
		return fmt.Sprintf("%s: %s", s.State, s.Ended)
	case s.State == launcher.StateRestarting:
		return fmt.Sprintf("%s %s, at %s: it ended at %s: %s", s.State, due(s.Restarts.Next),
			s.Restarts.Next.Format(time.RFC3339), s.Restarts.Last.At.Format(time.RFC3339), s.Restarts.Last)
	case s.State == launcher.StateUnresponsive:
		return fmt.Sprintf("%s: vmrun stop --force %s ends it", s.State, s.Name)
	}
	words := string(s.State)
	if s.State == launcher.StateStopping && s.Rung != launcher.RungNone {
		words += fmt.Sprintf(" (%s)", s.Rung)
	}
	if s.Why != "" {
		words += ": " + s.Why
	}
	return words
}
