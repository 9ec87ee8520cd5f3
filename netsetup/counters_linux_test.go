package netsetup_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// ringLength is how many frames a tap holds by default (drivers/net/macvtap.c,
// TUN_READQ_SIZE).
const ringLength = 500

// vnetHeader is struct virtio_net_hdr, which a tap has before each frame until
// it is told otherwise.
const vnetHeader = 10

// fromGuest writes a frame to the tap as a guest would.
func (g *tapped) fromGuest(t *testing.T, frame []byte) {
	t.Helper()
	must(t, g.tap.SetWriteDeadline(time.Now().Add(2*time.Second)))
	if _, err := g.tap.Write(append(make([]byte, vnetHeader), frame...)); err != nil {
		t.Fatal(err)
	}
}

// read reads so many frames from the tap, and more until none has come for a
// while, and returns their number.
func (g *tapped) read(t *testing.T, expected int) (frames int) {
	t.Helper()
	buf := make([]byte, 1<<17)
	for {
		wait := 100 * time.Millisecond
		if frames < expected {
			wait = 2 * time.Second
		}
		must(t, g.tap.SetReadDeadline(time.Now().Add(wait)))
		_, err := g.tap.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return frames
		}
		must(t, err)
		frames++
	}
}

// newSilentLab makes a lab whose machine outside sends only what it is told to. Its
// IPv6 would report groups, whose hash may be that of broadcast.
func newSilentLab(t *testing.T) *nettest.Lab {
	t.Helper()
	lab := nettest.New(t)
	must(t, lab.Outside.Do(func() error {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/wire0/disable_ipv6", []byte("1"), 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}))
	return lab
}

func countersOf(t *testing.T, g *tapped) netsetup.Counters {
	t.Helper()
	counters, err := g.ns.Counters(g.Child)
	must(t, err)
	return counters
}

// flood sends frames of a size from across the wire, as somebody who says nothing
// else.
func flood(t *testing.T, lab *nettest.Lab, dst net.HardwareAddr, frames, size int) {
	t.Helper()
	frame := wire.Tagged(dst, mac(0xaa), string(make([]byte, size-14)))
	must(t, lab.Outside.Do(func() error {
		fd, err := packetSocket("wire0")
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range frames {
			if _, err := unix.Write(fd, frame); err != nil {
				return err
			}
		}
		return nil
	}))
}

// packetSocket opens a packet socket that sends on a link. Frames that nobody
// has read yet count against its buffer.
func packetSocket(dev string) (int, error) {
	link, err := net.InterfaceByName(dev)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<28),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 2}),
	)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func TestCounters(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			lab := newSilentLab(t)
			c := testChild(mode, 1)
			g := newTapped(t, lab, c)
			must(t, g.ns.SetFilter(c, netsetup.Filter{Multicast: groups(1)}))
			must(t, g.ns.Up(c))
			const size = 100
			flood(t, lab, c.MAC, 7, size)
			flood(t, lab, wire.Broadcast, 3, size)
			flood(t, lab, group(1), 2, size)
			if got := g.read(t, 12); got != 12 {
				t.Errorf("%d frames came, want 12", got)
			}
			for range 4 {
				g.fromGuest(t, wire.Tagged(lab.Outside.MAC, c.MAC, string(make([]byte, size-14))))
			}
			want := netsetup.Counters{RxPackets: 12, RxBytes: 12 * size, RxMulticast: 5, TxPackets: 4, TxBytes: 4 * size}
			if mode == configs.ModeSource {
				want.RxMulticast = 0
			}
			if diff := cmp.Diff(want, countersOf(t, g)); diff != "" {
				t.Errorf("counters (-want +got):\n%s", diff)
			}
		})
	}
}

// A guest that does not read loses what its ring has no room for, and that shows.
func TestRingOverflowShows(t *testing.T) {
	lab := newSilentLab(t)
	g := newTapped(t, lab, testChild(configs.ModeBridge, 1))
	must(t, g.ns.Up(g.Child))
	const sent = ringLength + 123
	flood(t, lab, g.MAC, sent, 60)
	want := netsetup.Counters{RxPackets: sent, RxBytes: sent * 60, RxDropped: sent - ringLength}
	if diff := cmp.Diff(want, countersOf(t, g)); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	if got := g.read(t, ringLength); got != ringLength {
		t.Errorf("%d frames came, want the ring's %d", got, ringLength)
	}
}

// What the limits drop shows, each on its own.
func TestDropsOfLimitsShow(t *testing.T) {
	lab := newSilentLab(t)
	g := newTapped(t, lab, testChild(configs.ModeBridge, 1))
	must(t, g.ns.Up(g.Child))
	must(t, g.ns.Shape(g.Child, configs.Bandwidth{Inbound: 1e6, Outbound: 8e6}))
	const size, sent = 1000, 400 // of which about 200 pass at once or wait
	flood(t, lab, g.MAC, sent, size)
	read := uint64(g.read(t, 100))
	g.neverFull(t)
	for range sent {
		g.fromGuest(t, wire.Tagged(lab.Outside.MAC, g.MAC, string(make([]byte, size-14))))
	}
	time.Sleep(queued)
	got := countersOf(t, g)
	if got.RxPoliced == 0 || got.RxPackets != sent || got.RxPackets-got.RxPoliced != read || got.RxDropped != 0 {
		t.Errorf("%+v, of %d frames sent and %d read", got, sent, read)
	}
	if got.TxShaped == 0 || got.TxPackets+got.TxShaped != sent || got.TxDropped != 0 {
		t.Errorf("%+v, of %d frames written", got, sent)
	}
	t.Logf("%+v", got)
}

// queued is longer than a frame waits for its turn under a limit.
const queued = 150 * time.Millisecond

// neverFull makes the tap take any number of frames that wait, as QEMU's do.
func (g *tapped) neverFull(t *testing.T) {
	t.Helper()
	conn, err := g.tap.SyscallConn()
	must(t, err)
	must(t, conn.Control(func(fd uintptr) {
		must(t, unix.IoctlSetPointerInt(int(fd), unix.TUNSETSNDBUF, 1<<31-1))
	}))
}

func TestCountersInJSON(t *testing.T) {
	data, err := json.Marshal(netsetup.Counters{RxPackets: 1, TxShaped: 2})
	must(t, err)
	want := `{"rx_packets":1,"rx_bytes":0,"rx_dropped":0,"rx_multicast":0,"rx_policed":0,"tx_packets":0,"tx_bytes":0,"tx_dropped":0,"tx_shaped":2}`
	if string(data) != want {
		t.Errorf("%s\nwant %s", data, want)
	}
}

func TestCountersOfNoChild(t *testing.T) {
	ns := newNamespace(t)
	_, err := ns.Counters(testChild(configs.ModeBridge, 1))
	var typed *netsetup.LinkError
	if !errors.As(err, &typed) {
		t.Errorf("%v, want a LinkError", err)
	}
}

// superFrame is a TCP segment of 64 KiB in one frame, behind a virtio_net_hdr
// that asks for its segmentation (linux/virtio_net.h).
func superFrame(dst, src net.HardwareAddr) []byte {
	const payload, ip, tcp = 65000, 20, 20
	buf := make([]byte, vnetHeader+14+ip+tcp+payload)
	copy(buf, []byte{unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, unix.VIRTIO_NET_HDR_GSO_TCPV4})
	for i, n := range []uint16{14 + ip + tcp, 1448, 14 + ip, 16} { // header, segment, checksum's start and offset
		binary.NativeEndian.PutUint16(buf[2+2*i:], n)
	}
	frame := buf[vnetHeader:]
	copy(frame, dst)
	copy(frame[6:], src)
	copy(frame[12:], []byte{0x08, 0x00, 0x45})
	binary.BigEndian.PutUint16(frame[16:], ip+tcp+payload)
	copy(frame[22:], []byte{64, unix.IPPROTO_TCP, 0, 0, 192, 0, 2, 9, 192, 0, 2, 99})
	frame[14+ip+12] = 5 << 4 // the TCP header's length in words
	return buf
}
