package main

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestQuantile(t *testing.T) {
	tests := []struct {
		name   string
		sample sample
		q      float64
		want   float64
	}{
		{"one figure", sample{7}, 0.75, 7},
		{"the one between", sample{9, 1, 5}, 0.5, 5},
		{"between two", sample{1, 2, 3, 10}, 0.5, 2.5},
		{"quartile", sample{4, 3, 2, 1, 0}, 0.25, 1},
		{"last", sample{1, 3, 2}, 1, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.sample.quantile(tt.q); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestTable(t *testing.T) {
	w := work{name: "TCP", unit: "Mbit/s"}
	vmrun, hand := &contender{name: "vmrun"}, &contender{name: "by hand"}
	f := figures{}
	for _, figure := range []float64{90, 110, 100} {
		f.add(w, vmrun, figure)
		f.add(w, hand, 2*figure)
	}
	_, got, _ := strings.Cut(f.table([]*contender{vmrun, hand}, []work{w}), "95 %\n")
	want := "TCP                         Mbit/s vmrun        100.0     95.0    105.0  0.500, 0.500 to 0.500\n" +
		"TCP                         Mbit/s by hand      200.0    190.0    210.0\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestInterval(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	var a, b sample
	for range 200 {
		load := 100 + 100*random.Float64() // which both bear in a round
		a = append(a, 0.97*load*(1+0.01*random.NormFloat64()))
		b = append(b, load*(1+0.01*random.NormFloat64()))
	}
	low, high := interval(a, b)
	if low > 0.97 || high < 0.97 || high-low > 0.05 {
		t.Errorf("%.3f to %.3f, where the figures were made with a ratio of 0.97", low, high)
	}
}
