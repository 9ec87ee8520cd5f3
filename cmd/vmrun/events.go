package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"vmrun/launcher"
	"vmrun/qmp"
)

func (a *app) eventsCmd() *cobra.Command {
	var following bool
	cmd := &cobra.Command{
		Use:   "events --follow [GUEST...]",
		Short: "Show events of guests as they happen: QEMU's and vmrun's own",
		Long: `Show events of guests as they happen: QEMU's and vmrun's own. Without a name,
those of all guests, and of those that are started meanwhile.

Each is a line: the time, the name, the data as JSON; of several guests with the
guest's name in front. With --json each is an object as on the wire, with the name
as its "guest".

Of guests that are named the command ends when they have ended for good, and goes
on while one is restarted by its policy. Ctrl-C ends it, with exit status 0.`,
		Example: `  vmrun events --follow web1
  vmrun events --follow --json | jq -c 'select(.event == "VMRUN_STATE")'`,
		GroupID:           "look",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !following {
				a.usage = true
				return errors.New("past events are not kept: add --follow to see those to come")
			}
			names, err := a.guestNames(args)
			if err != nil {
				return err
			}
			p := &eventPrinter{labels: newLabels(os.Stdout, names), json: a.json, one: len(names) == 1}
			if len(names) > 0 {
				return a.eventsOf(cmd.Context(), names, p)
			}
			followAll(cmd.Context(), a.supervisedNames, func(ctx context.Context, name string) {
				client, err := launcher.Control(ctx, a.runDir, name)
				if err != nil {
					return // it is just starting or ending: the next look tells
				}
				defer client.Close()
				p.print(ctx, name, client)
			})
			return nil
		},
	}
	cmd.Flags().BoolVarP(&following, "follow", "f", false, "go on until the guests end")
	return a.jsonFlag(cmd)
}

// supervisedNames are the guests that have events.
func (a *app) supervisedNames() []string { return launcher.Supervised(a.runDir) }

// eventsOf follows guests that were named, all of which have to be there.
func (a *app) eventsOf(ctx context.Context, names []string, p *eventPrinter) error {
	clients := map[string]*qmp.Client{}
	err := each(names, func(name string) error {
		client, err := launcher.Control(ctx, a.runDir, name)
		if err == nil {
			clients[name] = client
		}
		return err
	})
	for _, client := range clients {
		defer client.Close()
	}
	if err != nil {
		return err
	}
	return follow(ctx, names, func(ctx context.Context, name string) error {
		if err := p.print(ctx, name, clients[name]); err != nil || ctx.Err() != nil {
			return err
		}
		return a.lost(ctx, name)
	})
}

// eventPrinter writes events of several guests.
type eventPrinter struct {
	*labels
	json bool
	one  bool // guest alone: its name is left out
	mu   sync.Mutex
}

// print writes the events of a guest until its supervisor goes, or ctx is over.
func (p *eventPrinter) print(ctx context.Context, name string, client *qmp.Client) error {
	events := client.Subscribe()
	defer events.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-events.Events():
			if !ok {
				return nil
			}
			if err := p.event(name, ev); err != nil {
				return err
			}
		}
	}
}

// guestEvent is an event as it is written for programs.
type guestEvent struct {
	Guest string `json:"guest"`
	qmp.Event
}

func (p *eventPrinter) event(name string, ev qmp.Event) error {
	if p.json {
		p.mu.Lock()
		defer p.mu.Unlock()
		return writeJSON(p.out, guestEvent{name, ev}, "")
	}
	at := time.Unix(ev.Timestamp.Seconds, ev.Timestamp.Microseconds*1000)
	line := at.Format("15:04:05.000") + " " + ev.Event
	if len(ev.Data) > 0 {
		data, err := json.Marshal(ev.Data)
		if err != nil {
			return err
		}
		line += " " + string(data)
	}
	if p.one {
		name = ""
	}
	return p.say(name, line)
}
