package launcher

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vmrun/configs"
)

// What QEMU needs beside the guest's memory, for limits.memory = "auto". A limit
// that is too wide costs nothing, one that is too tight the guest, so these are
// well above what was measured with QEMU 7.2, emulating, at work on all of the
// guest's memory: 90 MiB with a kernel of 14 MiB and an initrd of 20 MiB, of
// which 50 MiB were translated code, 7 MiB for each further CPU, and 1/500 of the
// memory for page tables.
const (
	qemuMemory      = 64 << 20 // itself, its devices and threads
	cpuMemory       = 16 << 20 // of each CPU: what an emulated one keeps of its page tables
	companionMemory = 32 << 20 // of an swtpm, which takes 5 MiB, or a virtiofsd, which keeps something of each file that the guest knows
	perPageTables   = 64       // one byte for so many of the guest's: QEMU's page tables and KVM's
	codeMemory      = 1 << 30  // translated code, at most (tcg/region.c, DEFAULT_CODE_GEN_BUFFER_SIZE)
)

// autoMemory is the memory that a guest's QEMU may need. QEMU holds the files that
// it boots the guest from, of boot bytes, for the guest's next reset.
func autoMemory(g *configs.Guest, accel configs.Accel, boot configs.Size) configs.Size {
	const unit = 1 << 20
	if g.TPM {
		boot += companionMemory
	}
	boot += companionMemory * configs.Size(len(g.Shares))
	n := g.Memory + g.Memory/perPageTables + qemuMemory + configs.Size(g.CPUs)*cpuMemory + boot
	if accel != configs.AccelKVM {
		n += codeMemory
	}
	return (n + unit - 1) / unit * unit
}

// limit is one file of a cgroup (Documentation/admin-guide/cgroup-v2.rst).
type limit struct{ controller, file, value string }

// cpuPeriod is that of cpu.max, in microseconds, as the kernel has it by itself.
const cpuPeriod = 100_000

func limitFiles(l configs.Limits) []limit {
	var list []limit
	if l.Memory != 0 {
		list = append(list, limit{"memory", "memory.max", strconv.FormatUint(uint64(l.Memory), 10)},
			limit{"memory", "memory.oom.group", "1"})
	}
	if l.CPUs != 0 {
		list = append(list, limit{"cpu", "cpu.max", fmt.Sprintf("%d %d", int(l.CPUs*cpuPeriod), cpuPeriod)})
	}
	if l.Tasks != 0 {
		list = append(list, limit{"pids", "pids.max", strconv.Itoa(l.Tasks)})
	}
	return list
}

// limitWords are limits as the owner wrote them.
func limitWords(l configs.Limits) string {
	var words []string
	if l.Memory != 0 {
		words = append(words, "memory "+l.Memory.String())
	}
	if l.CPUs != 0 {
		words = append(words, strconv.FormatFloat(l.CPUs, 'f', -1, 64)+" CPUs")
	}
	if l.Tasks != 0 {
		words = append(words, strconv.Itoa(l.Tasks)+" tasks")
	}
	return strings.Join(words, ", ")
}

// delegation is a cgroup below which vmrun may make others.
type delegation struct {
	dir         string   // absolute
	leaf        bool     // this process is in the child of it that is for supervisors
	controllers []string // that its children can have
	err         error    // why there is none
}

// planLimits works out which of the spec's limits will hold, and says what
// becomes of the others.
func (p *Plan) planLimits(facts Facts) {
	want := p.Guest.Limits
	if want == (configs.Limits{}) {
		return
	}
	if want.MemoryAuto {
		want.Memory, want.MemoryAuto = autoMemory(p.Guest, p.Accel, facts.BootSize), false
	}
	p.cgroup = facts.Cgroup
	if err := p.cgroup.err; err != nil {
		p.Unlimited = fmt.Sprintf("limits: nothing limits QEMU: %v: %s", err, giveCgroup)
	} else {
		p.Limits = want
		var lacking []string
		for _, c := range []struct {
			name string
			drop func(*configs.Limits)
		}{
			{"memory", func(l *configs.Limits) { l.Memory = 0 }},
			{"cpu", func(l *configs.Limits) { l.CPUs = 0 }},
			{"pids", func(l *configs.Limits) { l.Tasks = 0 }},
		} {
			before := p.Limits
			if c.drop(&p.Limits); p.Limits != before && !slices.Contains(p.cgroup.controllers, c.name) {
				lacking = append(lacking, c.name)
				continue
			}
			p.Limits = before
		}
		if lacking != nil {
			p.Unlimited = fmt.Sprintf("limits: not all hold: the cgroup that vmrun was given has no controller %s: %s",
				strings.Join(lacking, ", "), giveCgroup)
		}
	}
	if p.Unlimited != "" {
		p.Warnings = append(p.Warnings, p.Unlimited)
	}
}

// giveCgroup is what to do for limits.
const giveCgroup = "with systemd and cgroup2 use vmrun start, or a unit with Delegate=yes"
