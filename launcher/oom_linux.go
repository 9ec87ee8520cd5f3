package launcher

import (
	"fmt"
	"os"
	"path/filepath"

	"vmrun/configs"
)

// kills counts whom the kernel has killed for want of memory.
type kills struct {
	File  string `json:"file,omitempty"` // that counts those in QEMU's memory cgroup
	Group uint64 `json:"group"`          // its oom_kill
	Host  uint64 `json:"host"`           // that of /proc/vmstat, which counts all
}

// The files of a memory cgroup, in cgroup2 and before.
const (
	memoryEvents = "memory.events.local"
	oomControl   = "memory.oom_control"
)

// countKills notes the counts as they are now, for what a process starts.
func countKills(pid int) *kills {
	k := &kills{File: killsFile(pid), Host: hostKills()}
	if k.File != "" {
		k.Group = readNumber(filepath.Dir(k.File), filepath.Base(k.File), "oom_kill")
	}
	return k
}

func hostKills() uint64 { return readNumber("/proc", "vmstat", "oom_kill") }

// killsFile finds what counts in the memory cgroup of a process. That may be
// above its own, and is none where the root's counts.
func killsFile(pid int) string {
	if dir, err := cgroupOf(pid, "memory"); err == nil {
		return filepath.Join(dir, oomControl)
	}
	dir, err := cgroupOf(pid, "")
	if err != nil {
		return ""
	}
	for ; ; dir = filepath.Dir(dir) {
		file := filepath.Join(dir, memoryEvents)
		if _, err := os.Stat(file); err == nil {
			return file
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
			return "" // above the mount
		}
	}
}

// wantOfMemory says in words that the kernel ended QEMU for want of memory, or
// "". Where only the host's count tells, which others raise too, QEMU has to have
// died by SIGKILL.
func (k *kills) wantOfMemory(e exit) string {
	switch {
	case k == nil, e.known && !e.killed():
		return ""
	case k.File != "":
		if _, err := os.Stat(k.File); err == nil {
			if readNumber(filepath.Dir(k.File), filepath.Base(k.File), "oom_kill") <= k.Group {
				return ""
			}
			return "QEMU was killed for want of memory: " + shortOf(filepath.Dir(k.File))
		}
	}
	if e.known && hostKills() > k.Host {
		return "QEMU was killed, probably for want of memory, for which the kernel has killed since QEMU was started: " + shortHost
	}
	return ""
}

const shortHost = "the host has too little: give it more, or its guests less"

// shortOf says which limit a process in a memory cgroup has met: its own or one
// above.
func shortOf(dir string) string {
	if size := reached(dir); size != 0 && filepath.Base(dir) == qemuGroup {
		return fmt.Sprintf(`it needed more than the %s of limits.memory: raise that, or use "auto"`, size)
	}
	for ; len(dir) > 1; dir = filepath.Dir(dir) {
		if size := reached(dir); size != 0 {
			return fmt.Sprintf("the cgroup %s was to take no more than %s: raise its limit, or give the guest less memory", dir, size)
		}
	}
	return shortHost
}

// reached is the limit of a memory cgroup, if it was met.
func reached(dir string) configs.Size {
	if readNumber(dir, memoryEvents, "oom") == 0 && readNumber(dir, "memory.failcnt", "") == 0 {
		return 0
	}
	return configs.Size(memoryLimit(dir))
}

// memoryLimit is the limit of a memory cgroup itself, in bytes, 0 for none.
func memoryLimit(dir string) uint64 {
	if limit := readNumber(dir, "memory.max", ""); limit != 0 {
		return limit
	}
	// Before cgroup2 no limit is a number too, above all that a host can have.
	if limit := readNumber(dir, "memory.limit_in_bytes", ""); limit < 1<<60 {
		return limit
	}
	return 0
}

// ending is how QEMU ended, as far as the kernel can be asked.
func (l *life) ending() exit {
	e := l.qemu.exit
	e.oom = l.snapshot().Kills.wantOfMemory(e)
	return e
}

// lost is the end of a guest that nobody saw.
func (r *record) lost() *Outcome {
	if r.BootID == bootID() {
		if text := r.Kills.wantOfMemory(exit{}); text != "" {
			return &Outcome{Reason: ReasonOOM, Detail: text}
		}
	}
	return &Outcome{Reason: ReasonUnknown}
}
