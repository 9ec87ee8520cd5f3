package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmrun/launcher"
)

func TestLimitLines(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status launcher.Status
		want   [][2]string
	}{
		{"none", launcher.Status{}, nil},
		{"all", launcher.Status{Limits: &launcher.LimitsStatus{
			MemoryMax: 2178 << 20, Memory: 312<<20 + 700<<10, MemoryPeak: 340 << 20, CPUMax: 2.5, CPUTime: 12.34, TasksMax: 512, Tasks: 9,
		}}, [][2]string{{"limits", "memory 313 MiB of 2178 MiB (340 MiB at most so far), 2.5 CPUs (12.3 s used), 9 of 512 tasks"}}},
		{"not all", launcher.Status{Limits: &launcher.LimitsStatus{TasksMax: 512, Tasks: 9}, Unlimited: "limits: not all hold"},
			[][2]string{{"limits", "9 of 512 tasks"}, {"  !", "limits: not all hold"}}},
		{"taken away", launcher.Status{Limits: &launcher.LimitsStatus{Cgroup: "/x/qemu"}},
			[][2]string{{"limits", "none any more: somebody has taken them from /x/qemu"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, limitLines(tt.status)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
