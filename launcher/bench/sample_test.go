package main

import (
	"encoding/xml"
	"math/rand/v2"
	"os"
	"path/filepath"
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

func sampleReport() *report {
	f := newFigures()
	start, list := work{name: "start to running", unit: "ms"}, work{name: "list of 100 guests", unit: "ms"}
	for _, figure := range []float64{90, 110, 100} {
		f.add(start, &contender{name: "vmrun"}, figure)
		f.add(start, &contender{name: "by hand"}, 2*figure)
		f.add(start, &contender{name: "libvirt"}, 5*figure)
		f.add(list, &contender{name: "vmrun"}, figure/10)
		f.add(list, &contender{name: "libvirt"}, figure/5)
	}
	return &report{Date: "2026-01-02", Cases: f.entries()}
}

func TestTable(t *testing.T) {
	want := `| With guests | | by hand | libvirt | vmrun | ratio (95 %) | to libvirt |
|---|---|---|---|---|---|---|
| start to running | ms | **200** (190 to 210) | **500** (475 to 525) | **100** (95.0 to 105) | 0.50 (0.50 to 0.50) | 0.20 |
| list of 100 guests | ms | – | **20.0** (19.0 to 21.0) | **10.0** (9.50 to 10.5) | 0.50 (0.50 to 0.50) | 0.50 |

`
	if diff := cmp.Diff(want, sampleReport().table()); diff != "" {
		t.Error(diff)
	}
}

func TestGoals(t *testing.T) {
	got := sampleReport().goals()
	for _, want := range []string{
		"| start to running, to the script's | at most 1.10 | 0.50 | reached |\n",
		"| list of 100 guests, ms | at most 15.0 | 10.0 | reached |\n",
		"| wake-ups of a supervisor in 10 s | at most 0.00 | not measured |  |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestMoved(t *testing.T) {
	now, kept := sampleReport(), sampleReport()
	if moved, compared := now.moved(kept); len(moved) > 0 || compared != 2 {
		t.Errorf("%q, %d compared, of the same report", moved, compared)
	}
	for _, change := range []float64{1.3, 0.7} {
		kept := sampleReport()
		s := kept.Cases[1].Figures["vmrun"]
		s.Ratio *= change
		kept.Cases[1].Figures["vmrun"] = s
		if moved, _ := now.moved(kept); len(moved) != 1 || !strings.HasPrefix(moved[0], "list of 100 guests: vmrun is 0.50 of ") {
			t.Errorf("%q", moved)
		}
	}
}

// TestKeep reads what was kept, and that its page and pictures are whole.
func TestKeep(t *testing.T) {
	dir := t.TempDir()
	r := sampleReport()
	if err := r.keep(dir); err != nil {
		t.Fatal(err)
	}
	again, err := readReport(filepath.Join(dir, "figures.json"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r.table(), again.table()); diff != "" {
		t.Error(diff)
	}
	for _, c := range chartList {
		text, err := os.ReadFile(filepath.Join(dir, c.file))
		if err != nil {
			t.Fatal(err)
		}
		if err := xml.Unmarshal(text, new(struct{})); err != nil {
			t.Errorf("%s: %v", c.file, err)
		}
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
