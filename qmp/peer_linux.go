package qmp

import (
	"net"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of a unix socket, as it was when it
// connected (SO_PEERCRED and SO_PEERGROUPS, unix(7)). All numbers are -1 when the
// kernel does not say.
type Peer struct {
	PID, UID, GID int
	Groups        []int // the supplementary ones
}

// PeerOf returns the process at the other end of conn.
func PeerOf(conn net.Conn) Peer {
	peer := Peer{PID: -1, UID: -1, GID: -1}
	control(conn, func(fd int) {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			peer = Peer{PID: int(cred.Pid), UID: int(cred.Uid), GID: int(cred.Gid), Groups: peerGroups(fd)}
		}
	})
	return peer
}

// Owns reports whether the peer is root, or the user of this process.
func (p Peer) Owns() bool { return p.UID == 0 || p.UID == os.Geteuid() && p.UID >= 0 }

// In reports whether the peer belongs to a group.
func (p Peer) In(gid int) bool { return gid >= 0 && (p.GID == gid || slices.Contains(p.Groups, gid)) }

// peerGroups are none when the kernel does not say.
func peerGroups(fd int) []int {
	gids := make([]uint32, 64)
	for range 2 {
		size := uint32(len(gids) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&gids[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			groups := make([]int, size/4)
			for i := range groups {
				groups[i] = int(gids[i])
			}
			return groups
		case unix.ERANGE: // size is how much it takes (net/core/sock.c)
			gids = make([]uint32, size/4)
		default:
			return nil
		}
	}
	return nil
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
