package main

import (
	"slices"
	"strconv"

	"vmrun/launcher"
)

// families are all that is told of guests, beside which vmrun tells it.
var families = slices.Concat(guestFamilies, diskFamilies, nicFamilies)

var guestFamilies = []family{
	{"vmrun_guest", "info", "", "What a guest is.", func(g scraped, add addSample) {
		add("1", "uuid", g.UUID, "spec", g.Spec, "accel", string(g.Accel))
	}},
	{"vmrun_guest_state", "stateset", "", "What a guest is doing.", func(g scraped, add addSample) {
		for _, s := range launcher.States {
			value := "0"
			if s == g.State {
				value = "1"
			}
			add(value, "vmrun_guest_state", string(s))
		}
	}},
	{"vmrun_guest_start_time_seconds", "gauge", "seconds", "When a guest was started, since 1970.", func(g scraped, add addSample) {
		if !g.Started.IsZero() {
			add(unixSeconds(g.Started))
		}
	}},
	{"vmrun_guest_restarts", "counter", "", "How often its policy has started a guest again since somebody started it.", func(g scraped, add addSample) {
		n := 0
		if g.Restarts != nil {
			n = g.Restarts.Count
		}
		add(strconv.Itoa(n))
	}},
	{"vmrun_guest_cpus", "gauge", "", "How many CPUs a guest has.", func(g scraped, add addSample) { add(strconv.Itoa(g.CPUs)) }},
	{"vmrun_guest_memory_bytes", "gauge", "bytes", "The memory that a guest has.", func(g scraped, add addSample) { add(count(g.Memory)) }},
	{"vmrun_guest_memory_limit_bytes", "gauge", "bytes", "What its QEMU may take of the host, where that is limited.", func(g scraped, add addSample) {
		if g.Limits != nil && g.Limits.MemoryMax != 0 {
			add(count(g.Limits.MemoryMax))
		}
	}},
	{"vmrun_guest_cpu_seconds", "counter", "seconds", "CPU time of its QEMU, all threads together.", ofStats(func(s launcher.Stats, add addSample) {
		add(float(s.CPUTime))
	})},
	{"vmrun_guest_resident_memory_bytes", "gauge", "bytes", "What of its QEMU is in the host's memory.", ofStats(func(s launcher.Stats, add addSample) {
		add(count(s.Memory))
	})},
	{"vmrun_guest_cgroup_memory_bytes", "gauge", "bytes", "What counts against the limit, the page cache of its files among it.", ofStats(func(s launcher.Stats, add addSample) {
		if s.GroupMemory != 0 {
			add(count(s.GroupMemory))
		}
	})},
}

func ofStats(of func(launcher.Stats, addSample)) func(scraped, addSample) {
	return func(g scraped, add addSample) {
		if g.stats != nil {
			of(*g.stats, add)
		}
	}
}

var diskFamilies = []family{
	{"vmrun_disk", "info", "", "What a disk of a guest is.", ofStats(func(s launcher.Stats, add addSample) {
		for _, d := range s.Disks {
			add("1", "disk", d.Name, "path", d.Path)
		}
	})},
	disk("vmrun_disk_read_bytes", "bytes", "What a guest has read.", func(d launcher.DiskStats) uint64 { return d.ReadBytes }),
	disk("vmrun_disk_reads", "", "How often a guest has read.", func(d launcher.DiskStats) uint64 { return d.Reads }),
	disk("vmrun_disk_written_bytes", "bytes", "What a guest has written.", func(d launcher.DiskStats) uint64 { return d.WriteBytes }),
	disk("vmrun_disk_writes", "", "How often a guest has written.", func(d launcher.DiskStats) uint64 { return d.Writes }),
	disk("vmrun_disk_flushes", "", "How often a guest has wanted to be sure of what it wrote.", func(d launcher.DiskStats) uint64 { return d.Flushes }),
}

// disk is a counter of disks.
func disk(name, unit, help string, of func(launcher.DiskStats) uint64) family {
	return family{name, "counter", unit, help, ofStats(func(s launcher.Stats, add addSample) {
		for _, d := range s.Disks {
			add(count(of(d)), "disk", d.Name)
		}
	})}
}

var nicFamilies = []family{
	{"vmrun_nic", "info", "", "What a NIC of a guest is.", func(g scraped, add addSample) {
		for _, n := range g.NICs {
			add("1", "nic", n.Name, "parent", n.Lower(), "mode", manner(n), "mac", n.MAC)
		}
	}},
	nic("vmrun_nic_receive_bytes", "bytes", "What came to a guest.", func(n launcher.NICStats) uint64 { return n.RxBytes }),
	nic("vmrun_nic_receive_packets", "packets", "Frames that came to a guest.", func(n launcher.NICStats) uint64 { return n.RxPackets }),
	nic("vmrun_nic_receive_multicast_packets", "packets", "Those among them that came by multicast or broadcast.", func(n launcher.NICStats) uint64 { return n.RxMulticast }),
	nic("vmrun_nic_receive_dropped_packets", "packets", "Those among them that the guest's queue had no room for.", func(n launcher.NICStats) uint64 { return n.RxDropped }),
	nic("vmrun_nic_receive_limited_packets", "packets", "Those among them that were over the NIC's bandwidth.", func(n launcher.NICStats) uint64 { return n.RxPoliced }),
	nic("vmrun_nic_transmit_bytes", "bytes", "What a guest has sent.", func(n launcher.NICStats) uint64 { return n.TxBytes }),
	nic("vmrun_nic_transmit_packets", "packets", "Frames that a guest has sent.", func(n launcher.NICStats) uint64 { return n.TxPackets }),
	nic("vmrun_nic_transmit_dropped_packets", "packets", "Frames from a guest that the parent did not take.", func(n launcher.NICStats) uint64 { return n.TxDropped }),
	nic("vmrun_nic_transmit_limited_packets", "packets", "Frames from a guest that were over the NIC's bandwidth.", func(n launcher.NICStats) uint64 { return n.TxShaped }),
	{"vmrun_nic_forged_packets", "counter", "packets", "Frames from a guest that pin refused, by what was forged.", ofStats(func(s launcher.Stats, add addSample) {
		for _, n := range s.NICs {
			if n.Pinned == nil {
				continue
			}
			for what, frames := range n.Pinned.Kinds() {
				add(count(frames), "nic", n.Name, "forged", what)
			}
		}
	})},
}

// nic is a counter of NICs.
func nic(name, unit, help string, of func(launcher.NICStats) uint64) family {
	return family{name, "counter", unit, help, ofStats(func(s launcher.Stats, add addSample) {
		for _, n := range s.NICs {
			add(count(of(n)), "nic", n.Name)
		}
	})}
}
