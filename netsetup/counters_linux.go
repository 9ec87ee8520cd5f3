package netsetup

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Counters are a NIC's as its guest sees them, from the making of the child on:
// Rx is what comes to the guest. Bytes are of Ethernet frames without preamble
// and check sequence; frames that were merged, or are to be segmented, count as
// one.
//
// RxPackets and RxBytes count what the child let in, before what is dropped on
// its way to the guest: RxPackets less RxDropped and RxPoliced is what the guest
// could read. Multicast that found no room in the queue that all children of a
// parent share counts at the parent, as dropped (drivers/net/macvlan.c,
// macvlan_broadcast_enqueue).
//
// TxPackets and TxBytes count what left the child, so without TxDropped and
// TxShaped.
type Counters struct {
	RxPackets   uint64 `json:"rx_packets"`
	RxBytes     uint64 `json:"rx_bytes"`
	RxDropped   uint64 `json:"rx_dropped"`   // frames for which the tap's ring had no room, or no queue was open
	RxMulticast uint64 `json:"rx_multicast"` // frames, of RxPackets, that came by multicast or broadcast; 0 in source mode
	RxPoliced   uint64 `json:"rx_policed"`   // frames over the inbound limit, since it was set

	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxDropped uint64 `json:"tx_dropped"` // frames that the parent did not take, or that were malformed
	TxShaped  uint64 `json:"tx_shaped"`  // frames over the outbound limit that found no room to wait, since it was set; modulo 2³²
}

// Counters reads the child's counters from the kernel. The error is a *LinkError.
func (ns *Namespace) Counters(c Child) (Counters, error) {
	var counters Counters
	err := ns.Do(func() error {
		link, err := netlink.LinkByIndex(c.Index)
		if err != nil {
			return err
		}
		stats := link.Attrs().Statistics
		if stats == nil {
			return errors.New("the kernel tells none")
		}
		counters = Counters{
			RxPackets: stats.RxPackets, RxBytes: stats.RxBytes, RxDropped: stats.RxDropped, RxMulticast: stats.Multicast,
			TxPackets: stats.TxPackets, TxBytes: stats.TxBytes, TxDropped: stats.TxDropped,
		}
		shaper, err := findShaper(c)
		if err != nil {
			return err
		}
		if shaper != nil && shaper.Statistics != nil && shaper.Statistics.Queue != nil {
			counters.TxShaped = uint64(shaper.Statistics.Queue.Drops)
		}
		policer, err := findPolicer(c)
		counters.RxPoliced = policer.packets
		return err
	})
	if err != nil {
		return Counters{}, c.err("read counters", err)
	}
	return counters, nil
}
