package main

import (
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

func TestRows(t *testing.T) {
	w := work{name: "TCP", unit: "Mbit/s"}
	contenders := []*contender{{name: "vmrun"}, {name: "by hand"}}
	got := rows(w, contenders, map[string]sample{"TCPvmrun": {90, 110, 100}, "TCPby hand": {100, 100, 200}})
	want := "TCP                         Mbit/s vmrun        100.0     95.0    105.0  1.000 (0.700 to 1.000)\n" +
		"TCP                         Mbit/s by hand      100.0    100.0    150.0\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
