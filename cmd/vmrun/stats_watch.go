package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmrun/launcher"
)

// minInterval keeps a display from being what the guests are busy with.
const minInterval = 100 * time.Millisecond

// statsOrders are what guests can be sorted by, the most first; those that are the
// same, and with "name" all, by name.
var statsOrders = map[string]func(guestStats) float64{
	"cpu":    func(g guestStats) float64 { return g.rates().CPU },
	"memory": func(g guestStats) float64 { return float64(g.Memory) },
	"read":   func(g guestStats) float64 { return float64(g.rates().Read) },
	"write":  func(g guestStats) float64 { return float64(g.rates().Write) },
	"rx":     func(g guestStats) float64 { return float64(g.rates().Inbound) },
	"tx":     func(g guestStats) float64 { return float64(g.rates().Outbound) },
	"lost":   func(g guestStats) float64 { return float64(g.rates().Lost) },
	"name":   func(guestStats) float64 { return 0 },
}

var statsOrderNames = []string{"cpu", "memory", "read", "write", "rx", "tx", "lost", "name"}

func (g guestStats) rates() launcher.Rates {
	if g.Rates == nil {
		return launcher.Rates{}
	}
	return *g.Rates
}

// statsWatch shows rates for as long as somebody looks on.
type statsWatch struct {
	a        *app
	names    []string // none: all guests
	interval time.Duration
	order    string

	screen *screen
	table  columns
	before map[string]guestStats
	told   bool
}

func newStatsWatch(a *app, names []string, interval time.Duration, order string) *statsWatch {
	return &statsWatch{a: a, names: names, interval: interval, order: order, before: map[string]guestStats{},
		table: columns{widths: []int{minName, 7, 6, 6, 7, 8, 8, 6}, numbers: true}} // as most numbers need
}

func (w *statsWatch) run(ctx context.Context) error {
	var resized <-chan os.Signal
	if !w.a.json {
		w.screen = newScreen(os.Stdout)
	}
	if w.screen != nil {
		defer w.screen.Close()
		resized = w.screen.Resized
	}
	ticker := time.NewTicker(w.interval)
	defer ticker.Stop()
	list, err := w.collect(ctx)
	if len(w.names) > 0 && err != nil || len(list) == 0 && err != nil {
		return err
	}
	for {
		if err := w.show(list); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			list, _ = w.collect(ctx) // a guest that ends now is left out
		case <-resized:
		}
		if ctx.Err() != nil { // what was asked then was not answered
			return nil
		}
	}
}

// collect counts, and compares with the time before.
func (w *statsWatch) collect(ctx context.Context) ([]guestStats, error) {
	names := w.names
	if len(names) == 0 {
		names = w.a.supervisedNames()
	}
	list, err := w.a.collectStats(ctx, names)
	after := map[string]guestStats{}
	for i, g := range list {
		after[g.Name] = g
		if b, ok := w.before[g.Name]; ok {
			r := g.Stats.Since(b.Stats, g.at.Sub(b.at))
			list[i].Rates = &r
		}
	}
	w.before = after
	sortStats(list, w.order)
	return list, err
}

func sortStats(list []guestStats, order string) {
	key := statsOrders[order]
	slices.SortFunc(list, func(a, b guestStats) int {
		return cmp.Or(cmp.Compare(key(b), key(a)), strings.Compare(a.Name, b.Name))
	})
}

var statsHeader = []string{"GUEST", "CPU", "MEMORY", "READ/s", "WRITE/s", "RX/s", "TX/s", "LOST/s"}

// rateRow is a guest in a line.
func rateRow(g guestStats) []string {
	row := []string{g.Name, "-", metric(g.Memory, "B"), "-", "-", "-", "-", "-"}
	if r := g.Rates; r != nil {
		row = []string{g.Name, fmt.Sprintf("%.1f %%", 100*r.CPU), metric(g.Memory, "B"), metric(r.Read, "B"), metric(r.Write, "B"),
			metric(r.Inbound, "bit"), metric(r.Outbound, "bit"), strconv.FormatUint(r.Lost, 10)}
	}
	if g.Disks == nil { // QEMU does not answer
		row[3], row[4] = "?", "?"
	}
	return row
}

func (w *statsWatch) show(list []guestStats) error {
	if w.a.json {
		return writeJSON(os.Stdout, list, "")
	}
	rows := [][]string{statsHeader}
	for _, g := range list {
		rows = append(rows, rateRow(g))
	}
	if w.screen != nil {
		width, _ := w.screen.size()
		return w.screen.Draw(w.table.lines(rows, width))
	}
	return w.tell(rows)
}

// tell appends the rows, each with the time: in a pipe a line stands for itself.
// What has no rates yet is nothing to tell.
func (w *statsWatch) tell(rows [][]string) error {
	now := time.Now().Format(time.TimeOnly)
	for i, line := range w.table.lines(rows, 0) {
		switch {
		case i == 0 && w.told, i > 0 && rows[i][1] == "-":
			continue
		case i == 0:
			w.told, line = true, "TIME      "+line
		default:
			line = now + "  " + line
		}
		if _, err := fmt.Println(line); err != nil {
			return err
		}
	}
	return nil
}
