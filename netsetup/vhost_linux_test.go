package netsetup_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// With vhost each open is one of its own; without, the error says what to type.
func TestOpenVhost(t *testing.T) {
	nettest.Root(t)
	files, err := netsetup.OpenVhost(3)
	works := netsetup.VhostWorks()
	if _, missing := os.Stat("/dev/vhost-net"); missing != nil {
		for _, err := range []error{err, works} {
			if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "modprobe vhost_net") {
				t.Errorf("%v", err)
			}
		}
		return
	}
	if err != nil || works != nil || len(files) != 3 {
		t.Fatalf("%d files, %v, %v", len(files), err, works)
	}
	for _, f := range files {
		must(t, f.Close())
	}
}

// The requests and structures of linux/vhost.h, which x/sys does not have.
const (
	vhostSetOwner      = 0xaf01
	vhostGetFeatures   = 0x8008af00
	vhostSetFeatures   = 0x4008af00
	vhostSetMemTable   = 0x4008af03
	vhostSetVringNum   = 0x4008af10
	vhostSetVringAddr  = 0x4028af11
	vhostSetVringBase  = 0x4008af12
	vhostSetVringKick  = 0x4008af20
	vhostNetSetBackend = 0x4008af30
)

type (
	vhostMemory struct {
		regions, _                     uint32
		guest, size, user, flagsAndPad uint64
	}
	vringState struct{ index, num uint32 }
	vringAddr  struct {
		index, flags           uint32
		desc, used, avail, log uint64
	}
	vringFile struct {
		index uint32
		fd    int32
	}
)

// The kernel itself takes a frame from a ring in memory, as a guest's virtio
// driver puts it there (virtio 1.2, 2.7), and sends it by a child's tap.
func TestVhostSends(t *testing.T) {
	nettest.Kernel(t, "vhost")
	lab := nettest.New(t)
	g := newGuest(t, lab, testChild(configs.ModeBridge, 1))
	files, err := netsetup.OpenVhost(1)
	must(t, err)
	defer files[0].Close()
	ioctl := func(name string, request uintptr, arg unsafe.Pointer) {
		t.Helper()
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, files[0].Fd(), request, uintptr(arg)); errno != 0 {
			t.Fatalf("%s: %v", name, errno)
		}
	}
	memory, err := unix.Mmap(-1, 0, 4<<12, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	must(t, err)
	defer unix.Munmap(memory)
	base := uint64(uintptr(unsafe.Pointer(&memory[0])))
	const transmit, size, descAt, availAt, usedAt, frameAt = 1, 8, 0, 1 << 12, 2 << 12, 3 << 12

	frame := append(make([]byte, 10), wire.Tagged(wire.Broadcast, g.MAC, "by vhost")...) // struct virtio_net_hdr first
	copy(memory[frameAt:], frame)
	binary.NativeEndian.PutUint64(memory[descAt:], base+frameAt)
	binary.NativeEndian.PutUint32(memory[descAt+8:], uint32(len(frame)))
	binary.NativeEndian.PutUint16(memory[availAt+2:], 1) // one entry, which is 0: descriptor 0

	var features uint64
	ioctl("VHOST_SET_OWNER", vhostSetOwner, nil)
	ioctl("VHOST_GET_FEATURES", vhostGetFeatures, unsafe.Pointer(&features))
	t.Logf("features %#x", features)
	features = 0
	ioctl("VHOST_SET_FEATURES", vhostSetFeatures, unsafe.Pointer(&features))
	ioctl("VHOST_SET_MEM_TABLE", vhostSetMemTable, unsafe.Pointer(&vhostMemory{regions: 1, guest: base, size: uint64(len(memory)), user: base}))
	ioctl("VHOST_SET_VRING_NUM", vhostSetVringNum, unsafe.Pointer(&vringState{transmit, size}))
	ioctl("VHOST_SET_VRING_BASE", vhostSetVringBase, unsafe.Pointer(&vringState{transmit, 0}))
	ioctl("VHOST_SET_VRING_ADDR", vhostSetVringAddr, unsafe.Pointer(&vringAddr{index: transmit, desc: base + descAt, used: base + usedAt, avail: base + availAt}))
	kick, err := unix.Eventfd(1, unix.EFD_CLOEXEC) // kicked already
	must(t, err)
	defer unix.Close(kick)
	ioctl("VHOST_SET_VRING_KICK", vhostSetVringKick, unsafe.Pointer(&vringFile{transmit, int32(kick)}))
	capture := lab.Outside.Capture("wire0", "by vhost")
	ioctl("VHOST_NET_SET_BACKEND", vhostNetSetBackend, unsafe.Pointer(&vringFile{transmit, int32(g.tap.Fd())}))
	if got := capture.Wait(1, 2*time.Second).Received(); got != 1 {
		t.Errorf("%d frames came out, want 1", got)
	}
	ioctl("VHOST_NET_SET_BACKEND", vhostNetSetBackend, unsafe.Pointer(&vringFile{transmit, -1}))
}

// QEMU takes the descriptors of two queue pairs and greets. It aborts where
// vhost does not work (net/tap.c, vhost_net_init).
func TestQEMUTakesVhost(t *testing.T) {
	nettest.Kernel(t, "vhost")
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skipf("%v: apt-get install qemu-system-x86", err)
	}
	lab := nettest.New(t)
	c := testChild(configs.ModeBridge, 1)
	c.Queues = 2
	ns := newNamespace(t)
	must(t, ns.Quiet())
	must(t, create(t, lab, ns, c))
	files, err := netsetup.OpenVhost(2)
	must(t, err)
	files = append(openTaps(t, ns, c), files...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-machine", "q35", "-accel", "tcg", "-m", "64",
		"-netdev", "tap,id=net0,fds=3:4,vhost=on,vhostfds=5:6",
		"-device", "virtio-net-pci,netdev=net0,mq=on,vectors=6,romfile=,mac="+c.MAC.String(), "-qmp", "stdio")
	var stderr strings.Builder
	cmd.ExtraFiles, cmd.Stderr = files, &stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	start := time.Now()
	must(t, ns.Do(cmd.Start))
	lines := bufio.NewScanner(stdout)
	said := func(want string) {
		t.Helper()
		if !lines.Scan() || !strings.Contains(lines.Text(), want) {
			t.Errorf("QEMU says %q, %v; want %s", lines.Text(), lines.Err(), want)
		}
		t.Logf("%s after %v", want, time.Since(start).Round(time.Millisecond))
	}
	said(`"QMP"`)
	// The greeting is sent before the devices are made, the answers are not.
	if _, err = io.WriteString(stdin, `{"execute":"qmp_capabilities"}{"execute":"query-status"}{"execute":"quit"}`); err != nil {
		t.Error(err)
	}
	said(`"return": {}`)
	said(`"prelaunch"`)
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, stderr.String())
	}
}
