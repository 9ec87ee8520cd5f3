package netsetup

import (
	"errors"
	"fmt"
	"math/bits"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How much a Learner may cost. What does not fit is lost, and comes again: who
// wants to be known on a network repeats itself.
const (
	learnPace   = 100 * time.Millisecond // between two looks at the socket
	learnBatch  = 128                    // frames at each
	learnBuffer = 128 << 10              // bytes; the kernel doubles it (socket(7), SO_RCVBUF)
	tellPace    = time.Second            // between two calls of changed
)

// Learner knows a guest's addresses from what passes its child: ARP, DHCP and
// IPv6 neighbour discovery. It sends nothing. Addresses on VLANs that the guest
// tags itself are not the child's and are not listed.
type Learner struct {
	file    *os.File
	conn    syscall.RawConn
	changed func()
	closing chan struct{}
	done    chan struct{} // closed when the reader has ended
	once    sync.Once
	buf     []byte // the reader's

	mu    sync.Mutex // of what follows
	table *table
	told  time.Time // when changed was last called
}

// Learn listens on the child until Close. The child may be down still. The seed
// is what was known before, when another process had the guest; what a Learner
// does not learn itself is dropped from it.
//
// After the addresses, their sources, leases or conflicts have changed, changed
// is called: at once, then at most every second, and never twice at a time. It
// must not wait for whoever calls Close, and nil is fine. The error is a
// *LinkError.
func (ns *Namespace) Learn(c Child, seed []Address, changed func()) (*Learner, error) {
	var file *os.File
	var mac net.HardwareAddr
	err := ns.Do(func() (err error) {
		if mac = c.MAC; mac == nil {
			link, err := net.InterfaceByIndex(c.Index)
			if err != nil {
				return err
			}
			mac = link.HardwareAddr
		}
		if len(mac) != len(hwaddr{}) {
			return fmt.Errorf("%q is no Ethernet MAC", mac)
		}
		file, err = learnSocket(c)
		return err
	})
	if err != nil {
		return nil, c.err("learn addresses", err)
	}
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, c.err("learn addresses", err)
	}
	l := &Learner{
		file: file, conn: conn, changed: changed,
		closing: make(chan struct{}), done: make(chan struct{}),
		buf:   make([]byte, snapLength),
		table: newTable(time.Now(), hwaddr(mac), seed),
	}
	_ = file.SetReadDeadline(time.Now()) // the seed is swept first
	go l.run()
	return l, nil
}

// learnSocket opens the packet socket in the calling thread's namespace. It has
// no protocol and so hears nothing until it is bound, with its filter in place
// (packet(7)). A child hands its frames to its tap before protocols are looked
// at, which leaves those who want all of them.
func learnSocket(c Child) (*os.File, error) {
	instructions, err := learnFilter()
	if err != nil {
		return nil, err
	}
	var filter []unix.SockFilter
	for _, i := range instructions {
		filter = append(filter, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "learn "+c.Name)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err = errors.Join(
		os.NewSyscallError("attach filter", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)),
		os.NewSyscallError("set buffer", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, learnBuffer)),
	)
	if err == nil {
		all := bits.ReverseBytes16(unix.ETH_P_ALL)
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: c.Index}))
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// Addresses returns what is known now, sorted, in a slice of the caller's own;
// after Close, what was known then.
func (l *Learner) Addresses() []Address {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.addresses()
}

// SetMAC tells that the guest has another MAC from now on. It keeps its
// addresses.
func (l *Learner) SetMAC(mac net.HardwareAddr) {
	if len(mac) != len(hwaddr{}) {
		return
	}
	l.change(func(t *table) { t.mac = hwaddr(mac) })
}

// SetPaused tells whether the guest's CPUs stand still. Then its silence, and
// questions that it does not answer, say nothing.
func (l *Learner) SetPaused(paused bool) {
	l.change(func(t *table) { t.pause(time.Now(), paused) })
}

// Forget drops all addresses: the guest was reset, its link went down, or its
// NIC was unplugged. What it says afterwards is learned anew.
func (l *Learner) Forget() {
	l.change((*table).forgetAll)
}

// change changes the table and makes the reader look at it.
func (l *Learner) change(fn func(*table)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fn(l.table)
	_ = l.file.SetReadDeadline(time.Now()) // an error says that it is closed
}

// Close ends the Learner and its hold on the namespace. When it returns, changed
// is not running and is not called again. Closing twice is harmless.
func (l *Learner) Close() error {
	var err error
	l.once.Do(func() {
		close(l.closing)
		err = l.file.Close()
	})
	<-l.done
	return err
}

// run reads until the socket is closed. Its sleep after each batch bounds what a
// guest, or its network, can make it cost.
func (l *Learner) run() {
	defer close(l.done)
	for {
		err := l.conn.Read(l.batch)
		late := errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !late {
			return // closed
		}
		if l.sweep() && l.changed != nil {
			l.changed()
		}
		if late {
			continue
		}
		select {
		case <-l.closing:
			return
		case <-time.After(learnPace):
		}
	}
}

// sweep forgets what is over, says when the next read has to end for that, and
// whether it is time to call changed.
func (l *Learner) sweep() (tell bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	next := l.table.sweep(now)
	if l.table.touched {
		if again := l.told.Add(tellPace); now.Before(again) {
			next = earlier(next, again)
		} else {
			tell = true
			l.told, l.table.touched = now, false
		}
	}
	_ = l.file.SetReadDeadline(next) // an error says that it is closed
	return tell
}

// batch reads the frames that wait on fd, up to learnBatch. It reports false,
// for the runtime to wait, when there is none.
func (l *Learner) batch(fd uintptr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for n := range learnBatch {
		size, from, err := unix.Recvfrom(int(fd), l.buf, 0)
		if errors.Is(err, unix.EAGAIN) && n == 0 {
			return false
		}
		if err != nil {
			break // ENETDOWN: the child is down; it is heard again when it is up
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok {
			l.table.frame(now, link.Pkttype == unix.PACKET_OUTGOING, l.buf[:size])
		}
	}
	stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && stats.Drops > 0 {
		l.table.unaskAll() // the guest's answers may be among what was lost
	}
	return true
}
