package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"vmrun/configs"
	"vmrun/qmp"
)

const (
	// replaySize is how much of the past a new viewer of the console is shown.
	replaySize = 8 << 10
	// viewerRoom is how many bytes a viewer may lag behind before it loses some.
	viewerRoom = 1 << 20
	// maxViewers is how many may look on at once; one more is hung up on.
	maxViewers = 64
	// typeTimeout is how long a guest may take for what was typed.
	typeTimeout = time.Second
	// viewerWrite is how many bytes are written to a viewer at a time, at most.
	viewerWrite = 16 << 10
	// viewerTimeout bounds one write to a viewer.
	viewerTimeout = 5 * time.Second
)

// console shares the guest's serial line among any number of viewers and keeps
// its log. Everybody sees everything; everybody may type.
type console struct {
	dir      runDir
	serial   net.Conn
	listener *net.UnixListener
	log      *rotatingFile
	slog     *slog.Logger
	heard    func([]byte) // is called with what the guest prints
	logSize  atomic.Int64 // that log is to have

	typing sync.Mutex // held while something is typed

	mu      sync.Mutex
	past    []byte
	viewers map[*viewer]bool // those that are still written to
	over    bool             // the guest has ended: nobody is let in any more
	end     time.Time        // once it is closing: when no viewer may write any more
	wg      sync.WaitGroup
}

// viewer is one who looks on. All but conn and wake is guarded by the console's lock.
type viewer struct {
	conn      net.Conn
	wake      chan struct{} // holds one: there is something to write, or to end
	out       []byte        // not written yet
	lagged    bool
	dismissed bool // ends after what it was sent
}

// dismiss ends a viewer after what it was sent. The caller holds the console's
// lock.
func (v *viewer) dismiss() {
	v.dismissed = true
	nudge(v.wake)
}

// newConsole connects to QEMU's end of the serial line and serves console.sock.
// What the guest prints heard hears of before anybody else.
func newConsole(ctx context.Context, dir runDir, logSize configs.Size, log *slog.Logger, heard func([]byte)) (*console, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var d net.Dialer
	serial, err := d.DialContext(ctx, "unix", dir.path(fileSerial))
	if err != nil {
		return nil, err
	}
	file, err := openRotating(dir.path(fileConsoleLog), int64(logSize))
	if err != nil {
		serial.Close()
		return nil, err
	}
	listener, err := listenUnix(dir.path(fileConsole))
	if err != nil {
		serial.Close()
		file.Close()
		return nil, err
	}
	c := &console{dir: dir, serial: serial, listener: listener, log: file, slog: log, heard: heard, viewers: map[*viewer]bool{}}
	c.logSize.Store(int64(logSize))
	c.wg.Go(c.read)
	c.wg.Go(func() { acceptAll(listener, c.welcome) })
	return c, nil
}

// Close disconnects everybody and waits until all goroutines have left.
func (c *console) Close() error {
	// Output that QEMU wrote right before its end is still in the socket.
	c.serial.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	c.listener.Close()
	c.mu.Lock()
	c.serial.SetWriteDeadline(time.Now())
	c.end = time.Now().Add(100 * time.Millisecond)
	for v := range c.viewers {
		v.conn.SetDeadline(c.end)
	}
	c.mu.Unlock()
	c.wg.Wait()
	c.serial.Close()
	return c.log.Close()
}

func (c *console) read() {
	defer c.hangUp()
	buf := make([]byte, 16<<10)
	for {
		n, err := c.serial.Read(buf)
		if n > 0 {
			c.heard(buf[:n])
			err := c.log.resize(c.logSize.Load())
			if err == nil {
				_, err = c.log.Write(buf[:n])
			}
			if err != nil {
				c.slog.Warn("console log", "error", err)
			}
			c.broadcast(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

func (c *console) broadcast(data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past = append(c.past, data...)
	if over := len(c.past) - replaySize; over > 0 {
		c.past = append(c.past[:0], c.past[over:]...)
	}
	for v := range c.viewers {
		if !v.dismissed {
			v.send(data)
		}
	}
}

// send queues data for a viewer. One that does not keep up loses data and is
// told so; it slows nobody. The caller holds the console's lock.
func (v *viewer) send(data []byte) {
	room := viewerRoom
	if v.lagged {
		room /= 2 // or it would see scraps, of what happens to fit
	}
	if len(v.out)+len(data) > room {
		v.lagged = true
		return
	}
	if v.lagged {
		v.out = append(v.out, "\r\n[vmrun: this viewer was too slow, output was skipped]\r\n"...)
		v.lagged = false
	}
	v.out = append(v.out, data...)
	nudge(v.wake)
}

// hangUp ends all viewers after what they were sent.
func (c *console) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for v := range c.viewers {
		v.dismiss()
	}
	c.over = true
}

// acceptAll hands each connection to take, until the listener is closed.
func acceptAll(listener *net.UnixListener, take func(*net.UnixConn)) {
	for {
		conn, err := listener.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(50 * time.Millisecond) // out of descriptors; they come back
		default:
			take(conn)
		}
	}
}

// welcome lets in who may look.
func (c *console) welcome(conn *net.UnixConn) {
	peer := qmp.PeerOf(conn)
	if err := c.dir.admits(peer); err != nil {
		conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)) // a new socket has room for it
		fmt.Fprintf(conn, "[vmrun: %v]\r\n", err)
		conn.Close()
		return
	}
	room := maxViewers
	if !peer.Owns() {
		room /= 2 // they leave root some
	}
	c.add(conn, room)
}

// add lets a viewer in, if there are fewer than room.
func (c *console) add(conn net.Conn, room int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || len(c.viewers) >= room {
		conn.Close()
		return
	}
	v := &viewer{conn: conn, wake: make(chan struct{}, 1)}
	v.send(c.past)
	c.viewers[v] = true
	c.wg.Go(func() { c.write(v) })
	c.wg.Go(func() { c.typed(v) })
}

// write sends a viewer what it is to see, until the guest or the viewer ends.
func (c *console) write(v *viewer) {
	for range v.wake {
		data, last := c.due(v)
		if _, err := v.conn.Write(data); err != nil || last {
			break
		}
	}
	v.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	v.dismiss()
	delete(c.viewers, v)
}

// due is what a viewer is to be written now, for which it gets its time, and whether
// that is all it will ever be; all viewers together have until end.
func (c *console) due(v *viewer) (data []byte, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline := time.Now().Add(viewerTimeout)
	if !c.end.IsZero() {
		deadline = c.end
	}
	v.conn.SetWriteDeadline(deadline)
	n := min(len(v.out), viewerWrite)
	data, v.out = v.out[:n:n], v.out[n:]
	if len(v.out) > 0 {
		nudge(v.wake)
	}
	return data, v.dismissed && len(v.out) == 0
}

// typed passes on what a viewer types, until it leaves.
func (c *console) typed(v *viewer) {
	buf := make([]byte, 1024)
	for {
		n, err := v.conn.Read(buf)
		if n > 0 {
			c.enter(buf[:n])
		}
		if err != nil {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	v.dismiss()
}

// enter writes what was typed to the guest. What a guest does not take in time
// is lost, as it is on a serial line without flow control.
func (c *console) enter(typed []byte) {
	c.typing.Lock()
	defer c.typing.Unlock()
	deadline := time.Now().Add(typeTimeout)
	c.mu.Lock()
	if !c.end.IsZero() && c.end.Before(deadline) {
		deadline = c.end
	}
	c.serial.SetWriteDeadline(deadline)
	c.mu.Unlock()
	_, _ = c.serial.Write(typed)
}
