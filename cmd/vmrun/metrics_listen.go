package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// metricsType is the content type of OpenMetrics text.
const metricsType = "application/openmetrics-text; version=1.0.0; charset=utf-8"

// What those who scrape get: whoever they are, they cost the guests one scrape in a
// second and this process a few connections, each for a short while.
const (
	scrapeEvery    = time.Second
	maxScrapers    = 8
	scraperTimeout = 10 * time.Second
	maxRequest     = 16 << 10 // bytes
)

// serveMetrics serves GET /metrics until ctx is over.
func (a *app) serveMetrics(ctx context.Context, address string) error {
	listener, err := listenMetrics(ctx, address)
	if err != nil {
		return err
	}
	defer listener.Close()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	warn("metrics are at %s", metricsURL(listener.Addr()))
	e := &exporter{app: a}
	var wg sync.WaitGroup
	defer wg.Wait()
	for clients := netutil.LimitListener(listener, maxScrapers); ; {
		conn, err := clients.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		wg.Go(func() { e.serve(ctx, conn) })
	}
}

// exporter answers with figures that are new, or not older than scrapeEvery.
type exporter struct {
	app *app

	mu   sync.Mutex
	text []byte
	at   time.Time
}

// serve answers one request (RFC 9112) and closes the connection, as a server may.
// It is written by hand: net/http would make vmrun, and with it the supervisor of
// each guest, a third larger.
func (e *exporter) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(scraperTimeout))
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	method, path, ok := readRequest(conn)
	if !ok {
		return
	}
	status, kind, body := "200 OK", metricsType, []byte(nil)
	switch text, err := e.answer(ctx, method, path); {
	case errors.Is(err, errNoPage):
		status, kind, body = "404 Not Found", "text/plain", []byte("there is /metrics alone\n")
	case errors.Is(err, errNoMethod):
		status, kind, body = "405 Method Not Allowed\r\nAllow: GET, HEAD", "text/plain", []byte("it can only be read\n")
	case err != nil:
		status, kind, body = "500 Internal Server Error", "text/plain; charset=utf-8", []byte(safe(err.Error())+"\n")
	default:
		body = text
	}
	head := fmt.Sprintf("HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", status, kind, len(body))
	if method == "HEAD" {
		body = nil
	}
	_, _ = conn.Write(append([]byte(head), body...)) // or the client has gone
}

var (
	errNoPage   = errors.New("no such page")
	errNoMethod = errors.New("no such method")
)

func (e *exporter) answer(ctx context.Context, method, path string) ([]byte, error) {
	switch {
	case path != "/metrics":
		return nil, errNoPage
	case method != "GET" && method != "HEAD":
		return nil, errNoMethod
	}
	return e.metrics(ctx)
}

// readRequest reads a request's head, of which the first line is of use.
func readRequest(r io.Reader) (method, path string, ok bool) {
	in := bufio.NewReader(io.LimitReader(r, maxRequest))
	first, err := in.ReadString('\n')
	for line := first; strings.TrimRight(line, "\r\n") != ""; line, err = in.ReadString('\n') {
		if err != nil {
			return "", "", false
		}
	}
	words := strings.Fields(first)
	if err != nil || len(words) != 3 || !strings.HasPrefix(words[2], "HTTP/1.") {
		return "", "", false
	}
	path, _, _ = strings.Cut(words[1], "?")
	return words[0], path, true
}

func (e *exporter) metrics(ctx context.Context) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.text != nil && time.Since(e.at) < scrapeEvery {
		return e.text, nil
	}
	guests, err := e.app.scrape(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if len(guests) == 0 && err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := writeMetrics(&text, guests); err != nil {
		return nil, err
	}
	e.text, e.at = text.Bytes(), time.Now()
	return e.text, nil
}

// listenMetrics listens on a path or on HOST:PORT. Without a host it is this
// machine's own.
func listenMetrics(ctx context.Context, address string) (net.Listener, error) {
	if strings.Contains(address, "/") {
		return listenPath(ctx, address)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, usageError{fmt.Errorf("--listen=%s: neither a path with a / nor [HOST]:PORT", address)}
	}
	if host == "" {
		host = "localhost"
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("--listen=%s: %w", address, err)
	}
	if tcp, ok := listener.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		warn("whoever reaches %s can read the names, images and figures of all guests", tcp)
	}
	return listener, nil
}

// listenPath makes a socket for its owner and group, in place of one on which
// nobody listens any more. In a directory with the setgid bit the group is that of
// the directory (inode(7)).
func listenPath(ctx context.Context, path string) (net.Listener, error) {
	if conn, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("--listen=%s: somebody listens there already", path)
	} else if errors.Is(err, unix.ECONNREFUSED) && isSocket(path) { // any other file refuses as well
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	before := unix.Umask(0o117)
	defer unix.Umask(before)
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("--listen=%s: %w", path, err)
	}
	return listener, nil
}

func isSocket(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSocket
}

func metricsURL(addr net.Addr) string {
	if addr.Network() == "unix" {
		return "/metrics on " + addr.String()
	}
	return "http://" + addr.String() + "/metrics"
}
