package launcher

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
)

// given is a cgroup that systemd has handed over.
var given = delegation{dir: "/sys/fs/cgroup/system.slice/web1.service", controllers: []string{"cpu", "memory", "pids"}}

func planOf(t *testing.T, facts Facts, lines ...string) *Plan {
	t.Helper()
	p, err := NewPlan(parseSpec(t, lines...), facts, PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlanLimits(t *testing.T) {
	none := delegation{err: errors.New("vmrun's cgroup, /x, was not delegated to it")}
	some := delegation{dir: given.dir, controllers: []string{"pids"}}
	for _, tt := range []struct {
		name   string
		cgroup delegation
		spec   []string
		want   []string // FILE=VALUE
		step   string
		warn   string
	}{
		{"none asked for", given, nil, nil, "", ""},
		{"none asked for, and none to be had", none, nil, nil, "", ""},
		{"all", given, []string{"[limits]", `memory = "1536MiB"`, "cpus = 2.5", "tasks = 512"},
			[]string{"memory.max=1610612736", "memory.oom.group=1", "cpu.max=250000 100000", "pids.max=512"},
			"make a cgroup for QEMU, with memory 1536MiB, 2.5 CPUs, 512 tasks at most", ""},
		{"a little CPU time", given, []string{"[limits]", "cpus = 0.01"}, []string{"cpu.max=1000 100000"},
			"make a cgroup for QEMU, with 0.01 CPUs at most", ""},
		{"not delegated", none, []string{"[limits]", `memory = "auto"`}, nil, "",
			"limits: nothing limits QEMU: vmrun's cgroup, /x, was not delegated to it: " + giveCgroup},
		{"delegated in part", some, []string{"[limits]", `memory = "2GiB"`, "cpus = 2", "tasks = 512"}, []string{"pids.max=512"},
			"make a cgroup for QEMU, with 512 tasks at most",
			"limits: not all hold: the cgroup that vmrun was given has no controller memory, cpu: " + giveCgroup},
	} {
		t.Run(tt.name, func(t *testing.T) {
			facts := testFacts()
			facts.Cgroup = tt.cgroup
			p := planOf(t, facts, append([]string{disk}, tt.spec...)...)
			var files []string
			for _, f := range limitFiles(p.Limits) {
				files = append(files, f.file+"="+f.value)
			}
			if diff := cmp.Diff(tt.want, files); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			step, after := "", ""
			for i, s := range p.Steps {
				if s.Name == "cgroup create" {
					step, after = s.Text, p.Steps[i+1].Name
				}
			}
			if step != tt.step || step != "" && after != "qemu start" {
				t.Errorf("step %q before %q, want %q before qemu start", step, after, tt.step)
			}
			if warn := strings.Join(p.Warnings, "\n"); warn != tt.warn || p.Unlimited != tt.warn {
				t.Errorf("warnings %q, unlimited %q; want %q", warn, p.Unlimited, tt.warn)
			}
		})
	}
}

func TestAutoMemory(t *testing.T) {
	facts := testFacts()
	facts.Cgroup, facts.BootSize = given, 34<<20
	for _, tt := range []struct {
		accel  configs.Accel
		memory string
		cpus   int
		want   string
	}{
		{configs.AccelKVM, "1GiB", 1, "1154MiB"},
		{configs.AccelKVM, "64GiB", 16, "66914MiB"},
		{configs.AccelTCG, "1GiB", 1, "2178MiB"},
	} {
		facts.Accel = tt.accel
		p := planOf(t, facts, fmt.Sprintf("memory = %q\ncpus = %d", tt.memory, tt.cpus), disk, "[limits]", `memory = "auto"`)
		if got := p.Limits.Memory.String(); got != tt.want {
			t.Errorf("%s, %s, %d CPUs: %s, want %s", tt.accel, tt.memory, tt.cpus, got, tt.want)
		}
	}
}
