package nettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/netsetup"
	"vmrun/netsetup/nettest/wire"
)

// Host is one machine of the lab.
type Host struct {
	Namespace *netsetup.Namespace
	NIC       string // on the lab's wire; empty for the switch
	MAC       net.HardwareAddr

	t       testing.TB
	mu      sync.Mutex
	started []*exec.Cmd
}

// Do runs fn on a thread of its own inside the machine.
func (h *Host) Do(fn func() error) error {
	return h.Namespace.Do(fn)
}

// Start starts a process on the machine. It is killed at the test's end when it
// still runs; its children too, as long as they are on the machine.
func (h *Host) Start(cmd *exec.Cmd) error {
	if err := h.Do(cmd.Start); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = append(h.started, cmd)
	return nil
}

// Run runs a process on the machine to its end and returns what it wrote to
// standard output and standard error.
func (h *Host) Run(cmd *exec.Cmd) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	err := cmd.Wait()
	return out.Bytes(), err
}

// Ping sends count echo requests from the machine and returns how many went out
// and how many were answered. An interval of 0 is 100 ms.
func (h *Host) Ping(ctx context.Context, addr netip.Addr, count int, interval time.Duration) (sent, received int, err error) {
	err = h.Do(func() (err error) {
		sent, received, err = wire.Pinger{Interval: interval}.Ping(ctx, addr, count)
		return err
	})
	return sent, received, err
}

// Capture counts the frames with a tag on one of the machine's links until the
// test's end.
func (h *Host) Capture(dev, tag string) *wire.Capture {
	h.t.Helper()
	var c *wire.Capture
	if err := h.Do(func() (err error) {
		c, err = wire.NewCapture(dev, tag)
		return err
	}); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

// Send sends a whole Ethernet frame out of one of the machine's links.
func (h *Host) Send(dev string, frame []byte) error {
	return h.Do(func() error { return wire.Send(dev, frame) })
}

// Flood sends a whole Ethernet frame count times, as fast as the link takes it.
func (h *Host) Flood(ctx context.Context, dev string, frame []byte, count int) (sent int, err error) {
	err = h.Do(func() (err error) {
		sent, err = wire.Flood(ctx, dev, frame, count)
		return err
	})
	return sent, err
}

// ServeEcho serves wire.ServeEcho on the machine until the test's end.
func (h *Host) ServeEcho(port uint16) *wire.Server {
	h.t.Helper()
	return h.serve(port, wire.ServeEcho)
}

// ServeDiscard serves wire.ServeDiscard on the machine until the test's end.
func (h *Host) ServeDiscard(port uint16) *wire.Server {
	h.t.Helper()
	return h.serve(port, wire.ServeDiscard)
}

func (h *Host) serve(port uint16, start func(uint16) (*wire.Server, error)) *wire.Server {
	h.t.Helper()
	var s *wire.Server
	if err := h.Do(func() (err error) {
		s, err = start(port)
		return err
	}); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { s.Close() })
	return s
}

// SendTCP streams from the machine to a server for so long.
func (h *Host) SendTCP(ctx context.Context, to netip.AddrPort, length time.Duration) (done wire.Throughput, err error) {
	err = h.Do(func() (err error) {
		done, err = wire.SendTCP(ctx, to, length)
		return err
	})
	return done, err
}

// EchoTCP sends text from the machine to a server and returns what came back.
func (h *Host) EchoTCP(ctx context.Context, to netip.AddrPort, text string) (answer string, err error) {
	err = h.Do(func() (err error) {
		answer, err = wire.EchoTCP(ctx, to, text)
		return err
	})
	return answer, err
}

// Listen counts the datagrams that arrive on one of the machine's links for an
// address or a group, until the test's end.
func (h *Host) Listen(dev string, addr netip.AddrPort) *wire.Listener {
	h.t.Helper()
	var l *wire.Listener
	if err := h.Do(func() (err error) {
		l, err = wire.Listen(dev, addr)
		return err
	}); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	return l
}

// SendUDP sends count datagrams out of one of the machine's links.
func (h *Host) SendUDP(dev string, to netip.AddrPort, text string, count int) error {
	return h.Do(func() error { return wire.SendUDP(dev, to, text, count) })
}

// Link returns one of the machine's links as it is now.
func (h *Host) Link(name string) (netlink.Link, error) {
	var link netlink.Link
	err := h.Do(func() (err error) {
		if link, err = netlink.LinkByName(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	return link, err
}

// AddAddress gives one of the machine's links an address, which is usable at once.
func (h *Host) AddAddress(dev string, addr netip.Prefix) error {
	return h.onLink(dev, func(link netlink.Link) error { return netlink.AddrAdd(link, usable(addr)) })
}

// DelAddress takes an address from one of the machine's links.
func (h *Host) DelAddress(dev string, addr netip.Prefix) error {
	return h.onLink(dev, func(link netlink.Link) error { return netlink.AddrDel(link, usable(addr)) })
}

func usable(addr netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP:   addr.Addr().AsSlice(),
		Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen()),
	}}
	if addr.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func (h *Host) addAddresses(dev string, addrs ...netip.Prefix) error {
	for _, a := range addrs {
		if err := h.AddAddress(dev, a); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return nil
}

// LinkLocal returns the link-local address of one of the machine's links, with
// the link as its zone.
func (h *Host) LinkLocal(dev string) (addr netip.Addr, err error) {
	err = h.onLink(dev, func(link netlink.Link) error {
		list, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		for _, a := range list {
			if a.IP.IsLinkLocalUnicast() {
				addr, _ = netip.AddrFromSlice(a.IP)
				addr = addr.WithZone(dev)
				return nil
			}
		}
		return errors.New("no link-local address")
	})
	return addr, err
}

// waitAddresses waits for the address that the kernel makes when it has noticed
// both ends of the wire, and until all are in use: it gives an address its route,
// without which what comes for it is dropped, in its own time
// (net/ipv6/addrconf.c, addrconf_dad_work).
func (h *Host) waitAddresses(dev string) error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		_, err := h.LinkLocal(dev)
		if err == nil {
			err = h.onLink(dev, allInUse)
		}
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// allInUse says which IPv6 address of a link is not in use yet, if any.
func allInUse(link netlink.Link) error {
	list, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	local := &netlink.Route{Table: unix.RT_TABLE_LOCAL, LinkIndex: link.Attrs().Index}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, local, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
	if err != nil {
		return err
	}
	for _, a := range list {
		routed := slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.IP.Equal(a.IP) })
		if !routed || a.Flags&unix.IFA_F_TENTATIVE != 0 {
			return fmt.Errorf("address %s is not in use yet", a.IPNet)
		}
	}
	return nil
}

// Neighbours returns the addresses on one of the machine's links whose MAC the
// machine believes it knows.
func (h *Host) Neighbours(dev string) (known map[netip.Addr]net.HardwareAddr, err error) {
	err = h.Do(func() (err error) {
		known, err = wire.Neighbours(dev)
		return err
	})
	return known, err
}

// FlushNeighbours makes the machine forget what it learned of its neighbours.
func (h *Host) FlushNeighbours(dev string) error {
	return h.Do(func() error { return wire.FlushNeighbours(dev) })
}

// onLink runs do inside the machine with one of its links.
func (h *Host) onLink(dev string, do func(netlink.Link) error) error {
	return h.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err == nil {
			err = do(link)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", dev, err)
		}
		return nil
	})
}

// open returns a descriptor of the machine's namespace, which the caller closes.
func (h *Host) open() (int, error) {
	fd := -1
	err := h.Do(func() (err error) {
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

func (h *Host) kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, cmd := range h.started {
		if cmd.Process.Kill() == nil {
			_, _ = cmd.Process.Wait() // reaped, unless the test does it
		}
	}
	h.started = nil
}
