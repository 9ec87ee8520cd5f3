package nettest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
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

func (h *Host) addAddresses(name string, addrs ...netip.Prefix) error {
	return h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a.String())
			if err != nil {
				return err
			}
			if a.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("%s: address %s: %w", name, a, err)
			}
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
