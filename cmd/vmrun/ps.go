package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) psCmd() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "ps",
		Short:   "List guests",
		GroupID: "look",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			guests := []launcher.Status{}
			list, err := launcher.List(cmd.Context(), a.runDir)
			for _, s := range list {
				if all || s.State != launcher.StateEnded {
					guests = append(guests, s)
				}
			}
			if a.json {
				return errors.Join(printJSON(guests), err)
			}
			return errors.Join(printGuests(guests), err)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list guests that have ended too")
	return a.jsonFlag(cmd)
}

func printGuests(guests []launcher.Status) error {
	t := table(os.Stdout)
	fmt.Fprintln(t, "NAME\tSTATE\tPID\tUP\tNICS\tADDRESSES")
	for _, s := range guests {
		pid, up, addresses := "-", "-", "-"
		if s.State != launcher.StateEnded && s.PID != 0 {
			pid, up, addresses = strconv.Itoa(s.PID), age(s.Started), addressWords(s)
		}
		state := string(s.State)
		if s.Why != "" {
			state += ": " + s.Why
		}
		if s.State == launcher.StateRestarting {
			state += " " + due(s.Restarts.Next)
		}
		cells(t, s.Name, state, pid, up, nicWords(s.NICs), addresses)
	}
	return t.Flush()
}
