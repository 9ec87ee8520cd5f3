package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) psCmd() *cobra.Command {
	var all, watch bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List guests",
		Long: `List guests.

With --watch a terminal shows them as they change, until Ctrl-C. A file or a pipe
gets a line, with the time, for each guest and then for each that has changed; with
--json all guests as an array on one line, again with each change.`,
		Example: `  vmrun ps --watch
  vmrun ps --watch --json | jq -r 'map(select(.state == "running")) | length'`,
		GroupID: "look",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return a.watchGuests(cmd.Context(), all)
			}
			guests := []launcher.Status{}
			list, err := launcher.List(cmd.Context(), a.runDir)
			for _, s := range list {
				if all || !s.State.Rests() {
					guests = append(guests, s)
				}
			}
			if a.json {
				return errors.Join(printJSON(guests), err)
			}
			return errors.Join(printGuests(guests), err)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list guests that have ended or are suspended too")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on, and show what changes")
	return a.jsonFlag(cmd)
}

var psHeader = []string{"NAME", "STATE", "PID", "UP", "NICS", "ADDRESSES"}

// Places in it.
const (
	psState = 1
	psUp    = 3
)

// psRow is a guest in a line, with words for its NICs.
func psRow(s launcher.Status, nics func([]launcher.NICStatus) string) []string {
	pid, up, addresses := "-", "-", "-"
	if !s.State.Rests() && s.PID != 0 {
		pid, up, addresses = strconv.Itoa(s.PID), age(s.Started), addressWords(s)
	}
	state := string(s.State)
	if s.Why != "" {
		state += ": " + s.Why
	}
	if s.State == launcher.StateRestarting {
		state += " " + due(s.Restarts.Next)
	}
	return []string{s.Name, state, pid, up, nics(s.NICs), addresses}
}

// psRows are guests below the header.
func psRows(guests []launcher.Status, nics func([]launcher.NICStatus) string) [][]string {
	rows := [][]string{psHeader}
	for _, s := range guests {
		rows = append(rows, psRow(s, nics))
	}
	return rows
}

func printGuests(guests []launcher.Status) error {
	_, err := fmt.Println(strings.Join(new(columns).lines(psRows(guests, nicWords), 0), "\n"))
	return err
}
