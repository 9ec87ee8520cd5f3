package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) statsCmd() *cobra.Command {
	var watch bool
	var interval time.Duration
	var order string
	cmd := &cobra.Command{
		Use:   "stats [GUEST...]",
		Short: "Show what guests use of the host, and what their disks and NICs have moved",
		Long: `Show what guests use of the host, and what their disks and NICs have moved since
they were started. Without a name, those of all guests that run.

CPU TIME is QEMU's, MEMORY what of it is in the host's memory. The other words are
the guest's: RX is what comes to it. DROPPED are frames to the guest that its queue
had no room for, and frames from it that the parent did not take; LIMITED are those
over the NIC's bandwidth; FORGED are those that pin refused, "-" for a NIC that is
not pinned. --json has the exact numbers, and what was forged.

With --watch the rates are shown, anew each --interval, until Ctrl-C: 100 % of CPU
is one CPU of the host's, READ and WRITE are bytes of disks in a second, RX and TX
bits of NICs, and LOST the frames that were dropped or limited. With --json each
line is an array of all guests, with their counters and their "rates".`,
		Example: `  vmrun stats --watch --sort rx
  vmrun stats --json web1 | jq '.[].nics[].rx_dropped'`,
		GroupID:           "look",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, sorts := statsOrders[order]
			switch {
			case !sorts:
				a.usage = true
				return fmt.Errorf("--sort=%s: use one of %s", order, strings.Join(statsOrderNames, ", "))
			case interval < minInterval:
				a.usage = true
				return fmt.Errorf("--interval=%v: the least is %v", interval, minInterval)
			}
			names, err := a.guestNames(args)
			if watch && err == nil {
				return newStatsWatch(a, names, interval, order).run(cmd.Context())
			}
			if len(args) == 0 {
				names, err = a.supervised(cmd.Context())
			}
			list, collectErr := a.collectStats(cmd.Context(), names)
			err = errors.Join(err, collectErr)
			if a.json {
				return errors.Join(printJSON(list), err)
			}
			if len(list) == 0 && err != nil {
				return err
			}
			return errors.Join(printStats(os.Stdout, list), err)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&watch, "watch", "w", false, "go on, and show rates")
	f.DurationVar(&interval, "interval", 2*time.Second, "with --watch, between two looks")
	f.StringVar(&order, "sort", statsOrderNames[0], "with --watch, what the guests are sorted by: "+strings.Join(statsOrderNames, ", "))
	cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(statsOrderNames, cobra.ShellCompDirectiveNoFileComp))
	return a.jsonFlag(cmd)
}

// guestStats are the counters of one guest.
type guestStats struct {
	Name string `json:"name"`
	launcher.Stats
	Rates *launcher.Rates `json:"rates,omitempty"` // nil when there is nothing to compare with

	at time.Time // of the count
}

// supervised are the guests that somebody can be asked about.
func (a *app) supervised(ctx context.Context) ([]string, error) {
	list, err := launcher.List(ctx, a.runDir)
	var names []string
	for _, s := range list {
		switch {
		case s.State == launcher.StateRunning && s.Supervisor == 0:
			warn("%s: it has no supervisor to ask: vmrun start %[1]s adopts it", s.Name)
		case s.State == launcher.StateUnresponsive:
			warn("%s: %s does not answer", s.Name, s.Silent)
		case s.State == launcher.StateRunning || s.State == launcher.StatePaused:
			names = append(names, s.Name)
		}
	}
	return names, err
}

// statsTimeout bounds the wait for one guest's counters: QEMU has a part of it.
const statsTimeout = 2 * time.Second

// collectStats asks all guests at once. Those that do not answer are left out, and
// are in the error.
func (a *app) collectStats(ctx context.Context, names []string) ([]guestStats, error) {
	list := []guestStats{}
	var mu sync.Mutex
	err := follow(ctx, names, func(ctx context.Context, name string) error {
		ctx, cancel := context.WithTimeout(ctx, statsTimeout)
		defer cancel()
		one := guestStats{Name: name}
		if err := a.command(ctx, name, launcher.CommandStats, nil, &one.Stats); err != nil {
			return err
		}
		one.at = time.Now() // others may be waited for
		mu.Lock()
		defer mu.Unlock()
		list = append(list, one)
		return nil
	})
	slices.SortFunc(list, func(a, b guestStats) int { return slices.Index(names, a.Name) - slices.Index(names, b.Name) })
	return list, err
}

// printStats writes a table of the guests, and one each of their disks and NICs.
func printStats(w io.Writer, list []guestStats) error {
	t := table(w)
	fmt.Fprintln(t, "GUEST\tCPU TIME\tMEMORY")
	disks, nics := false, false
	for _, g := range list {
		cells(t, g.Name, cpuWords(g.CPUTime), metric(g.Memory, "B"))
		disks, nics = disks || len(g.Disks) > 0, nics || len(g.NICs) > 0
	}
	if disks {
		fmt.Fprintln(t, "\nGUEST\tDISK\tREAD\tREADS\tWRITTEN\tWRITES\tFLUSHES")
	}
	for _, g := range list {
		for _, d := range g.Disks {
			cells(t, g.Name, d.Name, metric(d.ReadBytes, "B"), d.Reads, metric(d.WriteBytes, "B"), d.Writes, d.Flushes)
		}
	}
	if nics {
		fmt.Fprintln(t, "\nGUEST\tNIC\tRX\tPACKETS\tDROPPED\tLIMITED\tTX\tPACKETS\tDROPPED\tLIMITED\tFORGED")
	}
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

// cpuWords is a CPU time as a person reads it.
func cpuWords(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < time.Minute {
		return d.Round(10 * time.Millisecond).String()
	}
	return span(d)
}
