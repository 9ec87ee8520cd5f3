package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// sample is the figures of one work and one contender, in the order taken.
type sample []float64

// quantile interpolates between the two nearest values.
func (s sample) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// ratio is that of two medians.
func ratio(a, b sample) float64 { return a.quantile(0.5) / b.quantile(0.5) }

// interval is where the ratio of two medians lies with 95 % confidence: it is taken
// of 2000 samples that are drawn from these, whole rounds at a time, with
// replacement (Efron, "Bootstrap methods", 1979).
func interval(a, b sample) (low, high float64) {
	random := rand.New(rand.NewPCG(1, 1)) // the same figures have the same interval
	var ratios sample
	for range 2000 {
		drawnA, drawnB := make(sample, len(a)), make(sample, len(a))
		for i := range a {
			round := random.IntN(len(a))
			drawnA[i], drawnB[i] = a[round], b[round]
		}
		ratios = append(ratios, ratio(drawnA, drawnB))
	}
	return ratios.quantile(0.025), ratios.quantile(0.975)
}

// figures are the samples of all works and contenders.
type figures map[string]sample

func (f figures) of(w work, c *contender) sample { return f[w.name+"/"+c.name] }

func (f figures) add(w work, c *contender, figure float64) {
	f[w.name+"/"+c.name] = append(f.of(w, c), figure)
}

// table has a line for each work and contender. Ratios are to the last contender.
func (f figures) table(contenders []*contender, all []work) string {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%-27s %-6s %-8s %9s %8s %8s  %s\n", "case", "unit", "who", "median", "1st qu.", "3rd qu.", "ratio of medians, 95 %")
	last := contenders[len(contenders)-1]
	for _, w := range all {
		for _, c := range contenders {
			s := f.of(w, c)
			fmt.Fprintf(&text, "%-27s %-6s %-8s %9.1f %8.1f %8.1f", w.name, w.unit, c.name, s.quantile(0.5), s.quantile(0.25), s.quantile(0.75))
			if c != last {
				low, high := interval(s, f.of(w, last))
				fmt.Fprintf(&text, "  %.3f, %.3f to %.3f", ratio(s, f.of(w, last)), low, high)
			}
			text.WriteString("\n")
		}
	}
	return text.String()
}
