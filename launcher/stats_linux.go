package launcher

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// stats counts what the guest has used. Nobody counts unless somebody asks.
func (l *life) stats(ctx context.Context) (Stats, error) {
	nics, err := l.nics.stats()
	if err != nil {
		return Stats{}, err
	}
	pid := l.qemu.id.PID
	s := Stats{CPUTime: cpuTime(pid).Seconds(), Memory: resident(pid), NICs: nics, Disks: l.diskStats(ctx)}
	if c := l.snapshot().Cgroup; c != nil {
		s.GroupMemory = readNumber(c.qemu(), "memory.current", "")
	}
	return s, nil
}

// cpuTime is how long the CPUs have worked for a process with all its threads, 0
// when it is gone. The clock counts nanoseconds, /proc/PID/stat ticks of 10 ms.
func cpuTime(pid int) time.Duration {
	const process = 2 // kernel/time/posix-cpu-timers.c, CPUCLOCK_SCHED of a process
	return clockTime(int32(^pid)<<3 | process)
}

// resident is how many bytes of a process are in memory, those of files and of
// shared memory included; 0 when it is gone.
func resident(pid int) uint64 {
	fields := readWords(filepath.Join("/proc", strconv.Itoa(pid)), "statm") // proc_pid_statm(5)
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(fields[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}

// blockStats is what is read of query-blockstats' answer (qapi/block-core.json,
// BlockStats).
type blockStats struct {
	Qdev  string `json:"qdev"`
	Stats struct {
		ReadBytes  uint64 `json:"rd_bytes"`
		Reads      uint64 `json:"rd_operations"`
		WriteBytes uint64 `json:"wr_bytes"`
		Writes     uint64 `json:"wr_operations"`
		Flushes    uint64 `json:"flush_operations"`
	} `json:"stats"`
}

// diskStats asks QEMU, and returns nil when that does not answer.
func (l *life) diskStats(ctx context.Context) []DiskStats {
	list := []DiskStats{}
	if len(l.guest().Disks) == 0 {
		return list
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	mon, err := l.reach(ctx)
	if err != nil {
		return nil
	}
	var answer []blockStats
	if err := mon.Execute(ctx, "query-blockstats", nil, &answer); err != nil {
		return nil
	}
	for i, d := range l.guest().Disks {
		name := fmt.Sprintf("disk%d", i)
		at := slices.IndexFunc(answer, func(b blockStats) bool { return isDrive(b.Qdev, i) })
		if at < 0 {
			continue
		}
		s := answer[at].Stats
		list = append(list, DiskStats{Name: name, Path: d.Path, ReadBytes: s.ReadBytes, Reads: s.Reads, WriteBytes: s.WriteBytes, Writes: s.Writes, Flushes: s.Flushes})
	}
	return list
}

// stats reads the counters of all NICs.
func (m *nics) stats() ([]NICStats, error) {
	list := []NICStats{}
	for _, n := range m.all() {
		s := n.status()
		counters, err := m.life.ns.Counters(n.current())
		if err != nil {
			if cond, lookErr := m.life.ns.Look(n.current()); lookErr != nil || cond.Child {
				return nil, err // where there is no child there is nothing to count
			}
		}
		list = append(list, NICStats{Name: s.Name, Parent: s.Parent, MAC: s.MAC, Mode: s.Mode, Counters: counters, Pinned: s.Dropped})
	}
	slices.SortFunc(list, func(a, b NICStats) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}
