package qmp

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of a unix socket, as it was when it
// connected (SO_PEERCRED, unix(7)). All are -1 when the kernel does not say.
type Peer struct {
	PID, UID, GID int
}

func peerOf(conn net.Conn) Peer {
	peer := Peer{PID: -1, UID: -1, GID: -1}
	control(conn, func(fd int) {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			peer = Peer{PID: int(cred.Pid), UID: int(cred.Uid), GID: int(cred.Gid)}
		}
	})
	return peer
}

// hungUp reports that the peer has closed its end altogether, even while
// bytes of it are still unread. One that has shut down only its writing side
// waits for answers and has not hung up. What is no socket counts as hung up.
func hungUp(conn net.Conn) bool {
	gone := true
	control(conn, func(fd int) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(fds, 0)
		gone = err == nil && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone
}

func control(conn net.Conn, do func(fd int)) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) { do(int(fd)) })
}
