package nettest_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"

	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

var (
	thirdAddr4 = netip.MustParsePrefix("192.0.2.3/24")
	thirdAddr6 = netip.MustParsePrefix("2001:db8::3/64")
)

// A third machine learns where the others are, and believes who claims to be one.
func TestNeighbours(t *testing.T) {
	lab := nettest.New(t, nettest.Switch)
	before := lab.Snapshot(t)
	third := lab.AddMachine("third", thirdAddr4, thirdAddr6)
	mustPing(t, third, nettest.HostAddr4.Addr())
	mustPing(t, third, nettest.HostAddr6.Addr())
	mustPing(t, lab.Outside, thirdAddr4.Addr())
	knows := func(mac net.HardwareAddr) error {
		known, err := third.Neighbours(third.NIC)
		for _, addr := range []netip.Addr{nettest.HostAddr4.Addr(), nettest.HostAddr6.Addr()} {
			if !bytes.Equal(known[addr], mac) {
				err = fmt.Errorf("%s is at %s, want %s", addr, known[addr], mac)
			}
		}
		return err
	}
	if err := knows(lab.Host.MAC); err != nil {
		t.Error(err)
	}
	for _, addr := range []netip.Addr{nettest.HostAddr4.Addr(), nettest.HostAddr6.Addr()} {
		if err := lab.Outside.Send(lab.Outside.NIC, wire.Announcement(addr, lab.Outside.MAC)); err != nil {
			t.Error(err)
		}
	}
	eventually(t, func() error { return knows(lab.Outside.MAC) })
	if err := third.FlushNeighbours(third.NIC); err != nil {
		t.Error(err)
	}
	if known, err := third.Neighbours(third.NIC); err != nil || len(known) > 0 {
		t.Errorf("known after the flush: %v, %v", known, err)
	}
	if diff := before.Wait(0); diff == "" {
		t.Error("another machine goes unnoticed")
	}
}

func mustPing(t *testing.T, from *nettest.Host, to netip.Addr) {
	t.Helper()
	if _, received, err := from.Ping(t.Context(), to, 1, 0); err != nil || received != 1 {
		t.Errorf("ping %s: %d received, %v", to, received, err)
	}
}

// eventually repeats what is not so yet for five seconds.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Error(err)
}

// Whatever is done to the host's NIC can be undone, and the network works again.
func TestChangedNIC(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, lab *nettest.Lab)
	}{
		{"carrier", func(_ *testing.T, lab *nettest.Lab) {
			lab.SetCarrier("lab0", false)
			lab.SetCarrier("lab0", true)
		}},
		{"removed and added", func(_ *testing.T, lab *nettest.Lab) {
			lab.RemoveNIC("lab0")
			lab.AddNIC("lab0", nettest.NIC{MAC: lab.Host.MAC,
				Addresses: []netip.Prefix{nettest.HostAddr4, nettest.HostAddr6}})
		}},
		{"renamed", func(t *testing.T, lab *nettest.Lab) {
			lab.RenameNIC("lab0", "other")
			if _, err := lab.Host.Link("other"); err != nil || lab.Host.NIC != "other" {
				t.Errorf("the host's NIC is %s, %v", lab.Host.NIC, err)
			}
			lab.SetCarrier("other", false)
			lab.SetCarrier("other", true)
			lab.RenameNIC("other", "lab0")
		}},
		{"moved", func(t *testing.T, lab *nettest.Lab) {
			lab.MoveNIC("lab0", lab.Host, lab.Outside)
			if _, err := lab.Host.Link("lab0"); err == nil {
				t.Error("lab0 is still there")
			}
			lab.MoveNIC("lab0", lab.Outside, lab.Host)
			for _, addr := range []netip.Prefix{nettest.HostAddr4, nettest.HostAddr6} {
				if err := lab.Host.AddAddress("lab0", addr); err != nil {
					t.Error(err)
				}
			}
		}},
		{"MTU", func(_ *testing.T, lab *nettest.Lab) {
			lab.SetMTU("lab0", 1300)
			if link, err := lab.Host.Link("lab0"); err != nil || link.Attrs().MTU != 1300 {
				t.Errorf("MTU: %v", err)
			}
			mustPing(t, lab.Host, nettest.OutsideAddr6.Addr())
			lab.SetMTU("lab0", 1500)
		}},
		{"addresses", func(t *testing.T, lab *nettest.Lab) {
			for _, do := range []func(string, netip.Prefix) error{lab.Host.AddAddress, lab.Host.DelAddress} {
				for _, addr := range []netip.Prefix{thirdAddr4, thirdAddr6} {
					if err := do("lab0", addr); err != nil {
						t.Error(err)
					}
				}
			}
		}},
	} {
		for _, wire := range wires[:2] {
			t.Run(tt.name+"/"+wire.name, func(t *testing.T) {
				lab := nettest.New(t, wire.opts...)
				before := lab.Snapshot(t)
				tt.change(t, lab)
				for _, addr := range []netip.Addr{nettest.OutsideAddr4.Addr(), nettest.OutsideAddr6.Addr()} {
					// A switch's port may take a second to notice its cable.
					eventually(t, func() error {
						_, received, err := lab.Host.Ping(t.Context(), addr, 1, 0)
						if err == nil && received == 0 {
							err = fmt.Errorf("no answer from %s", addr)
						}
						return err
					})
				}
				before.Check(t)
			})
		}
	}
}

func TestStreams(t *testing.T) {
	lab := nettest.New(t)
	lab.Outside.ServeDiscard(9)
	lab.Outside.ServeEcho(7)
	linkLocal, err := lab.Outside.LinkLocal(lab.Outside.NIC)
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []netip.Addr{
		nettest.OutsideAddr4.Addr(), nettest.OutsideAddr6.Addr(), linkLocal.WithZone(lab.Host.NIC),
	} {
		answer, err := lab.Host.EchoTCP(t.Context(), netip.AddrPortFrom(addr, 7), "hello")
		if err != nil || answer != "hello" {
			t.Errorf("%s echoed %q, %v", addr, answer, err)
		}
		for _, port := range []uint16{7, 9} {
			got, err := lab.Host.SendTCP(t.Context(), netip.AddrPortFrom(addr, port), 100*time.Millisecond)
			if err != nil || got.Bytes == 0 || got.Elapsed < 100*time.Millisecond || got.Mbit() <= 0 {
				t.Errorf("stream to %s: %+v, %v", addr, got, err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := lab.Host.SendTCP(ctx, netip.MustParseAddrPort("192.0.2.1:9"), time.Minute); err == nil {
		t.Error("a stream outlives its context")
	}
	if _, err := lab.Host.EchoTCP(t.Context(), netip.MustParseAddrPort("192.0.2.1:10"), "hello"); err == nil {
		t.Error("a port without a server answered")
	}
}

// An application hears a group while it is in it, and no longer.
func TestListen(t *testing.T) {
	lab := nettest.New(t)
	for _, addr := range []string{"224.0.0.251", "ff02::fb", "192.0.2.2", "2001:db8::2"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(addr), 5353)
		l := lab.Host.Listen("lab0", to)
		from := to
		if to.Addr().IsLinkLocalMulticast() && to.Addr().Is6() {
			from = netip.AddrPortFrom(to.Addr().WithZone(lab.Outside.NIC), to.Port())
		}
		if err := lab.Outside.SendUDP(lab.Outside.NIC, from, "who is there", 3); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
		if got := l.Wait(3, time.Second); got != 3 {
			t.Errorf("%s: heard %d", addr, got)
		}
		if _, last := l.Heard(); last != "who is there" {
			t.Errorf("%s: heard %q", addr, last)
		}
		l.Close()
		if err := lab.Outside.SendUDP(lab.Outside.NIC, from, "and now", 1); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
		if got, _ := l.Heard(); got != 3 {
			t.Errorf("%s: heard %d after leaving", addr, got)
		}
	}
}

func TestFlood(t *testing.T) {
	lab := nettest.New(t)
	c := lab.Host.Capture("lab0", "flood")
	frame := wire.Tagged(lab.Host.MAC, lab.Outside.MAC, "flood")
	start := time.Now()
	sent, err := lab.Outside.Flood(t.Context(), lab.Outside.NIC, frame, 10000)
	if err != nil || sent != 10000 {
		t.Errorf("%d sent, %v", sent, err)
	}
	t.Logf("10000 frames in %v", time.Since(start))
	if got := c.Wait(1, time.Second); got.Unicast == 0 {
		t.Errorf("seen: %+v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if sent, err := lab.Outside.Flood(ctx, lab.Outside.NIC, frame, 1<<30); err == nil || sent == 0 {
		t.Errorf("a flood with a deadline: %d sent, %v", sent, err)
	}
}

// The lab's server leases addresses, and its router lets hosts make their own.
func TestServeAddresses(t *testing.T) {
	lab := nettest.New(t)
	before := lab.Snapshot(t)
	t.Run("served", func(t *testing.T) {
		server := lab.ServeAddresses(t)
		var lease *nclient4.Lease
		err := lab.Host.Do(func() error {
			client, err := nclient4.New("lab0")
			if err != nil {
				return err
			}
			defer client.Close()
			lease, err = client.Request(t.Context())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		got, _ := netip.AddrFromSlice(lease.ACK.YourIPAddr.To4())
		if want, ok := server.Lease(lab.Host.MAC); !ok || got != want || got.Compare(nettest.LeaseFirst) < 0 || got.Compare(nettest.LeaseLast) > 0 {
			t.Errorf("leased %s; the server says %s", got, want)
		}
		if _, ok := server.Lease(net.HardwareAddr{2, 0, 0, 0, 0, 9}); ok {
			t.Error("a machine that never asked has a lease")
		}
		listenToRouter(t, lab.Host, "1")
		eventually(t, func() error {
			return lab.Host.Do(func() error { return hasPrefix("lab0", netip.MustParsePrefix("2001:db8::/64")) })
		})
		listenToRouter(t, lab.Host, "0")
	})
	before.Check(t)
}

// listenToRouter sets whether a host obeys router advertisements, and starts its
// IPv6 anew.
func listenToRouter(t *testing.T, h *nettest.Host, value string) {
	t.Helper()
	if err := h.Do(func() error {
		for _, key := range []string{"accept_ra", "router_solicitations"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/lab0/"+key, []byte(value), 0); err != nil {
				return err
			}
		}
		link, err := netlink.LinkByName("lab0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetDown(link); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	}); err != nil {
		t.Fatal(err)
	}
}

// hasPrefix says whether a link made itself an address.
func hasPrefix(dev string, prefix netip.Prefix) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	list, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	for _, a := range list {
		if addr, _ := netip.AddrFromSlice(a.IP); prefix.Contains(addr) && a.ValidLft > 0 && a.ValidLft < 1<<31-1 {
			return nil
		}
	}
	return fmt.Errorf("%s has made no address of %s: %v", dev, prefix, list)
}
