package configs

import (
	"strconv"
	"strings"
	"unicode"
)

const (
	maxGroup = 32 // bytes, groupadd(8)

	// The kernel takes no quota below 1 ms in a period, which is 100 ms by
	// default, and knows 8192 processors at most (kernel/sched/core.c,
	// cpu.max; arch/x86/Kconfig, NR_CPUS).
	minCPULimit = 0.01
	maxCPULimit = 8192

	minTasks = 64      // QEMU's threads for disks come to as many
	maxTasks = 4194304 // PID_MAX_LIMIT of linux/threads.h
)

// group checks the name of a host's group by the rule of Debian's groupadd(8).
// Whether there is such a group is the launcher's business.
func (c *resolver) group(text *string) string {
	if text == nil {
		return ""
	}
	name := *text
	switch {
	case name == "":
		c.addf("group", "empty: leave the key out, and the guest is root's alone")
	case len(name) > maxGroup:
		c.addf("group", "%s is longer than the %d bytes of a group's name", quote(name), maxGroup)
	case strings.Trim(name, "0123456789") == "":
		c.addf("group", `%s is a number: write the group's name ("getent group %s" shows it)`, quote(name), name)
	case strings.Contains("-+~", name[:1]) || strings.ContainsFunc(name, notInGroup):
		c.addf("group", `%s is not a group's name, which has no ':', ',', '/', blank or control character, and no '-', '+' or '~' first: getent group lists them`, quote(name))
	}
	return name
}

func notInGroup(r rune) bool {
	return strings.ContainsRune(":,/", r) || unicode.IsSpace(r) || unicode.IsControl(r)
}

func (c *resolver) limits(raw *rawLimits, memory Size) Limits {
	if raw == nil {
		return Limits{}
	}
	l := Limits{CPUs: c.cpuLimit("limits.cpus", raw.CPUs)}
	l.Memory, l.MemoryAuto = c.memoryLimit("limits.memory", raw.Memory, memory)
	if raw.Tasks != nil && *raw.Tasks != 0 {
		l.Tasks = int(c.integer("limits.tasks", raw.Tasks, 0, minTasks, maxTasks))
	}
	return l
}

// memoryLimit takes a size or a word; auto tells that it is left to the
// launcher.
func (c *resolver) memoryLimit(key string, text *sizeText, memory Size) (limit Size, auto bool) {
	switch {
	case text == nil || *text == "none":
		return 0, false
	case *text == "auto":
		return 0, true
	case strings.IndexAny(string(*text), "-0123456789") != 0:
		c.addf(key, `%s is not a limit: write a size, as "3GiB", or "auto" or "none"`, quote(string(*text)))
		return 0, false
	}
	limit = c.size(key, text, memory)
	if limit < memory && !c.isKnown("memory") {
		c.addf(key, `%s is less than the guest's memory, %s, and QEMU needs some beside it: use "auto", or more than %s`, limit, memory, memory)
	}
	return limit, false
}

func (c *resolver) cpuLimit(key string, v any) float64 {
	var n float64
	switch v := v.(type) {
	case nil:
		return 0
	case int64:
		n = float64(v)
	case float64:
		n = v
	case string:
		hint := "leave cpus out for no limit"
		if n, err := strconv.ParseFloat(v, 64); err == nil && n >= minCPULimit && n <= maxCPULimit {
			hint = "write " + strconv.FormatFloat(n, 'f', -1, 64) + " without quotes"
		}
		c.addf(key, "want a number, not %s: %s", describe(v), hint)
		return 0
	default:
		c.addf(key, "want a number, as 2 or 2.5, not %s", describe(v))
		return 0
	}
	if !(n >= minCPULimit && n <= maxCPULimit) { // nor is nan, which TOML has
		c.addf(key, "%v is out of range: use %v to %d, or leave cpus out for no limit", v, minCPULimit, maxCPULimit)
	}
	return n
}

// confine resolves [confine], of which everything is on unless it is set to
// false.
func (c *resolver) confine(raw *rawConfine) Confine {
	if raw == nil {
		raw = &rawConfine{}
	}
	return Confine{
		User:       notFalse(raw.User),
		Seccomp:    notFalse(raw.Seccomp),
		Root:       notFalse(raw.Root),
		Namespaces: notFalse(raw.Namespaces),
		Landlock:   notFalse(raw.Landlock),
		RLimits:    notFalse(raw.RLimits),
	}
}
