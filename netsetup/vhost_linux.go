package netsetup

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const vhostDevice = "/dev/vhost-net"

// The requests of linux/vhost.h that need no number of an architecture's own.
const (
	vhostGetFeatures = 0x8008af00 // _IOR(0xaf, 0x00, __u64)
	vhostSetOwner    = 0xaf01     // _IO(0xaf, 0x01)
)

// OpenVhost opens /dev/vhost-net n times, once for each queue pair of a NIC, for
// QEMU's vhostfds=. The owner of each, whose memory it works in, will be who
// first asks to be (VHOST_SET_OWNER), so nothing is asked of them here.
func OpenVhost(n int) ([]*os.File, error) {
	var files []*os.File
	for range n {
		f, err := openVhost()
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// VhostWorks opens /dev/vhost-net as QEMU would use it. A nil error says that
// the kernel has vhost and lets the caller have it.
func VhostWorks() error {
	f, err := openVhost()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := vhostIoctl(f, vhostSetOwner, nil); err != nil {
		return fmt.Errorf("%s: VHOST_SET_OWNER: %w", vhostDevice, err)
	}
	var features uint64
	if err := vhostIoctl(f, vhostGetFeatures, unsafe.Pointer(&features)); err != nil {
		return fmt.Errorf("%s: VHOST_GET_FEATURES: %w", vhostDevice, err)
	}
	return nil
}

func openVhost() (*os.File, error) {
	fd, err := unix.Open(vhostDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	// The node is there before the module is (MODULE_ALIAS devname), and opening
	// it as root loads that; where there is none, it says ENODEV.
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%s: %w: type: modprobe vhost_net", vhostDevice, err)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: vhostDevice, Err: err}
	}
	return os.NewFile(uintptr(fd), vhostDevice), nil
}

func vhostIoctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	if err := conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
	}); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}
