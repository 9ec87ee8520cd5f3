package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Server answers TCP connections until it is closed.
type Server struct {
	listener net.Listener
	serve    func(net.Conn)
	running  sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

// ServeEcho sends back what comes in on a TCP port (RFC 862), by IPv4 and IPv6.
func ServeEcho(port uint16) (*Server, error) {
	return serveTCP(port, func(c net.Conn) { _, _ = io.Copy(c, c) })
}

// ServeDiscard throws away what comes in on a TCP port (RFC 863) and closes a
// connection when its sender has. It is the far end to measure a stream with.
func ServeDiscard(port uint16) (*Server, error) {
	return serveTCP(port, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
}

func serveTCP(port uint16, serve func(net.Conn)) (*Server, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(int(port))))
	if err != nil {
		return nil, err
	}
	s := &Server{listener: l, serve: serve, conns: make(map[net.Conn]bool)}
	s.running.Go(s.accept)
	return s, nil
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		if s.closed {
			conn.Close()
		} else {
			s.conns[conn] = true
			s.running.Go(func() { s.answer(conn) })
		}
		s.mu.Unlock()
	}
}

func (s *Server) answer(conn net.Conn) {
	s.serve(conn)
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

// Close ends the server and its connections.
func (s *Server) Close() error {
	err := s.listener.Close()
	s.mu.Lock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
	return err
}

// Throughput is what a stream carried, and the time it took.
type Throughput struct {
	Bytes   int64
	Elapsed time.Duration
}

// Mbit is in megabits per second.
func (t Throughput) Mbit() float64 {
	return float64(t.Bytes) * 8 / 1e6 / t.Elapsed.Seconds()
}

// patience bounds what a stream waits for beside its own length: the
// connection's begin, and the far end's after the last byte.
const patience = 5 * time.Second

// SendTCP sends to a server for so long and returns what has arrived there: the
// time ends when the server, having read everything, closes. What the server
// sends back is thrown away. A link-local address carries its link as zone.
func SendTCP(ctx context.Context, to netip.AddrPort, length time.Duration) (Throughput, error) {
	conn, err := dialTCP(ctx, to, length+2*patience)
	if err != nil {
		return Throughput{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	drained := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, conn)
		drained <- err
	}()
	var t Throughput
	buf := make([]byte, 1<<16)
	for start := time.Now(); ; {
		n, werr := conn.Write(buf)
		t.Bytes += int64(n)
		if t.Elapsed = time.Since(start); werr == nil && t.Elapsed < length {
			continue
		}
		err = errors.Join(werr, conn.CloseWrite())
		if err != nil {
			conn.Close() // ends the reader
		}
		err = errors.Join(err, <-drained)
		t.Elapsed = time.Since(start)
		break
	}
	if err != nil {
		return t, fmt.Errorf("stream to %s: %w", to, err)
	}
	return t, nil
}

// EchoTCP sends text to a server that echoes and returns what came back.
func EchoTCP(ctx context.Context, to netip.AddrPort, text string) (string, error) {
	conn, err := dialTCP(ctx, to, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, text); err != nil {
		return "", fmt.Errorf("echo of %s: %w", to, err)
	}
	answer := make([]byte, len(text))
	n, err := io.ReadFull(conn, answer)
	if err != nil {
		err = fmt.Errorf("echo of %s: %w", to, err)
	}
	return string(answer[:n]), err
}

// dialTCP connects within patience; all that is done with the connection ends
// after limit.
func dialTCP(ctx context.Context, to netip.AddrPort, limit time.Duration) (*net.TCPConn, error) {
	addr, err := numbered(to.Addr())
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: patience}
	conn, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, netip.AddrPortFrom(addr, to.Port()))
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(limit))
	return conn, nil
}

// numbered replaces an address's zone by the number of its link: package net
// remembers the numbers of names, for all namespaces the same.
func numbered(addr netip.Addr) (netip.Addr, error) {
	if addr.Zone() == "" {
		return addr, nil
	}
	link, err := net.InterfaceByName(addr.Zone())
	if err != nil {
		return addr, fmt.Errorf("%s: %w", addr, err)
	}
	return addr.WithZone(strconv.Itoa(link.Index)), nil
}
