package configs

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const (
	maxShares = 16 // each takes a process, and a place on the PCI bus
	maxTag    = 36 // struct virtio_fs_config of linux/virtio_fs.h

	maxHostCPU = 8191 // NR_CPUS is 8192 at most
)

// processors resolves what is said of the CPUs beside their number.
func (c *resolver) processors(g *Guest, raw *rawGuest) {
	if raw.Topology != nil && *raw.Topology != (rawTopology{}) {
		g.Topology = c.topology(raw.Topology, g.CPUs)
	}
	for i, text := range raw.CPUAffinity {
		g.CPUAffinity = append(g.CPUAffinity, c.cpuSet(indexKey("cpu_affinity", i), text))
	}
	if n := len(raw.CPUAffinity); n != 0 && n != g.CPUs && !c.isKnown("cpus") {
		c.addf("cpu_affinity", "it has %d texts, and the guest %d CPUs: write one for each", n, g.CPUs)
	}
	if raw.EmulatorAffinity != nil {
		g.EmulatorAffinity = c.cpuSet("emulator_affinity", *raw.EmulatorAffinity)
	}
}

// topology gives what is left out the number that the others leave of cpus, as
// QEMU does: cores before sockets before threads.
func (c *resolver) topology(raw *rawTopology, cpus int) Topology {
	count := func(key string, n *int64) int { return int(c.integer("topology."+key, n, 1, 1, maxCPUs)) }
	t := Topology{Sockets: count("sockets", raw.Sockets), Cores: count("cores", raw.Cores), Threads: count("threads", raw.Threads)}
	switch rest := cpus / (t.Sockets * t.Cores * t.Threads); {
	case raw.Cores == nil:
		t.Cores = max(1, rest)
	case raw.Sockets == nil:
		t.Sockets = max(1, rest)
	case raw.Threads == nil:
		t.Threads = max(1, rest)
	}
	if n := t.Sockets * t.Cores * t.Threads; n != cpus && !c.isKnown("cpus") {
		c.addf("topology", "sockets × cores × threads is %d × %d × %d = %d, and cpus is %d: make the two agree",
			t.Sockets, t.Cores, t.Threads, n, cpus)
	}
	return t
}

// CPUSet is a set of the host's CPUs as the kernel writes it: "0-3,8" (cpuset(7),
// list format).
type CPUSet string

// CPUs are those of the set, in order. Of a text that is no set it has none.
func (s CPUSet) CPUs() []int {
	list, _ := parseCPUs(string(s))
	return list
}

func (c *resolver) cpuSet(key, text string) CPUSet {
	list, err := parseCPUs(text)
	if err != nil {
		c.addf(key, "%v", err)
		return ""
	}
	return formatCPUs(list)
}

func parseCPUs(text string) ([]int, error) {
	var list []int
	for _, part := range strings.Split(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		low, err := strconv.ParseUint(from, 10, 16)
		high, err2 := strconv.ParseUint(to, 10, 16)
		switch {
		case err != nil || err2 != nil || low > high:
			return nil, fmt.Errorf(`%s is no set of CPUs: write numbers and ranges, as "2" or "0-3,8"`, quote(text))
		case high > maxHostCPU:
			return nil, fmt.Errorf("%s: no host has a CPU %d", quote(text), high)
		}
		for n := low; n <= high; n++ {
			list = append(list, int(n))
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// formatCPUs writes a sorted list in its shortest form.
func formatCPUs(list []int) CPUSet {
	var parts []string
	for i := 0; i < len(list); {
		last := i
		for last+1 < len(list) && list[last+1] == list[last]+1 {
			last++
		}
		part := strconv.Itoa(list[i])
		if last > i {
			part += "-" + strconv.Itoa(list[last])
		}
		parts = append(parts, part)
		i = last + 1
	}
	return CPUSet(strings.Join(parts, ","))
}

// memoryDevices resolves what the guest's memory is made of, and whether it is
// given back.
func (c *resolver) memoryDevices(g *Guest, raw *rawGuest) {
	g.Hugepages = c.hugepages(raw.Hugepages)
	g.Balloon = g.Hugepages == 0
	if raw.Balloon != nil {
		g.Balloon = *raw.Balloon
	}
	switch {
	case g.Hugepages == 0:
	case g.Memory%g.Hugepages != 0 && !c.isKnown("memory"):
		c.addf("memory", "%s is not a multiple of hugepages, %s: use %s", g.Memory, g.Hugepages, (g.Memory/g.Hugepages+1)*g.Hugepages)
	case g.Balloon:
		c.addf("balloon", "huge pages are the guest's for as long as it lives, so a balloon gives none back: remove balloon, or hugepages")
	}
}

// hugepages takes a boolean or one of the sizes that processors have.
func (c *resolver) hugepages(v any) Size {
	switch v := v.(type) {
	case nil:
		return 0
	case bool:
		if v {
			return hugepages[0]
		}
		return 0
	case string:
		if size, err := ParseSize(v); err == nil && slices.Contains(hugepages, size) {
			return size
		}
		c.addf("hugepages", "%s is no size of huge pages: use true, or %s", quote(v), list(sizeWords(hugepages), "or"))
		return 0
	default:
		c.addf("hugepages", "want true, false or a size of huge pages, not %s: use true, or %s", describe(v), list(sizeWords(hugepages), "or"))
		return 0
	}
}

// share resolves one [[share]].
func (c *resolver) share(key string, raw *rawShare) Share {
	s := Share{Path: c.path(key+".path", raw.Path), Readonly: isTrue(raw.Readonly)}
	if raw.Path == nil {
		c.addf(key+".path", `missing: add the directory, as path = "src"`)
	}
	switch tag := raw.Tag; {
	case tag == nil:
		c.addf(key+".tag", `missing: add what the guest mounts it by, as tag = "src"`)
	case *tag == "":
		c.addf(key+".tag", `empty: write what the guest mounts it by, as tag = "src"`)
	case len(*tag) > maxTag:
		c.addf(key+".tag", "%s has %d bytes: use at most %d", quote(*tag), len(*tag), maxTag)
	case !isWord(*tag, "._-/"):
		c.addf(key+".tag", `%s is not a tag: use letters, digits, ".", "_", "-" and "/", with a letter or digit first`, quote(*tag))
	default:
		s.Tag = *tag
	}
	return s
}

// sharesTogether checks the shares of one guest against each other.
func (c *resolver) sharesTogether(shares []Share) {
	if len(shares) > maxShares {
		c.addf(indexKey("share", maxShares), "a guest can have %d shares: put the directories into one", maxShares)
	}
	for i, s := range shares {
		if first := slices.IndexFunc(shares, func(other Share) bool { return other.Tag == s.Tag }); s.Tag != "" && first < i {
			c.addf(indexKey("share", i)+".tag", "%s is share[%d]'s already: give each its own", quote(s.Tag), first)
		}
	}
}

func (c *resolver) watchdog(raw *rawWatchdog) Watchdog {
	if raw == nil {
		return Watchdog{}
	}
	return Watchdog{Action: oneOf(c, "watchdog.action", "a watchdog's action", raw.Action, WatchdogReset, watchdogActions)}
}
