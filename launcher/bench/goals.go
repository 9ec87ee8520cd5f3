package main

import (
	"fmt"
	"strings"
)

// goal is what vmrun wants to be, and how far it is. A figure that was not taken is
// not there.
type goal struct {
	text  string
	limit float64
	least bool // the limit is the least, not the most
	is    func(m medians) float64
}

// medians are a report's; of what was not measured, NaN comes out of 0/0.
type medians func(name, column string) float64

var allGoals = []goal{
	{"start to running, to the script's", 1.10, false, func(m medians) float64 {
		return m("start to running", "vmrun") / m("start to running", "by hand")
	}},
	{"start to running, to libvirt's", 0.20, false, func(m medians) float64 {
		return m("start to running", "vmrun") / m("start to running", "libvirt")
	}},
	{"the 50th guest's start, to the first's", 1.10, false, func(m medians) float64 {
		return m(each(fleetSize).name, "vmrun") / m(each(1).name, "vmrun")
	}},
	{"50 guests, to the script's", 1.15, false, func(m medians) float64 {
		return m(total(fleetSize).name, "vmrun") / m(total(fleetSize).name, "by hand")
	}},
	{"private memory beyond QEMU, kB a guest", 3000, false, func(m medians) float64 { return m(private(10).name, "vmrun") }},
	{"private memory beyond QEMU of 10 guests, to libvirt's", 1, false, func(m medians) float64 {
		return m(private(10).name, "vmrun") / m(private(10).name, "libvirt")
	}},
	{"list of 100 guests, ms", 15, false, func(m medians) float64 { return m("list of 100 guests", "vmrun") }},
	{"list of 100 guests, to libvirt's", 0.50, false, func(m medians) float64 {
		return m("list of 100 guests", "vmrun") / m("list of 100 guests", "libvirt")
	}},
	{"QEMU's death to cleaned up, ms", 20, false, func(m medians) float64 { return m(death.name, "vmrun") }},
	{"wake-ups of a supervisor in 10 s", 0, false, func(m medians) float64 { return m(wakeups.name, "vmrun") }},
	{"TCP guest to outside, to the script's", 0.98, true, func(m medians) float64 {
		return m("TCP guest to outside", "vmrun") / m("TCP guest to outside", "by hand")
	}},
	{"TCP outside to guest, to the script's", 0.98, true, func(m medians) float64 {
		return m("TCP outside to guest", "vmrun") / m("TCP outside to guest", "by hand")
	}},
	{"TCP guest to guest, to the script's", 0.98, true, func(m medians) float64 {
		return m("TCP guest to guest", "vmrun") / m("TCP guest to guest", "by hand")
	}},
	{"frames read from a tap, to a raw child's", 0.98, true, func(m medians) float64 {
		return m("frames read from a tap", "netsetup") / m("frames read from a tap", "raw netlink")
	}},
	{"children created, opened and deleted, to raw netlink's", 1.30, false, func(m medians) float64 {
		sum := func(column string) (ms float64) {
			for _, what := range []string{"children created", "taps opened", "children deleted"} {
				ms += m(fmt.Sprintf("%d %s", manyChildren, what), column)
			}
			return ms
		}
		return sum("netsetup") / sum("raw netlink")
	}},
}

func (r *report) goals() string {
	var text strings.Builder
	text.WriteString("| goal | limit | is | |\n|---|---|---|---|\n")
	for _, g := range allGoals {
		complete := true
		is := g.is(func(name, column string) float64 {
			s, ok := r.find(name).Figures[column]
			complete = complete && ok
			return s.Median
		})
		limit, value, verdict := "at most "+digits(g.limit), "not measured", ""
		if g.least {
			limit = "at least " + digits(g.limit)
		}
		if complete {
			value, verdict = digits(is), "reached"
			if g.least && is < g.limit || !g.least && is > g.limit {
				verdict = "**not reached**"
			}
		}
		fmt.Fprintf(&text, "| %s | %s | %s | %s |\n", g.text, limit, value, verdict)
	}
	return text.String()
}
