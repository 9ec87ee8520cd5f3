package netsetup_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// pinned is a guest with a child that is pinned, and where its frames arrive.
type pinned struct {
	t     testing.TB
	lab   *nettest.Lab
	ns    *netsetup.Namespace
	child netsetup.Child
	tap   *os.File

	to  net.HardwareAddr // whom it sends to
	at  *netsetup.Namespace
	dev string
}

// newPinned makes the guest with the addresses of these tests.
func newPinned(t testing.TB, mode configs.Mode, pin configs.Pin) *pinned {
	t.Helper()
	lab := nettest.New(t)
	p := &pinned{t: t, lab: lab, ns: newNamespace(t), child: testChild(mode, 1),
		to: lab.Outside.MAC, at: lab.Outside.Namespace, dev: lab.Outside.NIC}
	p.child.MAC, p.child.Pin = ownMAC, pin
	for _, a := range []string{ownAddr4, ownAddr6, ownListed} {
		p.child.Addresses = append(p.child.Addresses, netip.MustParseAddr(a))
	}
	must(t, p.ns.Quiet())
	must(t, create(t, lab, p.ns, p.child))
	must(t, p.ns.Pin(p.child))
	p.tap = openTaps(t, p.ns, p.child)[0]
	must(t, p.tap.SetDeadline(time.Now().Add(time.Minute)))
	// As QEMU does (net/tap-linux.c, tap_set_sndbuf): frames that a sibling has
	// not read yet count as the sender's.
	conn, err := p.tap.SyscallConn()
	must(t, err)
	must(t, conn.Control(func(fd uintptr) { must(t, unix.IoctlSetPointerInt(int(fd), unix.TUNSETSNDBUF, math.MaxInt32)) }))
	must(t, p.ns.Up(p.child))
	return p
}

// sendToSibling makes the guest send to another child of its parent.
func (p *pinned) sendToSibling() {
	p.t.Helper()
	c := testChild(configs.ModeBridge, 2)
	p.at, p.dev, p.to = newNamespace(p.t), c.Name, c.MAC
	must(p.t, p.at.Quiet())
	must(p.t, create(p.t, p.lab, p.at, c))
	openTaps(p.t, p.at, c)
	must(p.t, p.at.Up(c))
}

// write sends frames as QEMU does, each n times, addressed and tagged.
func (p *pinned) write(n int, tag string, frame []byte) {
	p.t.Helper()
	buf := slices.Concat(zeros(vnetHeader), p.to, frame[len(p.to):], []byte(tag))
	for range n {
		if _, err := p.tap.Write(buf); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *pinned) capture(tag string) *wire.Capture {
	p.t.Helper()
	var c *wire.Capture
	must(p.t, p.at.Do(func() (err error) {
		c, err = wire.NewCapture(p.dev, tag)
		return err
	}))
	p.t.Cleanup(func() { c.Close() })
	return c
}

func (p *pinned) refusals() netsetup.Refusals {
	p.t.Helper()
	r, ok, err := p.ns.Pinned(p.child)
	must(p.t, err)
	if !ok {
		p.t.Fatal("nothing is pinned")
	}
	return r
}

// marker is a frame that passes every pin.
func marker() []byte { return own4(unix.IPPROTO_TCP, tcp()) }

// withRefused adds n to the counter of that name.
func withRefused(r netsetup.Refusals, what string, n int) netsetup.Refusals {
	*map[string]*uint64{"mac": &r.MAC, "ipv4": &r.IPv4, "ipv6": &r.IPv6, "arp": &r.ARP, "nd": &r.ND,
		"dhcp": &r.DHCP, "router": &r.Router, "other": &r.Other}[what] += uint64(n)
	return r
}

// checkForged writes n frames of each kind and sees none arrive and all counted.
func (p *pinned) checkForged(n int, kinds map[string][]kind) {
	for what, list := range kinds {
		for i, k := range list {
			tag := fmt.Sprintf("forged-%s-%d.", what, i)
			c, before := p.capture(tag), p.refusals()
			p.write(n, tag, k.frame)
			p.write(1, tag, marker()) // what comes after the forged has arrived
			if got := c.Wait(1, 2*time.Second).Received(); got != 1 {
				p.t.Errorf("%s: %s: %d of %d forged frames arrived and one good", what, k.name, got-1, n)
			}
			if diff := cmp.Diff(withRefused(before, what, n), p.refusals()); diff != "" {
				p.t.Errorf("%s: %s: refusals (-want +got):\n%s", what, k.name, diff)
			}
			c.Close()
		}
	}
}

// checkLegitimate writes n frames of each kind and sees all arrive.
func (p *pinned) checkLegitimate(n int, kinds []kind) {
	before := p.refusals()
	for i, k := range kinds {
		tag := fmt.Sprintf("good-%d.", i)
		c := p.capture(tag)
		p.write(n, tag, k.frame)
		if got := c.Wait(n, 2*time.Second).Received(); got != n {
			p.t.Errorf("%s: %d of %d frames arrived", k.name, got, n)
		}
		c.Close()
		if after := p.refusals(); after != before {
			p.t.Errorf("%s: refused: %s", k.name, cmp.Diff(before, after))
			before = after
		}
	}
}

func TestPinAll(t *testing.T) {
	const many = 10000
	for _, tt := range []struct {
		name    string
		mode    configs.Mode
		sibling bool
		forged  int
	}{
		{"bridge", configs.ModeBridge, false, many},
		{"to a sibling", configs.ModeBridge, true, 200},
		{"passthru", configs.ModePassthru, false, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPinned(t, tt.mode, configs.PinAll)
			if tt.sibling {
				p.sendToSibling()
			}
			p.checkLegitimate(100, legitimate())
			p.checkForged(tt.forged, forged())
		})
	}
}

func TestPinMAC(t *testing.T) {
	p := newPinned(t, configs.ModeBridge, configs.PinMAC)
	p.checkLegitimate(10, anything())
	p.checkForged(10000, forgedMAC())
}

// A frame that is cut short is refused wherever the whole one is.
func TestPinCutShort(t *testing.T) {
	p := newPinned(t, configs.ModeBridge, configs.PinAll)
	for what, list := range forged() {
		for _, k := range list {
			before, cuts := total(p.refusals()), 0
			for end := 14; end < min(len(k.frame), 120); end++ {
				p.write(1, "", k.frame[:end])
				cuts++
			}
			if got := total(p.refusals()) - before; got != uint64(cuts) {
				t.Errorf("%s: %s: %d of %d cut frames were refused", what, k.name, got, cuts)
			}
		}
	}
}

func total(r netsetup.Refusals) uint64 {
	return r.MAC + r.IPv4 + r.IPv6 + r.ARP + r.ND + r.DHCP + r.Router + r.Other
}

// writeSegments writes n frames that are to be cut into four TCP segments
// (linux/virtio_net.h).
func (p *pinned) writeSegments(n int, tag, from string) {
	p.t.Helper()
	const ethernet, ip, header, size = 14, 20, 20, 1000
	vnet := []byte{unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, unix.VIRTIO_NET_HDR_GSO_TCPV4}
	for _, v := range []uint16{ethernet + ip + header, size, ethernet + ip, 16} {
		vnet = binary.NativeEndian.AppendUint16(vnet, v)
	}
	frame := own(unix.ETH_P_IP, ipv4(from, unix.IPPROTO_TCP, 0, nil, tcp(), zeros(3000), []byte(tag)))
	buf := slices.Concat(vnet, p.to, frame[len(p.to):])
	for range n {
		if _, err := p.tap.Write(buf); err != nil {
			p.t.Fatal(err)
		}
	}
}

func TestPinSegments(t *testing.T) {
	const n = 20 // that the capture's socket holds
	p := newPinned(t, configs.ModeBridge, configs.PinAll)
	c := p.capture("segments")
	before := p.refusals()
	p.writeSegments(n, "segments", foreignAddr4)
	p.writeSegments(n, "segments", ownAddr4)
	if got := c.Wait(n, 2*time.Second).Received(); got != n {
		t.Errorf("%d arrived, want the %d with the own address", got, n)
	}
	if diff := cmp.Diff(withRefused(before, "ipv4", n), p.refusals()); diff != "" {
		t.Errorf("refusals (-want +got):\n%s", diff)
	}
}

// While the rules are replaced, and the addresses change with them, nothing
// forged slips through, nothing good is lost, and the counts go on.
func TestPinAgain(t *testing.T) {
	p := newPinned(t, configs.ModeBridge, configs.PinAll)
	c := p.capture("again")
	const times = 50
	stop := make(chan struct{})
	var good, bad int
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, what := range []string{"ipv4", "mac", "router"} {
				p.write(30, "again", forged()[what][0].frame)
				bad += 30
			}
			p.write(1, "again", marker())
			good++
			time.Sleep(50 * time.Microsecond)
		}
	})
	for i := range times {
		again := p.child
		again.Addresses = append(slices.Clone(p.child.Addresses), netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)}))
		must(t, p.ns.Pin(again))
	}
	close(stop)
	group.Wait()
	if got := c.Wait(good, 2*time.Second).Received(); got != good {
		t.Errorf("%d arrived of %d good and %d forged", got, good, bad)
	}
	if r := p.refusals(); total(r) != uint64(bad) {
		t.Errorf("%d of %d were counted: %+v", total(r), bad, r)
	}
	t.Logf("pinned %d times while %d good and %d forged frames were sent", times, good, bad)
}

// tables lists the nftables tables in the guest's namespace.
func (p *pinned) tables() (names []string) {
	p.t.Helper()
	must(p.t, p.ns.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := conn.ListTables()
		for _, t := range tables {
			names = append(names, t.Name)
		}
		return err
	}))
	return names
}

func TestPinNone(t *testing.T) {
	p := newPinned(t, configs.ModeBridge, configs.PinAll)
	if got, want := p.tables(), []string{"vmrun-net0"}; !slices.Equal(got, want) {
		t.Errorf("tables %q, want %q", got, want)
	}
	p.child.Pin = configs.PinNone
	for range 2 {
		must(t, p.ns.Pin(p.child))
		if r, ok, err := p.ns.Pinned(p.child); ok || err != nil || r != (netsetup.Refusals{}) {
			t.Errorf("pinned: %v, %+v, %v", ok, r, err)
		}
	}
	if got := p.tables(); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
	c := p.capture("free")
	p.write(10, "free", forged()["mac"][0].frame)
	if got := c.Wait(10, 2*time.Second).Received(); got != 10 {
		t.Errorf("%d of 10 frames arrived without a pin", got)
	}
}

// With the child its rules are gone, and what pinned it holds nothing.
func TestPinLeavesNothing(t *testing.T) {
	lab := nettest.New(t)
	before := lab.Snapshot(t)
	p := &pinned{t: t, ns: newNamespace(t), child: testChild(configs.ModeBridge, 1)}
	p.child.Pin = configs.PinMAC
	for range 2 {
		must(t, create(t, lab, p.ns, p.child))
		must(t, p.ns.Pin(p.child))
		p.refusals()
		must(t, p.ns.Delete(p.child))
		if got := p.tables(); len(got) != 0 {
			t.Errorf("left behind: %q", got)
		}
	}
	must(t, create(t, lab, p.ns, p.child))
	must(t, p.ns.Pin(p.child))
	p.refusals()
	must(t, p.ns.Close())
	before.Check(t)
}

// A guest that has no IPv4 address yet gets one by DHCP.
func TestPinWithoutIPv4(t *testing.T) {
	p := newPinned(t, configs.ModeBridge, configs.PinAll)
	p.child.Addresses = []netip.Addr{netip.MustParseAddr(ownAddr6)}
	must(t, p.ns.Pin(p.child))
	p.checkLegitimate(10, []kind{{"DHCP discover", own(unix.ETH_P_IP, ipv4("0.0.0.0", 17, 0, nil, udp(68, 67, bootp(1, ownMAC))))}})
	p.checkForgedOnly("ipv4", kind{"an address that is no longer its own", marker()})
}

func (p *pinned) checkForgedOnly(what string, k kind) {
	p.t.Helper()
	before := p.refusals()
	p.write(10, "", k.frame)
	if diff := cmp.Diff(withRefused(before, what, 10), p.refusals()); diff != "" {
		p.t.Errorf("%s: refusals (-want +got):\n%s", k.name, diff)
	}
}

func TestPinFails(t *testing.T) {
	p := newPinned(t, configs.ModeBridge, configs.PinAll)
	for _, tt := range []struct {
		name string
		edit func(*netsetup.Child)
	}{
		{"no such link", func(c *netsetup.Child) { c.Index++ }},
		{"another link", func(c *netsetup.Child) { c.Name = "net7" }},
		{"no such pin", func(c *netsetup.Child) { c.Pin = "some" }},
	} {
		c := p.child
		tt.edit(&c)
		if err := p.ns.Pin(c); !errors.As(err, new(*netsetup.LinkError)) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	p.checkForgedOnly("mac", forged()["mac"][0]) // the rules are as they were
}

// One call of each, with the socket and the thread that it takes.
func BenchmarkPinCall(b *testing.B) {
	p := newPinned(b, configs.ModeBridge, configs.PinAll)
	b.Run("Pin", func(b *testing.B) {
		for b.Loop() {
			must(b, p.ns.Pin(p.child))
		}
	})
	b.Run("Pinned", func(b *testing.B) {
		for b.Loop() {
			p.refusals()
		}
	})
}

// The median time of a write to the tap with and without rules, in turns.
func BenchmarkPinFrame(b *testing.B) {
	const batch = 200
	p := newPinned(b, configs.ModeBridge, configs.PinAll)
	kinds := []kind{
		{"tcp4", own4(6, tcp())}, {"udp4", own4(17, udp(5353, 5353))}, {"tcp6", from6(ownAddr6, 6, tcp())},
		{"ns", from6(ownAddr6, 58, discovery(135, foreignAddr6, option(1, ownMAC)))},
		{"forged", forged()["ipv4"][0].frame},
	}
	pins := []configs.Pin{configs.PinNone, configs.PinMAC, configs.PinAll}
	for _, k := range kinds {
		b.Run(k.name, func(b *testing.B) {
			var spent [3][]float64 // ns for each frame, one value for each round
			for b.Loop() {
				for i, pin := range pins {
					c := p.child
					c.Pin = pin
					must(b, p.ns.Pin(c))
					p.write(batch, "", k.frame) // warm
					start := time.Now()
					p.write(batch, "", k.frame)
					spent[i] = append(spent[i], float64(time.Since(start).Nanoseconds())/batch)
				}
			}
			for i, name := range []string{"none", "mac", "all"} {
				slices.Sort(spent[i])
				b.ReportMetric(spent[i][len(spent[i])/2], "ns/frame-"+name)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
