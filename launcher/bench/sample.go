package main

import (
	"fmt"
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

// over is the ratio of each round.
func (s sample) over(other sample) sample {
	var ratios sample
	for i := range min(len(s), len(other)) {
		ratios = append(ratios, s[i]/other[i])
	}
	return ratios
}

// heading stands over rows. A ratio's quartiles are those of the rounds' ratios.
var heading = fmt.Sprintf("\n%-27s %-6s %-8s %9s %8s %8s  %s\n", "case", "unit", "who", "median", "1st qu.", "3rd qu.", "ratio (quartiles)")

// rows are the lines of the table for one work. The last contender is what the
// others are held against.
func rows(w work, contenders []*contender, figures map[string]sample) string {
	var text strings.Builder
	floor := figures[w.name+contenders[len(contenders)-1].name]
	for _, c := range contenders {
		s := figures[w.name+c.name]
		fmt.Fprintf(&text, "%-27s %-6s %-8s %9.1f %8.1f %8.1f", w.name, w.unit, c.name, s.quantile(0.5), s.quantile(0.25), s.quantile(0.75))
		if c != contenders[len(contenders)-1] {
			ratios := s.over(floor)
			fmt.Fprintf(&text, "  %.3f (%.3f to %.3f)", s.quantile(0.5)/floor.quantile(0.5), ratios.quantile(0.25), ratios.quantile(0.75))
		}
		text.WriteString("\n")
	}
	return text.String()
}
