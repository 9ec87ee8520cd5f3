package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Neighbours returns the addresses on dev whose MAC this machine believes it
// knows, fresh or stale.
func Neighbours(dev string) (map[netip.Addr]net.HardwareAddr, error) {
	known := make(map[netip.Addr]net.HardwareAddr)
	err := eachNeighbour(dev, func(n netlink.Neigh) error {
		if addr, ok := netip.AddrFromSlice(n.IP); ok && len(n.HardwareAddr) > 0 {
			known[addr.Unmap()] = n.HardwareAddr
		}
		return nil
	})
	return known, err
}

// FlushNeighbours forgets what was learned of neighbours on dev. Entries that
// were made permanent stay.
func FlushNeighbours(dev string) error {
	return eachNeighbour(dev, func(n netlink.Neigh) error {
		if n.State&netlink.NUD_PERMANENT != 0 {
			return nil
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("neighbour %s: %w", n.IP, err)
		}
		return nil
	})
}

// eachNeighbour hands over dev's neighbours, without those that a NIC knows
// unasked: the groups (NUD_NOARP), and whom nobody answered for.
func eachNeighbour(dev string, do func(netlink.Neigh) error) error {
	link, err := net.InterfaceByName(dev)
	if err != nil {
		return fmt.Errorf("%s: %w", dev, err)
	}
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := Dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Index, family) })
		errs = append(errs, err)
		for _, n := range list {
			if n.State&(netlink.NUD_NOARP|netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) == 0 {
				errs = append(errs, do(n))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", dev, err)
	}
	return nil
}

// Dump repeats a netlink dump that a change at the same time has made incomplete
// (NLM_F_DUMP_INTR), as long as it takes within a second.
func Dump[T any](read func() ([]T, error)) (list []T, err error) {
	for end := time.Now().Add(time.Second); ; {
		list, err = read()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || time.Now().After(end) {
			return list, err
		}
	}
}
