package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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
	n := min(len(a), len(b))
	var ratios sample
	for range 2000 {
		drawnA, drawnB := make(sample, n), make(sample, n)
		for i := range n {
			round := random.IntN(n)
			drawnA[i], drawnB[i] = a[round], b[round]
		}
		ratios = append(ratios, ratio(drawnA, drawnB))
	}
	return ratios.quantile(0.025), ratios.quantile(0.975)
}

// work is something of which each contender has a figure; one without a name is
// done for what comes after it.
type work struct {
	name, unit string
	do         func(context.Context, *lab, *contender) (float64, error)
}

// figures are the samples of all works and contenders.
type figures struct {
	works   []work // in the order in which they came
	samples map[string]map[string]sample
}

func newFigures() *figures { return &figures{samples: map[string]map[string]sample{}} }

func (f *figures) add(w work, c *contender, figure float64) {
	if f.samples[w.name] == nil {
		f.works = append(f.works, w)
		f.samples[w.name] = map[string]sample{}
	}
	f.samples[w.name][c.name] = append(f.samples[w.name][c.name], figure)
}

// repeat has the contenders do all work in turn, n times. A first round warms the
// caches and is not counted. Who has once said errNone is not asked again.
func (l *lab) repeat(ctx context.Context, f *figures, n int, contenders []*contender, all ...work) error {
	type pair struct {
		c *contender
		w int
	}
	cannot := map[pair]bool{}
	for round := range n + 1 {
		for _, c := range contenders {
			for i, w := range all {
				if cannot[pair{c, i}] {
					continue
				}
				figure, err := w.do(ctx, l, c)
				switch err = cmp.Or(ctx.Err(), err); {
				case errors.Is(err, errNone):
					cannot[pair{c, i}] = true
				case err != nil:
					return fmt.Errorf("%s: %s: %w", c.name, w.name, err)
				case round > 0 && w.name != "":
					f.add(w, c, figure)
				}
			}
		}
	}
	for _, w := range all {
		if w.name != "" {
			tell("%s: done", w.name)
		}
	}
	return nil
}
