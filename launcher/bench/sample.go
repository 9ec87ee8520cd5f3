package main

import (
	"slices"
	"time"
)

// sample is a list of durations in milliseconds.
type sample struct{ ms []float64 }

func (s *sample) add(d time.Duration) { s.ms = append(s.ms, float64(d)/float64(time.Millisecond)) }

// quantile interpolates between the two nearest values.
func (s *sample) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s.ms))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

func timed(fn func() error) (time.Duration, error) {
	start := time.Now()
	err := fn()
	return time.Since(start), err
}
