package main

import (
	"context"
	"time"
)

// life is what a guest's start and its end take, one after the other.
var life = []work{
	{"start to running", "ms", func(_ context.Context, c *contender) (float64, error) {
		return timed(func() error { return c.start(c.guests[0]) })
	}},
	{"kill to gone", "ms", func(_ context.Context, c *contender) (float64, error) {
		return timed(func() error { return c.end(c.guests[0]) })
	}},
}

// timed returns the milliseconds that fn took.
func timed(fn func() error) (float64, error) {
	start := time.Now()
	err := fn()
	return float64(time.Since(start)) / float64(time.Millisecond), err
}
