package launcher

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// processID tells a process from all others of this boot: a pid is used again,
// a pid with its start time is not.
type processID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot (proc(5), stat field 22)
}

// errGone says that the process meant is no more.
var errGone = errors.New("the process is gone")

// process is a QEMU that is watched through its pidfd.
type process struct {
	id    processID
	pidfd *os.File
	done  chan struct{} // closed when it is gone
	exit  exit          // valid after done
}

// keepDescriptors lets no program that is started inherit a descriptor which it
// is not given: whoever started this process may have left some open, a lock
// for example, that a guest would keep for days.
func keepDescriptors() error {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	return nil
}

// startProcess starts a program on the calling thread, whose namespaces, root,
// credentials and filters it inherits. The child is to be given to watchChild.
func startProcess(path string, args []string, files []*os.File) (*os.Process, error) {
	if err := keepDescriptors(); err != nil {
		return nil, err
	}
	return os.StartProcess(path, append([]string{filepath.Base(path)}, args...), &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/bin:/bin", "LC_ALL=C"},
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// watchChild watches a child that nobody has waited for. With an error it is
// killed.
func watchChild(child *os.Process) (*process, error) {
	p, _, err := open(child.Pid) // not waited for, so the pid is still its own
	if err != nil {
		child.Kill()
		child.Wait()
		return nil, err
	}
	go func() {
		if state, err := child.Wait(); err == nil {
			p.exit.status, p.exit.known = state.Sys().(syscall.WaitStatus)
		}
		p.pidfd.Close()
		close(p.done)
	}()
	return p, nil
}

// findProcess opens the process with this identity. The error is errGone when
// it has ended.
func findProcess(id processID) (*process, error) {
	p, err := openProcess(id.PID)
	if err != nil {
		return nil, err
	}
	if id.Start != 0 && p.id != id {
		p.pidfd.Close()
		return nil, errGone
	}
	go p.poll()
	return p, nil
}

// openProcess opens a process that lives. The error is errGone when there is
// none.
func openProcess(pid int) (*process, error) {
	p, ended, err := open(pid)
	if err == nil && ended {
		p.pidfd.Close()
		return nil, errGone
	}
	return p, err
}

// open opens a pidfd first and reads the start time afterwards: both then are
// of the same process, or the read fails. A process that has ended, but was not
// waited for, can be opened too.
func open(pid int) (p *process, ended bool, err error) {
	if pid <= 0 {
		return nil, false, errGone
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	switch {
	case errors.Is(err, unix.ESRCH),
		errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // a thread has the number by now (the latter is Linux 6.18's word for it)
		return nil, false, errGone
	case err != nil:
		return nil, false, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	start, ended, err := processStat(pid)
	if err != nil {
		unix.Close(fd)
		return nil, false, errGone
	}
	return &process{
		id:    processID{PID: pid, Start: start},
		pidfd: os.NewFile(uintptr(fd), "pidfd"),
		done:  make(chan struct{}),
	}, ended, nil
}

// poll waits for a process that this program has not started; a pidfd is readable
// when its process has ended (pidfd_open(2)).
func (p *process) poll() {
	defer close(p.done)
	defer p.pidfd.Close()
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return
	}
	conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || (err != nil && !errors.Is(err, unix.EINTR))
	})
}

// reap waits for a process that has ended, if it is a child of ours that nobody waits
// for: of the program that this process has executed before (execve(2)).
func (p *process) reap() {
	if start, ended, err := processStat(p.id.PID); err == nil && ended && start == p.id.Start {
		_, _ = syscall.Wait4(p.id.PID, nil, syscall.WNOHANG, nil) // ECHILD
	}
}

// signal sends sig; a process that is gone is no error.
func (p *process) signal(sig unix.Signal) error {
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return nil // closed, because the process is gone
	}
	var sendErr error
	if err := conn.Control(func(fd uintptr) { sendErr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return nil
	}
	if sendErr != nil && !errors.Is(sendErr, unix.ESRCH) {
		return fmt.Errorf("signal QEMU: %w", sendErr)
	}
	return nil
}

// kill ends the process and waits until it is gone.
func (p *process) kill() error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(killTimeout):
		return fmt.Errorf("QEMU (pid %d) did not end on SIGKILL within %v: it hangs in the kernel", p.id.PID, killTimeout)
	}
}

// killTimeout bounds the wait for a killed process, which can be long only
// while it is in an uninterruptible sleep, on a dead disk for example.
const killTimeout = 10 * time.Second

// exiting reports whether the process is on its way out, from which nothing holds it
// back: it has closed its files by now, perhaps, and gives back its memory.
func (p *process) exiting() bool {
	const exiting = 0x00000004 // PF_EXITING (linux/sched.h)
	return processFlags(p.id.PID)&exiting != 0
}

// processFlags are what the kernel notes of a process (proc(5), stat field 9), or 0
// of one that is gone.
func processFlags(pid int) uint64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := statFields(data)
	if len(fields) < 7 {
		return 0
	}
	flags, _ := strconv.ParseUint(fields[6], 10, 64)
	return flags
}

// startTime reads the start time of a process that lives.
func startTime(pid int) (uint64, error) {
	start, ended, err := processStat(pid)
	if err == nil && ended {
		return 0, errGone
	}
	return start, err
}

// processStat reads when a process started, and whether it has ended.
func processStat(pid int) (start uint64, ended bool, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false, err
	}
	start, ended, err = parseStat(data)
	if err != nil {
		return 0, false, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return start, ended, nil
}

// statFields are those of a process's stat from the third on, which is fields[0]. The
// command name before them is what the process likes to be called, blanks and
// brackets included.
func statFields(data []byte) []string {
	return strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
}

// parseStat reads the state, the number of threads and the start time in a
// process's stat (proc(5), fields 3, 20 and 22). A process whose first thread alone
// has ended looks like a zombie, and lives.
func parseStat(data []byte) (start uint64, ended bool, err error) {
	fields := statFields(data)
	if len(fields) < 20 {
		return 0, false, errors.New("unexpected form")
	}
	threads, err := strconv.Atoi(fields[17])
	if err != nil {
		return 0, false, err
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, (fields[0] == "Z" || fields[0] == "X") && threads < 2, err
}

// findOrphan looks for a QEMU of this run directory that no record names: one
// whose supervisor died between starting it and writing that down.
func findOrphan(dir runDir) (*process, error) {
	mark := dir.mark()
	mark.buf = make([]byte, 16<<10) // ten times what a guest's mounts take
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !mark.on(pid) {
			continue
		}
		p, err := findProcess(processID{PID: pid})
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if mark.on(pid) { // still the same process, now that the pidfd pins it
			return p, nil
		}
		p.pidfd.Close()
	}
	return nil, errGone
}

// bootID identifies this boot (random(4)).
var bootID = sync.OnceValue(func() string {
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
})
