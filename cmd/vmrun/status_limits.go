package main

import (
	"fmt"
	"strconv"
	"strings"

	"vmrun/launcher"
)

// limitLines are what QEMU takes of the host and may take, as keys with values.
func limitLines(s launcher.Status) (lines [][2]string) {
	if l := s.Limits; l != nil {
		lines = append(lines, [2]string{"limits", limitsText(*l)})
	}
	if s.Unlimited != "" {
		lines = append(lines, [2]string{"  !", s.Unlimited})
	}
	return lines
}

func limitsText(l launcher.LimitsStatus) string {
	var parts []string
	if l.MemoryMax != 0 {
		part := fmt.Sprintf("memory %s of %s", mebibytes(l.Memory), mebibytes(l.MemoryMax))
		if l.MemoryPeak != 0 {
			part += fmt.Sprintf(" (%s at most so far)", mebibytes(l.MemoryPeak))
		}
		parts = append(parts, part)
	}
	if l.CPUMax != 0 {
		parts = append(parts, fmt.Sprintf("%s CPUs (%.1f s used)", strconv.FormatFloat(l.CPUMax, 'f', -1, 64), l.CPUTime))
	}
	if l.TasksMax != 0 {
		parts = append(parts, fmt.Sprintf("%d of %d tasks", l.Tasks, l.TasksMax))
	}
	if parts == nil {
		return "none any more: somebody has taken them from " + l.Cgroup
	}
	return strings.Join(parts, ", ")
}

func mebibytes(n uint64) string { return fmt.Sprintf("%d MiB", (n+1<<19)>>20) }
