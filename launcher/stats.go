package launcher

import (
	"slices"
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
)

// Stats are what a guest has used and moved since its QEMU was started, and what
// it takes now. A restart begins anew.
type Stats struct {
	CPUTime     float64     `json:"cpu_time"`                // seconds, of all of QEMU's threads
	Memory      uint64      `json:"memory"`                  // bytes of QEMU's that are in the host's memory
	GroupMemory uint64      `json:"cgroup_memory,omitempty"` // bytes that count against a limit, the page cache of its files among them; 0 without one
	Disks       []DiskStats `json:"disks"`                   // nil when QEMU, which counts them, does not answer
	NICs        []NICStats  `json:"nics"`
}

// DiskStats are what the guest asked of one disk.
type DiskStats struct {
	Name       string `json:"name"` // its place in the spec: "disk0"
	Path       string `json:"path"` // of its image
	ReadBytes  uint64 `json:"read_bytes"`
	Reads      uint64 `json:"reads"`
	WriteBytes uint64 `json:"write_bytes"`
	Writes     uint64 `json:"writes"`
	Flushes    uint64 `json:"flushes"`
}

// NICStats are the counters of one NIC.
type NICStats struct {
	Name   string       `json:"name"`
	Parent string       `json:"parent"`
	MAC    string       `json:"mac"`
	Mode   configs.Mode `json:"mode,omitempty"`
	netsetup.Counters
	Pinned *netsetup.Refusals `json:"pinned,omitempty"` // frames that the guest forged, dropped; of a pinned NIC
}

// Lost is how many frames from and to the guest there was no room for, or no
// leave: all but the forged ones.
func (n NICStats) Lost() uint64 { return n.RxDropped + n.RxPoliced + n.TxDropped + n.TxShaped }

// Rates are what a guest used and moved between two counts, all its disks and all
// its NICs together.
type Rates struct {
	CPU    float64 `json:"cpu"`   // CPUs of the host's: 1.5 is one and a half
	Read   uint64  `json:"read"`  // from disks, bytes per second
	Write  uint64  `json:"write"` // bytes per second
	Reads  uint64  `json:"reads"` // per second
	Writes uint64  `json:"writes"`
	Rate
	Lost uint64 `json:"lost"` // frames per second
}

// Since is what happened since an earlier count. What was counted anew in between,
// after a restart for example, counts as nothing.
func (s Stats) Since(before Stats, elapsed time.Duration) Rates {
	perSecond := func(now, then uint64) uint64 { return uint64(float64(now-min(now, then)) / elapsed.Seconds()) }
	r := Rates{CPU: max(0, s.CPUTime-before.CPUTime) / elapsed.Seconds()}
	for _, now := range s.Disks {
		i := slices.IndexFunc(before.Disks, func(d DiskStats) bool { return d.Name == now.Name })
		if i < 0 {
			continue
		}
		then := before.Disks[i]
		r.Read += perSecond(now.ReadBytes, then.ReadBytes)
		r.Write += perSecond(now.WriteBytes, then.WriteBytes)
		r.Reads += perSecond(now.Reads, then.Reads)
		r.Writes += perSecond(now.Writes, then.Writes)
	}
	for _, now := range s.NICs {
		i := slices.IndexFunc(before.NICs, func(n NICStats) bool { return n.Name == now.Name })
		if i >= 0 {
			r.Lost += perSecond(now.Lost(), before.NICs[i].Lost())
		}
	}
	for _, nic := range ratesOf(before.NICs, s.NICs, elapsed) {
		r.Inbound += nic.Inbound
		r.Outbound += nic.Outbound
	}
	return r
}
