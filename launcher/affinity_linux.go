package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
)

// setAffinity keeps a thread, 0 for the calling one, to CPUs of the host
// (sched_setaffinity(2)); "" leaves it as it is.
func setAffinity(thread int, cpus configs.CPUSet) error {
	if cpus == "" {
		return nil
	}
	var set unix.CPUSet
	for _, n := range cpus.CPUs() {
		if n >= 8*len(set)*8 {
			return fmt.Errorf("CPU %d is beyond what vmrun can name", n)
		}
		set.Set(n)
	}
	err := unix.SchedSetaffinity(thread, &set)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("none of the CPUs %s is for this process to use, by its cgroup (cpuset.cpus) for example", cpus)
	}
	return err
}

// pinCPUs keeps the threads of the guest's CPUs to the CPUs of the spec. It does so
// as QEMU's user, who may; a capability would be good for all processes of the
// host.
func (l *life) pinCPUs(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var cpus []struct {
		Index  int `json:"cpu-index"`
		Thread int `json:"thread-id"` // in QEMU's own namespace
	}
	if err := l.monitor().Execute(ctx, "query-cpus-fast", nil, &cpus); err != nil {
		return err
	}
	threads, err := threadsOf(l.qemu.id.PID)
	if err != nil {
		return err
	}
	return netsetup.OnThread(func() error {
		if l.guest().Confine.User {
			if err := setIDs(l.plan.UID, nil); err != nil {
				return err
			}
		}
		for _, cpu := range cpus {
			thread, ok := threads[cpu.Thread]
			if !ok || cpu.Index >= len(l.guest().CPUAffinity) {
				return fmt.Errorf("QEMU has no thread for CPU %d", cpu.Index)
			}
			if err := setAffinity(thread, l.guest().CPUAffinity[cpu.Index]); err != nil {
				return fmt.Errorf("CPU %d: %w", cpu.Index, err)
			}
		}
		return nil
	})
}

// threadsOf are a process's threads, by their numbers in its own namespace
// (proc_pid_status(5), NSpid).
func threadsOf(pid int) (map[int]int, error) {
	dir := procDir(pid).path("task")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	threads := map[int]int{}
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		status, err := procDir(id).fields("status")
		if err != nil {
			continue // it has ended
		}
		numbers := strings.Fields(status["NSpid"])
		if len(numbers) == 0 {
			continue
		}
		if own, err := strconv.Atoi(numbers[len(numbers)-1]); err == nil {
			threads[own] = id
		}
	}
	return threads, nil
}
