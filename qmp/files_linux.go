package qmp

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// errFiles marks descriptors that were never handed over.
var errFiles = errors.New("cannot send descriptors")

// maxFiles is TCP_MAX_FDS of QEMU's chardev/char-socket.c.
const maxFiles = 16

// writeFiles sends line with the descriptors of files as SCM_RIGHTS. They
// travel with the first byte, so the rest may follow as plain bytes.
func writeFiles(conn net.Conn, line []byte, files []*os.File) (int, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%w: not a unix socket", errFiles)
	}
	if len(files) > maxFiles {
		return 0, fmt.Errorf("%w: over %d", errFiles, maxFiles)
	}
	var n int
	err := withFDs(files, nil, func(fds []int) (err error) {
		n, _, err = uc.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
		return err
	})
	if err != nil || n == len(line) {
		return n, err
	}
	rest, err := uc.Write(line[n:])
	return n + rest, err
}

// withFDs calls do while every file is held open. It goes by way of
// SyscallConn, since File.Fd would clear O_NONBLOCK on descriptions that
// others share.
func withFDs(files []*os.File, fds []int, do func([]int) error) error {
	if len(files) == 0 {
		return do(fds)
	}
	rc, err := files[0].SyscallConn()
	if err != nil {
		return fmt.Errorf("%w: %w", errFiles, err)
	}
	var inner error
	err = rc.Control(func(fd uintptr) {
		inner = withFDs(files[1:], append(fds, int(fd)), do)
	})
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errFiles, files[0].Name(), err)
	}
	return inner
}
