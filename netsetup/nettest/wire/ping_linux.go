package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Pinger holds the options of a ping; its zero value works.
type Pinger struct {
	Interval time.Duration // between requests; 100 ms when 0
	Wait     time.Duration // for replies after the last request; 1 s when 0
}

// Ping sends count echo requests to addr and returns how many were sent and how
// many of them were answered. It ends as soon as all are answered. That nobody
// answers is no error; that nothing could be sent is one. A link-local address
// carries its link as zone.
func (p Pinger) Ping(ctx context.Context, addr netip.Addr, count int) (sent, received int, err error) {
	s, err := openEcho(addr)
	if err != nil {
		return 0, 0, fmt.Errorf("ping %s: %w", addr, err)
	}
	defer s.file.Close()
	sent, received, err = s.run(ctx, count, orDefault(p.Interval, 100*time.Millisecond), orDefault(p.Wait, time.Second))
	if err != nil {
		return sent, received, fmt.Errorf("ping %s: %w", addr, err)
	}
	return sent, received, nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// echo is a raw ICMP socket and what tells its replies from those of others:
// every raw socket of a namespace sees all of them.
type echo struct {
	file   *os.File
	to     unix.Sockaddr
	v6     bool
	id     uint16
	cookie uint64
}

var lastEcho atomic.Uint32

func openEcho(addr netip.Addr) (*echo, error) {
	if !addr.IsValid() {
		return nil, errors.New("no address")
	}
	addr = addr.Unmap()
	e := &echo{
		v6:     addr.Is6(),
		id:     uint16(os.Getpid()) ^ uint16(lastEcho.Add(1)<<8),
		cookie: uint64(time.Now().UnixNano()),
	}
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if e.v6 {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
		to := &unix.SockaddrInet6{Addr: addr.As16()}
		if zone := addr.Zone(); zone != "" {
			// Not net.ResolveIPAddr: it remembers a zone's index for all namespaces.
			link, err := net.InterfaceByName(zone)
			if err != nil {
				return nil, err
			}
			to.ZoneId = uint32(link.Index)
		}
		e.to = to
	} else {
		e.to = &unix.SockaddrInet4{Addr: addr.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w", err)
	}
	e.file = os.NewFile(uintptr(fd), "icmp")
	return e, nil
}

func (e *echo) run(ctx context.Context, count int, interval, wait time.Duration) (sent, received int, err error) {
	replies := make(chan uint16)
	stop := make(chan struct{})
	go func() {
		defer close(replies)
		e.read(replies, stop)
	}()
	defer func() {
		close(stop)
		e.file.Close() // ends the reader
		for range replies {
		}
	}()

	answered := make(map[uint16]bool)
	var sendErr error
	timer := time.NewTimer(0)
	defer timer.Stop()
	for tried := 0; ; {
		select {
		case <-ctx.Done():
			return sent, len(answered), ctx.Err()
		case seq, ok := <-replies:
			if !ok {
				return sent, len(answered), errors.New("the socket ended")
			}
			answered[seq] = true
			if len(answered) == count {
				return sent, count, nil
			}
		case <-timer.C:
			if tried == count {
				if sent == 0 && sendErr != nil {
					return 0, 0, sendErr
				}
				return sent, len(answered), nil
			}
			if err := e.send(uint16(tried)); err != nil {
				sendErr = err
			} else {
				sent++
			}
			tried++
			if tried == count && sent == 0 {
				return 0, 0, sendErr
			}
			if tried == count {
				interval = wait
			}
			timer.Reset(interval)
		}
	}
}

const echoLength = 8 + 8 // ICMP header, cookie

func (e *echo) send(seq uint16) error {
	msg := make([]byte, echoLength)
	msg[0] = 8 // RFC 792
	if e.v6 {
		msg[0] = 128 // RFC 4443, 4.1; the kernel fills in the checksum
	}
	binary.BigEndian.PutUint16(msg[4:], e.id)
	binary.BigEndian.PutUint16(msg[6:], seq)
	binary.BigEndian.PutUint64(msg[8:], e.cookie)
	if !e.v6 {
		binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	}
	conn, err := e.file.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = conn.Write(func(fd uintptr) bool {
		serr = unix.Sendto(int(fd), msg, 0, e.to)
		return !errors.Is(serr, unix.EAGAIN)
	})
	return errors.Join(err, serr)
}

// read hands on the sequence number of each reply until the socket is closed.
func (e *echo) read(replies chan<- uint16, stop <-chan struct{}) {
	buf := make([]byte, 1<<16)
	for {
		n, err := e.file.Read(buf)
		if err != nil {
			// An ICMP error that came back for a request is not the end.
			if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EBADF) {
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				continue
			}
		}
		seq, ok := e.reply(buf[:n])
		if !ok {
			continue
		}
		select {
		case replies <- seq:
		case <-stop:
			return
		}
	}
}

func (e *echo) reply(msg []byte) (seq uint16, ok bool) {
	want := byte(129)
	if !e.v6 {
		want = 0
		// A raw IPv4 socket hands over the IP header too (raw(7)).
		if len(msg) < 20 || len(msg) < int(msg[0]&15)*4 {
			return 0, false
		}
		msg = msg[int(msg[0]&15)*4:]
	}
	if len(msg) < echoLength || msg[0] != want ||
		binary.BigEndian.Uint16(msg[4:]) != e.id || binary.BigEndian.Uint64(msg[8:]) != e.cookie {
		return 0, false
	}
	return binary.BigEndian.Uint16(msg[6:]), true
}

// checksum is RFC 1071's; the length of b is even.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
