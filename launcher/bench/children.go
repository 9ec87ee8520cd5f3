package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest/wire"
)

// maker makes children without guests. It stands for a contender in the tables.
type maker struct {
	mac    func(n int) net.HardwareAddr
	create func(n int) error // up
	open   func(n int) (*os.File, error)
	delete func(n int) error
	look   func() (mute func() error, err error) // what happens beside frames' way to the first child's tap
}

// The makers: netsetup as for a guest's NIC, and as few requests as do.
var (
	viaNetsetup = &contender{name: "netsetup"}
	viaNetlink  = &contender{name: "raw netlink"}
	makerNames  = []*contender{viaNetsetup, viaNetlink}
)

const (
	manyChildren = 100
	firstIndex   = 100_000 // of children's interface indexes
)

// netsetupMaker makes all children in one namespace, where vmrun has one for each guest.
func netsetupMaker(ns *netsetup.Namespace) maker {
	mac := func(n int) net.HardwareAddr { return net.HardwareAddr{2, 0, 1, 0, 0, byte(n)} }
	child := func(n int) netsetup.Child {
		return netsetup.Child{Name: fmt.Sprintf("net%d", n), Index: firstIndex + n, NIC: configs.NIC{
			Parent: "lab0", Kind: configs.KindMacvtap, Mode: configs.ModeBridge, MAC: mac(n), Queues: 1,
		}}
	}
	return maker{
		mac:    mac,
		create: func(n int) error { return errors.Join(ns.Create(child(n)), ns.Up(child(n))) },
		open: func(n int) (*os.File, error) {
			taps, err := ns.OpenTaps(child(n))
			if err != nil {
				return nil, err
			}
			return taps[0], nil
		},
		delete: func(n int) error { return ns.Delete(child(n)) },
		look: func() (func() error, error) { // learns addresses
			learner, err := ns.Learn(child(0), nil, func() {})
			if err != nil {
				return nil, err
			}
			return learner.Close, nil
		},
	}
}

// netlinkMaker makes them on the host: one request for each that is up, a node like
// devtmpfs makes, one request for its end. Nothing is looked up that can be known.
func netlinkMaker(dir string) (maker, error) {
	parent, err := netlink.LinkByName("lab0")
	if err != nil {
		return maker{}, err
	}
	name := func(n int) string { return fmt.Sprintf("raw%d", n) }
	mac := func(n int) net.HardwareAddr { return net.HardwareAddr{2, 0, 2, 0, 0, byte(n)} }
	index := func(n int) int { return 2*firstIndex + n }
	return maker{
		mac: mac,
		create: func(n int) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.Index, attrs.ParentIndex, attrs.HardwareAddr, attrs.Flags = name(n), index(n), parent.Attrs().Index, mac(n), net.FlagUp
			return netlink.LinkAdd(&netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}})
		},
		open: func(n int) (*os.File, error) {
			text, err := os.ReadFile(fmt.Sprintf("/sys/class/net/%s/macvtap/tap%d/dev", name(n), index(n)))
			if err != nil {
				return nil, err
			}
			var major, minor uint32
			if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
				return nil, err
			}
			node := dir + "/" + name(n)
			if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor))); err != nil {
				return nil, err
			}
			defer os.Remove(node)
			return os.OpenFile(node, os.O_RDWR|unix.O_NONBLOCK, 0)
		},
		delete: func(n int) error {
			return netlink.LinkDel(&netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Index: index(n)}}})
		},
		look: func() (func() error, error) { return func() error { return nil }, nil },
	}, nil
}

// children measures netsetup without guests: links, and the kernel's way to a tap.
func (l *lab) children(ctx context.Context, f *figures, n int) error {
	ns, err := netsetup.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := ns.Quiet(); err != nil {
		return err
	}
	raw, err := netlinkMaker(l.dir)
	if err != nil {
		return err
	}
	makers := map[*contender]maker{viaNetsetup: netsetupMaker(ns), viaNetlink: raw}
	return l.repeat(ctx, f, n, makerNames, childrenWorks(makers)...)
}

func childrenWorks(makers map[*contender]maker) []work {
	var taps []*os.File
	return []work{
		{fmt.Sprintf("%d children created", manyChildren), "ms", func(_ context.Context, _ *lab, c *contender) (float64, error) {
			return forEach(makers[c].create)
		}},
		{fmt.Sprintf("%d taps opened", manyChildren), "ms", func(_ context.Context, _ *lab, c *contender) (float64, error) {
			taps = nil
			return forEach(func(n int) error {
				tap, err := makers[c].open(n)
				taps = append(taps, tap)
				return err
			})
		}},
		{"frames read from a tap", "1/ms", func(ctx context.Context, l *lab, c *contender) (float64, error) {
			return l.throughput(ctx, makers[c], taps[0])
		}},
		{"frame sent to read", "µs", func(_ context.Context, l *lab, c *contender) (float64, error) {
			return l.latency(makers[c], taps[0])
		}},
		{fmt.Sprintf("%d children deleted", manyChildren), "ms", func(_ context.Context, _ *lab, c *contender) (float64, error) {
			for _, tap := range taps {
				tap.Close()
			}
			return forEach(makers[c].delete)
		}},
	}
}

func forEach(do func(n int) error) (float64, error) {
	return timed(func() error {
		for n := range manyChildren {
			if err := do(n); err != nil {
				return err
			}
		}
		return nil
	})
}

// probe is a frame for everybody, small as frames can be.
func probe() []byte {
	return wire.Tagged(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, net.HardwareAddr{2, 0, 3, 0, 0, 1}, "bench")
}

// reader counts what comes out of a tap, until it is told to stop.
func reader(tap *os.File, each func()) (stop func() error) {
	done := make(chan error)
	go func() {
		frame := make([]byte, 1<<16)
		for {
			if _, err := tap.Read(frame); err != nil {
				done <- err
				return
			}
			each()
		}
	}()
	return func() error {
		if err := tap.SetReadDeadline(time.Now()); err != nil {
			return err
		}
		err := <-done
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return tap.SetReadDeadline(time.Time{})
		}
		return err
	}
}

// throughput floods the first child from outside, with frames to it alone, and
// returns how many come out of its tap in a ms.
func (l *lab) throughput(ctx context.Context, m maker, tap *os.File) (float64, error) {
	mute, err := m.look()
	if err != nil {
		return 0, err
	}
	var count atomic.Int64
	stop := reader(tap, func() { count.Add(1) })
	frame := probe()
	copy(frame, m.mac(0))
	const sent = 100_000
	ms, err := timed(func() error {
		return l.outside.Do(func() error { _, err := wire.Flood(ctx, "wire0", frame, sent); return err })
	})
	return float64(count.Load()) / ms, errors.Join(err, stop(), mute())
}

// latency is the median of a few hundred frames, one at a time.
func (l *lab) latency(m maker, tap *os.File) (float64, error) {
	mute, err := m.look()
	if err != nil {
		return 0, err
	}
	arrived := make(chan time.Time, 1)
	stop := reader(tap, func() {
		select {
		case arrived <- time.Now():
		default:
		}
	})
	var s sample
	err = l.outside.Do(func() error {
		for range 300 {
			began := time.Now()
			if err := wire.Send("wire0", probe()); err != nil {
				return err
			}
			select {
			case at := <-arrived:
				s = append(s, float64(at.Sub(began))/float64(time.Microsecond))
			case <-time.After(time.Second):
				return errors.New("a frame was lost")
			}
		}
		return nil
	})
	if err = errors.Join(err, stop(), mute()); err != nil {
		return 0, err
	}
	return s.quantile(0.5), nil
}
