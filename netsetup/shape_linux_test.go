package netsetup_test

import (
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

func shapedIs(t *testing.T, g *tapped, want configs.Bandwidth) {
	t.Helper()
	got, err := g.ns.Shaped(g.Child)
	must(t, err)
	if got != want {
		t.Errorf("limits %+v, want %+v", got, want)
	}
}

// Limits come, change and go, on a child that is down or up, and leave nothing.
func TestShape(t *testing.T) {
	lab := nettest.New(t)
	before := lab.Snapshot(t)
	g := newTapped(t, lab, testChild(configs.ModeBridge, 1))
	traces := func() (found []string) {
		must(t, g.ns.Do(func() error {
			qdiscs, err := netlink.QdiscList(nil)
			for _, q := range qdiscs {
				found = append(found, q.Type())
			}
			return err
		}))
		must(t, g.ns.Do(func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			tables, err := conn.ListTables()
			for _, table := range tables {
				found = append(found, table.Name)
			}
			return err
		}))
		return found
	}
	must(t, g.ns.Up(g.Child)) // or it has no queue discipline at all
	must(t, g.ns.Do(func() error { return netlink.LinkSetDown(linkNamed("net0")) }))
	clean := traces()
	shapedIs(t, g, configs.Bandwidth{})
	for i, b := range []configs.Bandwidth{
		{},
		{Inbound: 1e6},
		{Inbound: 1e6, Outbound: 2e6},
		{Outbound: 8e3},
		{Inbound: 8e3, Outbound: 100e9},
		{Inbound: 100e9, Outbound: 1e12},
		{},
		{},
	} {
		if i == 3 {
			must(t, g.ns.Up(g.Child))
		}
		must(t, g.ns.Shape(g.Child, b))
		shapedIs(t, g, b)
		must(t, g.ns.Shape(g.Child, b))
		shapedIs(t, g, b)
	}
	if diff := cmp.Diff(clean, traces()); diff != "" {
		t.Errorf("left (-before +after):\n%s", diff)
	}
	g.Bandwidth.Inbound = 1e12
	must(t, g.ns.Shape(g.Child, g.Bandwidth))
	must(t, g.ns.Delete(g.Child))
	if left := traces(); len(left) >= len(clean) {
		t.Errorf("left by Delete: %v", left)
	}
	g.end(t)
	before.Check(t)
}

// The same limits again do not fill the buckets again.
func TestShapeAgainTouchesNothing(t *testing.T) {
	lab := nettest.New(t)
	g := newTapped(t, lab, testChild(configs.ModeBridge, 1))
	must(t, g.ns.Up(g.Child))
	b := configs.Bandwidth{Inbound: 1e6, Outbound: 1e6}
	must(t, g.ns.Shape(g.Child, b))
	flood(t, lab, g.MAC, 400, 1000)
	before := countersOf(t, g).RxPoliced
	must(t, g.ns.Shape(g.Child, b))
	if got := countersOf(t, g).RxPoliced; got != before || got == 0 {
		t.Errorf("%d frames dropped, and %d after it was set again", before, got)
	}
}

func TestShapeErrors(t *testing.T) {
	ns := newNamespace(t)
	for name, b := range map[string]configs.Bandwidth{"outbound": {Outbound: 1e6}, "inbound": {Inbound: 1e6}} {
		var typed *netsetup.LinkError
		if err := ns.Shape(testChild(configs.ModeBridge, 1), b); !errors.As(err, &typed) {
			t.Errorf("%s, without a child: %v, want a LinkError", name, err)
		}
	}
}

// A frame of 64 KiB that is yet to be segmented passes a slow limit both ways.
func TestSuperFramePassesASlowLimit(t *testing.T) {
	lab := nettest.New(t)
	g := newTapped(t, lab, testChild(configs.ModeBridge, 1))
	must(t, g.ns.Up(g.Child))
	g.takeSuperFrames(t)
	must(t, g.ns.Shape(g.Child, configs.Bandwidth{Inbound: 1e6, Outbound: 1e6}))
	frame := superFrame(g.MAC, lab.Outside.MAC)
	s := newSender(t, lab)
	must(t, s.send(frame))
	if n := readSome(t, g.tap); n != len(frame) {
		t.Errorf("%d bytes came in, want %d", n, len(frame))
	}
	before := receivedOutside(t, lab)
	must(t, g.tap.SetWriteDeadline(time.Now().Add(2*time.Second)))
	if _, err := g.tap.Write(superFrame(lab.Outside.MAC, g.MAC)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(queued)
	if got := receivedOutside(t, lab) - before; got < uint64(len(frame)-vnetHeader) {
		t.Errorf("%d bytes went out, want %d and more: %+v", got, len(frame)-vnetHeader, countersOf(t, g))
	}
}

func readSome(t *testing.T, tap *os.File) int {
	t.Helper()
	must(t, tap.SetReadDeadline(time.Now().Add(2*time.Second)))
	n, err := tap.Read(make([]byte, 1<<17))
	must(t, err)
	return n
}

// takeSuperFrames lets the tap have frames as they are, and not segmented.
func (g *tapped) takeSuperFrames(t *testing.T) {
	t.Helper()
	conn, err := g.tap.SyscallConn()
	must(t, err)
	must(t, conn.Control(func(fd uintptr) {
		must(t, unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4))
	}))
}

func receivedOutside(t *testing.T, lab *nettest.Lab) uint64 {
	t.Helper()
	return linkIn(t, lab.Outside.Namespace, "wire0").Attrs().Statistics.RxBytes
}

// sender sends frames with a virtio_net_hdr on the wire.
type sender struct{ fd int }

func newSender(t *testing.T, lab *nettest.Lab) (s sender) {
	t.Helper()
	must(t, lab.Outside.Do(func() (err error) {
		s.fd, err = packetSocket("wire0")
		return err
	}))
	t.Cleanup(func() { unix.Close(s.fd) })
	must(t, unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
	return s
}

func (s sender) send(frame []byte) error {
	_, err := unix.Write(s.fd, frame)
	return err
}

// push sends frame at a rate of bytes per second for a time and returns how many
// bytes it sent.
func push(send func([]byte) error, frame []byte, rate float64, d time.Duration) (sent int, err error) {
	start := time.Now()
	for {
		elapsed := time.Since(start)
		if elapsed > d {
			return sent, nil
		}
		if float64(sent) > rate*elapsed.Seconds() {
			time.Sleep(time.Millisecond)
			continue
		}
		if err := send(frame); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return sent, err
		}
		sent += len(frame) - vnetHeader
	}
}

const (
	drain   = 450 * time.Millisecond // until the buckets are empty
	measure = 650 * time.Millisecond
)

// What passes a limit that five times as much is pushed against is the limit.
func TestRates(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 8 s")
	}
	plain := func(dst, src net.HardwareAddr) []byte {
		return append(make([]byte, vnetHeader), wire.Tagged(dst, src, string(make([]byte, 1500)))...)
	}
	for _, tt := range []struct {
		rate  configs.Rate
		frame func(dst, src net.HardwareAddr) []byte
	}{{1e6, plain}, {100e6, plain}, {1e9, superFrame}} {
		t.Run(tt.rate.String(), func(t *testing.T) {
			lab := nettest.New(t)
			g := newTapped(t, lab, testChild(configs.ModeBridge, 1))
			must(t, g.ns.Up(g.Child))
			g.takeSuperFrames(t)
			g.neverFull(t)
			must(t, g.ns.Shape(g.Child, configs.Bandwidth{Inbound: tt.rate, Outbound: tt.rate}))
			t.Run("outbound", func(t *testing.T) {
				send := func(frame []byte) error {
					_, err := g.tap.Write(frame)
					return err
				}
				rateIs(t, tt.rate, send, tt.frame(lab.Outside.MAC, g.MAC), func() uint64 { return receivedOutside(t, lab) })
			})
			t.Run("inbound", func(t *testing.T) {
				read := g.countReads(t)
				rateIs(t, tt.rate, newSender(t, lab).send, tt.frame(g.MAC, lab.Outside.MAC), read)
			})
			t.Logf("%+v", countersOf(t, g))
		})
	}
}

// rateIs pushes five times the limit through send and measures what comes out.
func rateIs(t *testing.T, limit configs.Rate, send func([]byte) error, frame []byte, received func() uint64) {
	t.Helper()
	var sent int
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { sent, err = push(send, frame, 5*float64(limit)/8, drain+measure+100*time.Millisecond) })
	time.Sleep(drain)
	before, start := received(), time.Now()
	time.Sleep(measure)
	bytes, elapsed := received()-before, time.Since(start)
	wg.Wait()
	must(t, err)
	seconds := (drain + measure + 100*time.Millisecond).Seconds()
	offered := float64(sent) * 8 / seconds / float64(limit)
	got := float64(bytes) * 8 / elapsed.Seconds() / float64(limit)
	t.Logf("%.1f times the limit offered, %.1f%% of it passed", offered, 100*got)
	if got > 1.15 {
		t.Errorf("%.1f%% of the limit passed", 100*got)
	}
	if got < 0.85 && offered > 2 { // else the machine was too busy to tell
		t.Errorf("only %.1f%% of the limit passed", 100*got)
	}
}

// countReads reads the tap until the test's end and returns what tells how many
// bytes of frames were read so far.
func (g *tapped) countReads(t *testing.T) func() uint64 {
	t.Helper()
	var mu sync.Mutex
	var bytes uint64
	var wg sync.WaitGroup
	must(t, g.tap.SetReadDeadline(time.Now().Add(10*time.Second)))
	wg.Go(func() {
		buf := make([]byte, 1<<17)
		for {
			n, err := g.tap.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			bytes += uint64(n - vnetHeader)
			mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = g.tap.SetReadDeadline(time.Now())
		wg.Wait()
	})
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return bytes
	}
}
