package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Listener counts the UDP datagrams that an application on one link receives.
type Listener struct {
	conn net.PacketConn
	done chan struct{} // closed when the reader has ended

	mu     sync.Mutex
	count  int
	last   []byte
	change chan struct{} // closed, and replaced, at each datagram
}

// Listen receives datagrams on dev that are sent to addr, an address of this
// machine or a group, which it joins. Others may use the port as well. Closing
// the Listener leaves the group.
func Listen(dev string, addr netip.AddrPort) (*Listener, error) {
	link, err := net.InterfaceByName(dev)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dev, err)
	}
	if addr.Addr().IsLinkLocalUnicast() {
		zoned, err := numbered(addr.Addr().WithZone(dev))
		if err != nil {
			return nil, err
		}
		addr = netip.AddrPortFrom(zoned, addr.Port())
	}
	lc := net.ListenConfig{Control: boundTo(dev)}
	conn, err := lc.ListenPacket(context.Background(), "udp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dev, err)
	}
	if addr.Addr().IsMulticast() {
		if err := join(conn, link, addr.Addr()); err != nil {
			conn.Close()
			return nil, fmt.Errorf("%s: join %s: %w", dev, addr.Addr(), err)
		}
	}
	l := &Listener{conn: conn, done: make(chan struct{}), change: make(chan struct{})}
	go l.read()
	return l, nil
}

func join(conn net.PacketConn, link *net.Interface, group netip.Addr) error {
	to := &net.UDPAddr{IP: group.AsSlice()}
	if group.Is4() {
		return ipv4.NewPacketConn(conn).JoinGroup(link, to)
	}
	return ipv6.NewPacketConn(conn).JoinGroup(link, to)
}

// boundTo makes sockets receive and send on dev alone, and share their port.
func boundTo(dev string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.BindToDevice(int(fd), dev),
			)
		})
		return errors.Join(cerr, err)
	}
}

func (l *Listener) read() {
	defer close(l.done)
	buf := make([]byte, 1<<16)
	for {
		n, _, err := l.conn.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		l.mu.Lock()
		l.count++
		l.last = append(l.last[:0], buf[:n]...)
		close(l.change)
		l.change = make(chan struct{})
		l.mu.Unlock()
	}
}

// Heard returns how many datagrams came so far, and the last one.
func (l *Listener) Heard() (count int, last string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count, string(l.last)
}

// Wait returns the count as soon as n datagrams came, or after timeout.
func (l *Listener) Wait(n int, timeout time.Duration) int {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		l.mu.Lock()
		count, change := l.count, l.change
		l.mu.Unlock()
		if count >= n {
			return count
		}
		select {
		case <-change:
		case <-timer.C:
			return count
		}
	}
}

// Close leaves the group; the count stays.
func (l *Listener) Close() error {
	err := l.conn.Close()
	<-l.done
	return err
}

// SendUDP sends count datagrams out of dev, to an address or a group.
func SendUDP(dev string, to netip.AddrPort, text string, count int) error {
	lc := net.ListenConfig{Control: boundTo(dev)}
	network := "udp6"
	if to.Addr().Is4() {
		network = "udp4"
	}
	conn, err := lc.ListenPacket(context.Background(), network, ":0")
	if err != nil {
		return fmt.Errorf("%s: %w", dev, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	addr, err := numbered(to.Addr())
	if err != nil {
		return err
	}
	for range count {
		if _, err := conn.(*net.UDPConn).WriteToUDPAddrPort([]byte(text), netip.AddrPortFrom(addr, to.Port())); err != nil {
			return fmt.Errorf("%s: %w", dev, err)
		}
	}
	return nil
}
