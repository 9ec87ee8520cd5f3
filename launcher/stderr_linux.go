package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// qemuLogSize bounds qemu.log, in bytes.
	qemuLogSize = 1 << 20
	// pipeSize is how much a pipe holds (pipe(7)).
	pipeSize = 64 << 10
	// maxTakes is how often a pipe can be read before it is empty, once nobody
	// writes to it: QEMU may have made it larger, up to fs.pipe-max-size, and may
	// have put a single byte into each of its pages.
	maxTakes = 1 << 20 / 4096
)

// lossy is said in qemu.log where the pipe was found full.
const lossy = "\n[vmrun: QEMU says more than can be logged; some of it may be missing from here on]\n"

// stderrPipe carries QEMU's standard error to qemu.log, which QEMU thereby
// cannot fill without bound. It is a FIFO in the run directory: the next
// supervisor finds it there, and a QEMU is known by it.
//
// Nobody is ever kept waiting: QEMU's end does not block, so that words for
// which there is no room are dropped. Both ends are open for reading and
// writing (fifo(7)), each by itself, since QEMU can change the flags of its own.
// So the pipe keeps what QEMU says while it has no supervisor, who in turn can
// ask whether the pipe is full.
type stderrPipe struct {
	fifo *os.File
	conn syscall.RawConn
	log  *rotatingFile
	slog *slog.Logger
	buf  []byte
	full bool          // it was when it was last looked at
	done chan struct{} // closed when nobody reads it any more
}

// openPipe reads a FIFO of a run directory into a log of it, "qemu.log" for
// example.
func openPipe(dir runDir, pipe, into string, log *slog.Logger) (*stderrPipe, error) {
	fifo, err := openFIFO(dir.path(pipe))
	if err != nil {
		return nil, err
	}
	conn, err := fifo.SyscallConn()
	if err != nil {
		fifo.Close()
		return nil, err
	}
	file, err := openRotating(dir.path(into), qemuLogSize)
	if err != nil {
		fifo.Close()
		return nil, err
	}
	p := &stderrPipe{fifo: fifo, conn: conn, log: file, slog: log, buf: make([]byte, pipeSize), done: make(chan struct{})}
	go p.read()
	return p, nil
}

func openFIFO(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
}

func (p *stderrPipe) read() {
	defer close(p.done)
	for p.conn.Read(func(fd uintptr) bool { return p.take(int(fd)) }) == nil {
	}
}

// take moves a buffer full from the pipe to the log, and reports whether there
// was anything.
func (p *stderrPipe) take(fd int) bool {
	room, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 0)
	full := err == nil && room == 0
	n, err := unix.Read(fd, p.buf)
	if err != nil || n == 0 {
		return false
	}
	if _, err := p.log.Write(p.buf[:n]); err != nil {
		p.slog.Warn("QEMU's log, or its companions'", "error", err)
	}
	if full && !p.full {
		p.log.Write([]byte(lossy)) // or lost, like what is missing
	}
	p.full = full
	return true
}

// close stops reading, once what QEMU has said so far is in the log.
func (p *stderrPipe) close() error {
	if p == nil || p.conn == nil {
		return nil
	}
	p.fifo.SetReadDeadline(time.Now())
	<-p.done
	p.conn.Control(func(fd uintptr) {
		for takes := 0; takes < maxTakes && p.take(int(fd)); takes++ {
		}
	})
	p.conn = nil
	return errors.Join(p.fifo.Close(), p.log.Close())
}

// openLog makes the pipe for QEMU's standard error, and one for its companions'
// where there are some, and begins their logs anew.
func (l *life) openLog(context.Context) (err error) {
	if l.stderr, err = l.makePipe(fileStderr, fileQEMULog); err != nil {
		return err
	}
	if len(l.plan.companions) > 0 {
		if l.whispers, err = l.makePipe(fileCompanions, fileCompanionLog); err != nil {
			return err
		}
	}
	if l.files[fileStderr], err = openFIFO(l.dir.path(fileStderr)); err != nil {
		return err
	}
	l.files["/dev/null"], err = os.Open("/dev/null")
	return err
}

func (l *life) makePipe(pipe, log string) (*stderrPipe, error) {
	for _, file := range []string{pipe, log, log + olderPart} {
		if err := removeFile(l.dir.path(file)); err != nil {
			return nil, err
		}
	}
	path := l.dir.path(pipe)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("mkfifo %s: %w", path, err)
	}
	l.undo.push(pipe, func() error { return l.removeOwn(pipe) })
	p, err := openPipe(l.dir, pipe, log, l.log)
	if err != nil {
		return nil, err
	}
	l.undo.push(log, p.close)
	return p, nil
}

// adoptLog goes on with QEMU's log. A QEMU that an earlier vmrun has started
// writes it by itself, and one whose words cannot be had is adopted all the same.
func (l *life) adoptLog(context.Context) (err error) {
	l.stderr, err = openPipe(l.dir, fileStderr, fileQEMULog, l.log)
	if err == nil {
		l.undo.push(fileQEMULog, l.stderr.close)
	} else if !errors.Is(err, os.ErrNotExist) {
		l.log.Warn("what the adopted guest's QEMU says is not logged", "error", err)
	}
	if p, err := openPipe(l.dir, fileCompanions, fileCompanionLog, l.log); err == nil {
		l.undo.push(fileCompanionLog, p.close)
	} else if !errors.Is(err, os.ErrNotExist) {
		l.log.Warn("what the adopted guest's companions say is not logged", "error", err)
	}
	return nil
}

// lastWords are the last lines that QEMU wrote. It has ended.
func (l *life) lastWords() []string {
	if err := l.stderr.close(); err != nil {
		l.log.Warn("QEMU's log", "error", err)
	}
	return tail(l.dir.path(fileQEMULog), quoted)
}
