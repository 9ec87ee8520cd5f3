package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is what is kept of a run.
type report struct {
	Date     string  `json:"date"`
	Machine  string  `json:"machine"`
	Versions string  `json:"versions"`
	Plan     string  `json:"plan"`
	Load     string  `json:"load"`
	Cases    []entry `json:"cases"`
}

type entry struct {
	Name    string             `json:"name"`
	Unit    string             `json:"unit"`
	Figures map[string]summary `json:"figures"` // by contender
}

// summary is of a sample. The ratio is that of its median to the reference's, with
// the interval in which it lies with 95 % confidence.
type summary struct {
	Median, First, Third float64 // quartiles
	N                    int
	Ratio, Low, High     float64 `json:",omitempty"`
}

// references are what ratios are taken to, the first that a case has.
var references = []string{"by hand", "raw netlink", "libvirt"}

func (f *figures) entries() (list []entry) {
	for _, w := range f.works {
		e := entry{w.name, w.unit, map[string]summary{}}
		samples := f.samples[w.name]
		var base sample
		for _, name := range references {
			if base = samples[name]; base != nil {
				break
			}
		}
		for name, s := range samples {
			sum := summary{Median: s.quantile(0.5), First: s.quantile(0.25), Third: s.quantile(0.75), N: len(s)}
			if base != nil && base.quantile(0.5) != 0 {
				sum.Ratio = ratio(s, base)
				sum.Low, sum.High = interval(s, base)
			}
			e.Figures[name] = sum
		}
		list = append(list, e)
	}
	return list
}

// columns are the contenders, in the order of the tables.
var columns = []string{"QEMU alone", "by hand", "control", "libvirt", "vmrun", "raw netlink", "netsetup"}

// ours are vmrun's columns.
var ours = []string{"vmrun", "netsetup"}

func (r *report) has(column string) bool {
	return slices.ContainsFunc(r.Cases, func(e entry) bool { _, ok := e.Figures[column]; return ok })
}

// table is the report in Markdown: a row for each case, without the starts of each
// guest of a fleet but the first and the last.
func (r *report) table() string {
	var text strings.Builder
	for _, part := range []struct {
		title   string
		columns []string
	}{
		{"With guests", []string{"QEMU alone", "by hand", "control", "libvirt", "vmrun"}},
		{"Without guests", []string{"raw netlink", "netsetup"}},
	} {
		columns := slices.DeleteFunc(part.columns, func(c string) bool { return !r.has(c) })
		if len(columns) == 0 {
			continue
		}
		fmt.Fprintf(&text, "| %s | |", part.title)
		for _, c := range columns {
			fmt.Fprintf(&text, " %s |", c)
		}
		text.WriteString(" ratio (95 %) |")
		withLibvirt := slices.Contains(columns, "libvirt")
		if withLibvirt {
			text.WriteString(" to libvirt |")
		}
		text.WriteString("\n|---|---|" + strings.Repeat("---|", len(columns)+1))
		if withLibvirt {
			text.WriteString("---|")
		}
		text.WriteString("\n")
		for _, e := range r.Cases {
			if !e.of(columns) || e.hidden() {
				continue
			}
			fmt.Fprintf(&text, "| %s | %s |", e.Name, e.Unit)
			for _, c := range columns {
				text.WriteString(" " + e.cell(c) + " |")
			}
			text.WriteString(" " + e.ratio() + " |")
			if withLibvirt {
				text.WriteString(" " + e.toLibvirt() + " |")
			}
			text.WriteString("\n")
		}
		text.WriteString("\n")
	}
	return text.String()
}

func (e entry) of(columns []string) bool {
	return slices.ContainsFunc(columns, func(c string) bool { _, ok := e.Figures[c]; return ok })
}

// hidden are the starts of a fleet's guests that are in the chart only.
func (e entry) hidden() bool {
	var n int
	_, err := fmt.Sscanf(e.Name, "start of guest %d", &n)
	return err == nil && !isStage(n)
}

// cell is a median with its quartiles, in three digits.
func (e entry) cell(column string) string {
	s, ok := e.Figures[column]
	if !ok {
		return "–"
	}
	return fmt.Sprintf("**%s** (%s to %s)", digits(s.Median), digits(s.First), digits(s.Third))
}

func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (e entry) ratio() string {
	for _, name := range ours {
		if s, ok := e.Figures[name]; ok && s.Ratio != 0 {
			return fmt.Sprintf("%.2f (%.2f to %.2f)", s.Ratio, s.Low, s.High)
		}
	}
	return "–"
}

func (e entry) toLibvirt() string {
	a, b := e.Figures["vmrun"], e.Figures["libvirt"]
	if a.N == 0 || b.N == 0 || b.Median == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", a.Median/b.Median)
}

func (r *report) find(name string) entry {
	i := slices.IndexFunc(r.Cases, func(e entry) bool { return e.Name == name })
	if i < 0 {
		return entry{}
	}
	return r.Cases[i]
}

// moved tells which of our ratios differ from those of an earlier report by more
// than a fifth. Ratios, not times: the machine may be another.
func (r *report) moved(kept *report) (list []string, compared int) {
	for _, e := range r.Cases {
		old := kept.find(e.Name)
		for _, name := range ours {
			now, then := e.Figures[name].Ratio, old.Figures[name].Ratio
			if now == 0 || then == 0 {
				continue
			}
			compared++
			if change := now / then; change > 1.2 || change < 1/1.2 {
				list = append(list, fmt.Sprintf("%s: %s is %.2f of its reference, and was %.2f", e.Name, name, now, then))
			}
		}
	}
	return list, compared
}

func readReport(file string) (*report, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &report{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// keep writes what the documents show: the figures, the page with the tables, and
// the charts.
func (r *report) keep(dir string) error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	files := r.charts()
	files["figures.json"] = string(text) + "\n"
	files["RESULTS.md"] = r.page()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *report) page() string {
	var text strings.Builder
	fmt.Fprintf(&text, "# Measured\n\nWritten by `make bench` on %s; what is measured, and how, is told in doc.go beside this.\n\n", r.Date)
	fmt.Fprintf(&text, "- %s\n- %s\n- %s\n- load average %s\n\n", r.Machine, r.Versions, r.Plan, r.Load)
	text.WriteString("Medians, with the quartiles in brackets. The ratio is vmrun's to the script's (by hand) or, where no\nscript does it, to libvirt's; below that netsetup's to raw netlink's. A dash: it does not do that.\n\n")
	text.WriteString(r.table())
	text.WriteString("## Goals\n\n" + r.goals())
	for _, c := range chartList {
		fmt.Fprintf(&text, "\n![%s](%s)\n", c.title, c.file)
	}
	return text.String()
}

func machine() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	model := "unknown CPU"
	for _, line := range strings.Split(string(text), "\n") {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%d CPUs (%s), %s, accelerator tcg (no KVM), no vhost", runtime.NumCPU(), model, said("uname", "-sr"))
}

func versions() string {
	return strings.Join([]string{said(qemu, "--version"), "libvirt " + cmp.Or(said("virsh", "--version"), "absent"), runtime.Version()}, ", ")
}

// said is the first line that a program prints.
func said(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

// load is the load average of the last minute (proc_loadavg(5)).
func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	average, _, _ := strings.Cut(string(text), " ")
	return average
}

var began = time.Now()

// tell says on standard error how far things are.
func tell(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%4.0f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}
