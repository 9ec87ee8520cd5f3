package wire

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Counts are frames that carried a Capture's tag, told apart as packet(7) does.
type Counts struct {
	Unicast   int // addressed to the link itself
	Broadcast int
	Multicast int
	Other     int // addressed to somebody else; seen on a promiscuous link only
	Outgoing  int // sent by this machine on the link
}

// Received is the number of frames that came in, whatever their destination.
func (c Counts) Received() int {
	return c.Unicast + c.Broadcast + c.Multicast + c.Other
}

// Capture counts and keeps the frames on one link that carry a tag.
type Capture struct {
	tag  string
	file *os.File
	done chan struct{} // closed when the reader has ended

	mu     sync.Mutex
	counts Counts
	frames [][]byte
	change chan struct{} // closed, and replaced, at each frame
}

// maxKept bounds the frames a Capture keeps; it goes on counting beyond.
const maxKept = 1000

// NewCapture starts to count frames on dev whose payload contains tag. It does
// not make the link promiscuous. What arrives after it returned is counted.
func NewCapture(dev, tag string) (*Capture, error) {
	file, err := packetSocket(dev, unix.ETH_P_ALL)
	if err != nil {
		return nil, err
	}
	c := &Capture{tag: tag, file: file, done: make(chan struct{}), change: make(chan struct{})}
	go c.read()
	return c, nil
}

func (c *Capture) read() {
	defer close(c.done)
	conn, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1<<16)
	for {
		var n int
		var from unix.Sockaddr
		var rerr error
		err := conn.Read(func(fd uintptr) bool {
			n, from, rerr = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		if err != nil {
			return // closed
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if rerr != nil || !ok || !hasTag(buf[:n], c.tag) {
			if rerr != nil && !errors.Is(rerr, unix.EINTR) && !errors.Is(rerr, unix.ENETDOWN) {
				return
			}
			continue
		}
		c.add(ll.Pkttype, buf[:n])
	}
}

func (c *Capture) add(kind uint8, frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch kind {
	case unix.PACKET_HOST:
		c.counts.Unicast++
	case unix.PACKET_BROADCAST:
		c.counts.Broadcast++
	case unix.PACKET_MULTICAST:
		c.counts.Multicast++
	case unix.PACKET_OUTGOING:
		c.counts.Outgoing++
	default:
		c.counts.Other++
	}
	if kind != unix.PACKET_OUTGOING && len(c.frames) < maxKept {
		c.frames = append(c.frames, append([]byte(nil), frame...))
	}
	close(c.change)
	c.change = make(chan struct{})
}

// Counts returns what was counted so far.
func (c *Capture) Counts() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts
}

// Frames returns the first thousand frames that came in.
func (c *Capture) Frames() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([][]byte(nil), c.frames...)
}

// Wait returns the counts as soon as n frames came in, or after timeout.
func (c *Capture) Wait(n int, timeout time.Duration) Counts {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		c.mu.Lock()
		counts, change := c.counts, c.change
		c.mu.Unlock()
		if counts.Received() >= n {
			return counts
		}
		select {
		case <-change:
		case <-timer.C:
			return c.Counts()
		}
	}
}

// Close ends the capture; its counts stay.
func (c *Capture) Close() error {
	err := c.file.Close()
	<-c.done
	return err
}

// Send sends a whole Ethernet frame out of dev.
func Send(dev string, frame []byte) error {
	file, err := packetSocket(dev, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Write(frame); err != nil {
		return fmt.Errorf("%s: send frame: %w", dev, err)
	}
	return nil
}

// Flood sends a whole Ethernet frame out of dev count times, as fast as dev takes
// it, and returns how often it went out. It stops at an error and with ctx.
func Flood(ctx context.Context, dev string, frame []byte, count int) (sent int, err error) {
	file, err := packetSocket(dev, 0)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = file.SetWriteDeadline(deadline)
	}
	for sent < count && ctx.Err() == nil {
		switch _, err := file.Write(frame); {
		case err == nil:
			sent++
		case errors.Is(err, unix.ENOBUFS): // dev's own queue is full
			time.Sleep(time.Millisecond)
		default:
			return sent, fmt.Errorf("%s: send frame %d: %w", dev, sent+1, err)
		}
	}
	return sent, ctx.Err()
}

// packetSocket opens a raw packet socket bound to dev. Protocol 0 receives
// nothing (packet(7)).
func packetSocket(dev string, protocol uint16) (*os.File, error) {
	link, err := net.InterfaceByName(dev)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dev, err)
	}
	// Bound before it gets a protocol: a socket that has one at creation hears
	// every link until the bind.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: packet socket: %w", dev, err)
	}
	file := os.NewFile(uintptr(fd), "packet "+dev)
	to := &unix.SockaddrLinklayer{Protocol: bits.ReverseBytes16(protocol), Ifindex: link.Index}
	if err := unix.Bind(fd, to); err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: packet socket: bind: %w", dev, err)
	}
	return file, nil
}
