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
	lab := newSilentLab(t)
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
	lab := newSilentLab(t)
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
	lab := newSilentLab(t)
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

// pusher sends frames in the background.
type pusher struct {
	stop chan struct{}
	wg   sync.WaitGroup

	bytes   int // sent
	err     error
	elapsed time.Duration
	pause   time.Duration // the longest between two frames
}

// push sends frame at a rate of bytes per second until it is ended, or for 5 s.
func push(send func([]byte) error, frame []byte, rate float64) *pusher {
	p := &pusher{stop: make(chan struct{})}
	p.wg.Go(func() {
		start := time.Now()
		for last := time.Duration(0); p.elapsed < 5*time.Second && p.err == nil; {
			select {
			case <-p.stop:
				return
			default:
			}
			p.elapsed = time.Since(start)
			if float64(p.bytes) > rate*p.elapsed.Seconds() {
				time.Sleep(time.Millisecond)
				continue
			}
			if err := send(frame); !errors.Is(err, unix.ENOBUFS) {
				p.err = err
			}
			p.bytes += len(frame) - vnetHeader
			p.pause, last = max(p.pause, p.elapsed-last), p.elapsed
		}
	})
	return p
}

func (p *pusher) end() {
	close(p.stop)
	p.wg.Wait()
}

// What passes a limit that five times as much is pushed against is the limit.
func TestRates(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 7 s")
	}
	plain := func(dst, src net.HardwareAddr) []byte {
		return append(make([]byte, vnetHeader), wire.Tagged(dst, src, string(make([]byte, 1500)))...)
	}
	for _, tt := range []struct {
		rate  configs.Rate
		frame func(dst, src net.HardwareAddr) []byte
	}{{1e6, plain}, {100e6, plain}, {1e9, superFrame}} {
		t.Run(tt.rate.String(), func(t *testing.T) {
			lab := newSilentLab(t)
			g := newTapped(t, lab, testChild(configs.ModeBridge, 1))
			must(t, g.ns.Up(g.Child))
			g.takeSuperFrames(t)
			g.neverFull(t)
			must(t, g.ns.Shape(g.Child, configs.Bandwidth{Inbound: tt.rate, Outbound: tt.rate}))
			out := tt.frame(lab.Outside.MAC, g.MAC)
			t.Run("outbound", func(t *testing.T) {
				must(t, g.tap.SetWriteDeadline(time.Now().Add(5*time.Second)))
				send := func(frame []byte) error {
					_, err := g.tap.Write(frame)
					return err
				}
				rateIs(t, tt.rate, send, out, func() passage {
					bytes := float64(receivedOutside(t, lab))
					return passage{bytes, bytes, countersOf(t, g).TxShaped}
				})
			})
			t.Run("inbound", func(t *testing.T) {
				in := tt.frame(g.MAC, lab.Outside.MAC)
				stop := g.countReads(t)
				// Not by what was read: a reader that lags has a ring to catch up with.
				rateIs(t, tt.rate, newSender(t, lab).send, in, func() passage {
					a, b := countersOf(t, g), countersOf(t, g) // packets are read before drops
					size := float64(len(in) - vnetHeader)
					return passage{
						atLeast: size * (float64(a.RxPackets) - float64(b.RxPoliced)),
						atMost:  size * (float64(b.RxPackets) - float64(a.RxPoliced)),
						dropped: a.RxPoliced,
					}
				})
				counters := countersOf(t, g)
				if read := stop(); read != counters.RxPackets-counters.RxPoliced-counters.RxDropped {
					t.Errorf("%d frames read: %+v", read, counters)
				}
			})
			t.Logf("%+v", countersOf(t, g))
		})
	}
}

// passage is how many bytes have passed a limit, and how many frames not.
type passage struct {
	atLeast, atMost float64
	dropped         uint64
}

// rateIs pushes five times the limit through send and measures what passes, from
// the time on when something does not.
func rateIs(t *testing.T, limit configs.Rate, send func([]byte) error, frame []byte, count func() passage) {
	t.Helper()
	first := count()
	p := push(send, frame, 5*float64(limit)/8)
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if count().dropped > first.dropped {
			break
		}
		if time.Now().After(end) {
			p.end()
			must(t, p.err)
			t.Skip("this machine is too busy to send more than the limit")
		}
	}
	earliest := time.Now()
	before := count()
	latest := time.Now()
	time.Sleep(600 * time.Millisecond)
	shortest := time.Since(latest)
	after := count()
	longest := time.Since(earliest)
	p.end()
	must(t, p.err)
	percent := func(bytes float64, d time.Duration) float64 { return bytes * 800 / d.Seconds() / float64(limit) }
	atLeast, atMost := percent(after.atLeast-before.atMost, longest), percent(after.atMost-before.atLeast, shortest)
	t.Logf("%.0f%% of the limit sent, pausing %v at most; %.1f%% to %.1f%% of it passed",
		percent(float64(p.bytes), p.elapsed), p.pause.Round(time.Millisecond), atLeast, atMost)
	if atLeast > 115 {
		t.Errorf("%.1f%% of the limit passed", atLeast)
	}
	// A sender that pauses lets the queue run empty.
	if busy := p.pause > 20*time.Millisecond; !busy && atMost < 85 {
		t.Errorf("only %.1f%% of the limit passed", atMost)
	}
}

// countReads reads the tap from now on. What it returns waits until nothing more
// comes and tells how many frames were read.
func (g *tapped) countReads(t *testing.T) (stop func() uint64) {
	t.Helper()
	var frames uint64
	var wg sync.WaitGroup
	must(t, g.tap.SetReadDeadline(time.Now().Add(10*time.Second)))
	wg.Go(func() {
		buf := make([]byte, 1<<17)
		for {
			if _, err := g.tap.Read(buf); err != nil {
				return
			}
			frames++
		}
	})
	t.Cleanup(func() {
		_ = g.tap.SetReadDeadline(time.Now())
		wg.Wait()
	})
	return func() uint64 {
		_ = g.tap.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		wg.Wait()
		return frames
	}
}
