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

func (a *app) metricsCmd() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Write figures of all guests for Prometheus, or serve them",
		Long: `Write figures of all guests as OpenMetrics text, or serve it: states, CPU time,
memory, restarts, and the counters of disks and NICs. All guests are asked at once,
and nobody in between. Guests that have ended are there until vmrun cleanup.

--listen serves GET /metrics until Ctrl-C, on a path as a unix socket, or on
HOST:PORT; without HOST on this machine alone.`,
		Example: `  vmrun metrics
  vmrun metrics --listen :9177
  vmrun metrics --listen /run/vmrun-metrics.sock`,
		GroupID: "look",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("listen") {
				return a.serveMetrics(cmd.Context(), listen)
			}
			guests, err := a.scrape(cmd.Context())
			if len(guests) == 0 && err != nil {
				return err
			}
			return errors.Join(writeMetrics(os.Stdout, guests), err)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "", "serve them on this `address`: a path, or [HOST]:PORT")
	return cmd
}

// scraped is a guest with its counters, nil where nobody tells them.
type scraped struct {
	launcher.Status
	stats *launcher.Stats
}

// scrape asks all guests at once, within the 2 s that each has for its answers.
// Those that the caller may not look at are left out, as ps does.
func (a *app) scrape(ctx context.Context) ([]scraped, error) {
	var list []launcher.Status
	var listErr, statsErr error
	var stats []guestStats
	var wg sync.WaitGroup
	wg.Go(func() { list, listErr = launcher.List(ctx, a.runDir) })
	wg.Go(func() { stats, statsErr = a.collectStats(ctx, a.supervisedNames()) })
	wg.Wait()
	guests := make([]scraped, len(list))
	counted := true
	for i, s := range list {
		guests[i].Status = s
		at := slices.IndexFunc(stats, func(g guestStats) bool { return g.Name == s.Name })
		if at >= 0 {
			guests[i].stats = &stats[at].Stats
		}
		counted = counted && (at >= 0 || s.Supervisor == 0 || s.State != launcher.StateRunning && s.State != launcher.StatePaused)
	}
	if counted { // the others have no counters now, and their states say why
		statsErr = nil
	}
	return guests, errors.Join(listErr, statsErr)
}

// family is a set of samples of one name (OpenMetrics 1.0, MetricFamily).
type family struct {
	name, kind, unit, help string
	of                     func(g scraped, add addSample)
}

// addSample adds one with its value, and with names and values of labels in turn.
type addSample func(value string, labels ...string)

// suffixes are what the samples of a family have behind its name.
var suffixes = map[string]string{"counter": "_total", "info": "_info"}

// writeMetrics writes OpenMetrics text. It is written by hand: what it takes is
// little, and a library for it would make vmrun a third larger.
func writeMetrics(w io.Writer, guests []scraped) error {
	var b strings.Builder
	sampleOf := func(f family, guest string) addSample {
		return func(value string, labels ...string) {
			if guest != "" {
				labels = append([]string{"guest", guest}, labels...)
			}
			fmt.Fprintf(&b, "%s%s%s %s\n", f.name, suffixes[f.kind], labelText(labels), value)
		}
	}
	header := func(f family) {
		fmt.Fprintf(&b, "# TYPE %s %s\n", f.name, f.kind)
		if f.unit != "" {
			fmt.Fprintf(&b, "# UNIT %s %s\n", f.name, f.unit)
		}
		fmt.Fprintf(&b, "# HELP %s %s\n", f.name, f.help)
	}
	build := family{name: "vmrun_build", kind: "info", help: "The vmrun that answers."}
	header(build)
	sampleOf(build, "")("1", "version", versionText())
	for _, f := range families {
		header(f)
		for _, g := range guests {
			f.of(g, sampleOf(f, g.Name))
		}
	}
	b.WriteString("# EOF\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// labelEscapes are all that the text knows.
var labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// labelText is a set of labels. What does not print is made visible, as everywhere:
// a guest's QEMU may have worded it.
func labelText(pairs []string) string {
	var words []string
	for pair := range slices.Chunk(pairs, 2) {
		words = append(words, pair[0]+`="`+labelEscapes.Replace(clean(pair[1], "\n"))+`"`)
	}
	return "{" + strings.Join(words, ",") + "}"
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }

func float(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

// unixSeconds is a time as exact as a float is of use for.
func unixSeconds(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64)
}
