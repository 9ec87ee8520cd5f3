package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) statsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stats [GUEST...]",
		Short: "Show what the NICs of guests have received and sent",
		Long: `Show what the NICs of guests have received and sent. Without a name, those of
all guests that run.

The words are the guest's: RX is what comes to it. DROPPED are frames to the
guest that its queue had no room for, and frames from it that the parent did
not take; LIMITED are those over the NIC's bandwidth; FORGED are those that pin
refused, "-" for a NIC that is not pinned. --json has the exact numbers, and what
was forged.`,
		Example: `  vmrun stats
  vmrun stats --json web1 | jq '.[].nics[].rx_dropped'`,
		GroupID:           "look",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			list := []guestStats{}
			collect := func(ctx context.Context, name string) error {
				nics := []launcher.NICStats{}
				if err := a.command(ctx, name, launcher.CommandStats, nil, &nics); err != nil {
					return err
				}
				list = append(list, guestStats{name, nics})
				return nil
			}
			names, err := args, error(nil)
			if len(args) == 0 {
				names, err = a.supervised(cmd.Context())
			}
			err = errors.Join(err, a.forEach(cmd.Context(), names, collect))
			if a.json {
				return errors.Join(printJSON(list), err)
			}
			if len(list) == 0 && err != nil {
				return err
			}
			return errors.Join(printStats(os.Stdout, list), err)
		},
	}
	return a.jsonFlag(cmd)
}

// guestStats are the counters of one guest.
type guestStats struct {
	Name string              `json:"name"`
	NICs []launcher.NICStats `json:"nics"`
}

// supervised are the guests that somebody can be asked about.
func (a *app) supervised(ctx context.Context) ([]string, error) {
	list, err := launcher.List(ctx, a.runDir)
	var names []string
	for _, s := range list {
		switch {
		case s.State == launcher.StateRunning && s.Supervisor == 0:
			warn("%s: it has no supervisor to ask: vmrun start %[1]s adopts it", s.Name)
		case s.State == launcher.StateRunning || s.State == launcher.StatePaused:
			names = append(names, s.Name)
		}
	}
	return names, err
}

func printStats(w io.Writer, list []guestStats) error {
	t := table(w)
	fmt.Fprintln(t, "GUEST\tNIC\tRX\tPACKETS\tDROPPED\tLIMITED\tTX\tPACKETS\tDROPPED\tLIMITED\tFORGED")
	for _, g := range list {
		for _, n := range g.NICs {
			forged := "-"
			if p := n.Pinned; p != nil {
				forged = strconv.FormatUint(p.Total(), 10)
			}
			cells(t, g.Name, n.Name,
				metric(n.RxBytes, "B"), n.RxPackets, n.RxDropped, n.RxPoliced,
				metric(n.TxBytes, "B"), n.TxPackets, n.TxDropped, n.TxShaped, forged)
		}
	}
	return t.Flush()
}
