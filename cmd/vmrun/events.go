package main

import (
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) eventsCmd() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "events --follow GUEST",
		Short: "Show a guest's events as they happen: QEMU's and vmrun's own",
		Long: `Show a guest's events as they happen: QEMU's and vmrun's own.

Each is a line: the time, the name, the data as JSON. With --json each is an
object as on the wire. The command ends when the guest has ended for good, and
goes on while it is restarted by its policy.`,
		GroupID:           "look",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !follow {
				a.usage = true
				return errors.New("past events are not kept: add --follow to see those to come")
			}
			name, err := a.guestName(args[0])
			if err != nil {
				return err
			}
			client, err := launcher.Control(cmd.Context(), a.runDir, name)
			if err != nil {
				return err
			}
			defer client.Close()
			events := client.Subscribe()
			defer events.Close()
			for {
				select {
				case <-cmd.Context().Done():
					return nil
				case ev, ok := <-events.Events():
					if !ok {
						return a.lost(cmd.Context(), name)
					}
					if a.json {
						if err := writeJSON(os.Stdout, ev, ""); err != nil {
							return err
						}
						continue
					}
					data, err := json.Marshal(ev.Data)
					if err != nil {
						return err
					}
					at := time.Unix(ev.Timestamp.Seconds, ev.Timestamp.Microseconds*1000)
					say("%s %s %s", at.Format("15:04:05.000"), ev.Event, data)
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the guest ends")
	return a.jsonFlag(cmd)
}
