package netsetup

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is an open handle on a network namespace. The handle keeps the
// namespace alive until it is closed; so does every socket opened inside.
type Namespace struct {
	file *os.File
}

// NewNamespace makes an empty network namespace (unshare(2), CLONE_NEWNET).
func NewNamespace() (*Namespace, error) {
	var ns *Namespace
	err := OnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespace: unshare: %w", err)
		}
		ns, err = CurrentNamespace()
		return err
	})
	return ns, err
}

// CurrentNamespace opens the network namespace of the calling thread.
func CurrentNamespace() (*Namespace, error) {
	return openNamespace("/proc/thread-self/ns/net")
}

// NamespaceOf opens the network namespace of a process. The caller makes sure,
// with a pidfd, that pid still is the process it means.
func NamespaceOf(pid int) (*Namespace, error) {
	return openNamespace(fmt.Sprintf("/proc/%d/ns/net", pid))
}

func openNamespace(path string) (*Namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return &Namespace{file: f}, nil
}

// Do runs fn on an operating system thread of its own inside the namespace and
// returns fn's error. The thread ends with fn, so fn may change what belongs to
// a thread (credentials, capabilities, no_new_privs); a process that fn starts
// inherits all of it.
func (ns *Namespace) Do(fn func() error) error {
	return OnThread(func() error {
		if err := ns.with(func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) }); err != nil {
			return fmt.Errorf("network namespace: setns: %w", err)
		}
		return fn()
	})
}

// ID is the namespace's identity: the inode number of its nsfs file, unique
// among the namespaces alive (namespaces(7)).
func (ns *Namespace) ID() (uint64, error) {
	var st unix.Stat_t
	if err := ns.with(func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return 0, fmt.Errorf("network namespace: %w", err)
	}
	return st.Ino, nil
}

// with runs fn with the handle's descriptor, which stays open meanwhile. The
// error is os.ErrClosed after Close.
func (ns *Namespace) with(fn func(fd int) error) error {
	conn, err := ns.file.SyscallConn()
	if err != nil {
		return err
	}
	var fnErr error
	if err := conn.Control(func(fd uintptr) { fnErr = fn(int(fd)) }); err != nil {
		return os.ErrClosed
	}
	return fnErr
}

// Close gives up the handle. The namespace ends with its last process, socket
// and handle. Closing twice is harmless.
func (ns *Namespace) Close() error {
	if ns == nil {
		return nil
	}
	if err := ns.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("network namespace: %w", err)
	}
	return nil
}

// OnThread runs fn on a thread that is thrown away afterwards, whatever fn has made of
// it: the goroutine ends locked, which makes the runtime end its thread. The main thread
// is never used, because the runtime parks it instead of ending it. Parked inside a
// guest's namespace it would keep that alive, and as another user the process would be
// that user's to others (proc(5)). The error is fn's.
func OnThread(fn func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			errc <- fn()
			return
		}
		errc <- OnThread(fn) // waits here, so the next goroutine gets another thread
		runtime.UnlockOSThread()
	}()
	return <-errc
}
