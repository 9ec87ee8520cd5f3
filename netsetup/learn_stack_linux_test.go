package netsetup_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// plugIn puts a guest's eth0 into a namespace: a tun device with the child's
// MAC, whose frames and the tap's are carried to each other as a machine would.
func plugIn(t *testing.T, l *learning) *netsetup.Namespace {
	t.Helper()
	guest := newNamespace(t)
	var file *os.File
	must(t, guest.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq("eth0")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		file = os.NewFile(uintptr(fd), "eth0")
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetHardwareAddr(link, l.child.MAC), netlink.LinkSetUp(link))
	}))
	carry := func(to, from *os.File, done chan<- bool) {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return // closed
			}
			_, _ = to.Write(buf[:n])
		}
	}
	in, out := make(chan bool), make(chan bool)
	go carry(file, l.tap, in)
	go carry(l.tap, file, out)
	t.Cleanup(func() {
		file.Close()
		l.tap.Close()
		<-in
		<-out
	})
	return guest
}

// has waits until the list has an address from a source, or, without one, has
// the address no longer.
func (l *learning) has(t *testing.T, ip netip.Addr, source netsetup.Source, limit time.Duration) {
	t.Helper()
	begin := time.Now()
	for {
		var got netsetup.Source
		for _, a := range l.Addresses() {
			if a.IP == ip {
				got = a.Source
			}
		}
		if got == source {
			t.Logf("%v %q after %v", ip, source, time.Since(begin).Round(time.Millisecond))
			return
		}
		if time.Since(begin) > limit {
			t.Fatalf("%v %q, want %q: %s", ip, got, source, l.list())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// What a Linux guest does with its addresses is followed, step by step.
func TestLearnFromLinux(t *testing.T) {
	lab := nettest.New(t)
	server := lab.ServeAddresses(t)
	l := learn(t, lab, configs.ModeBridge)
	must(t, l.ns.SetFilter(l.child, netsetup.Filter{AllMulticast: true}))
	guest := plugIn(t, l)
	address := func(act func(netlink.Link, *netlink.Addr) error, prefix string) {
		t.Helper()
		must(t, guest.Do(func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(prefix)
			if err != nil {
				return err
			}
			return act(link, addr)
		}))
	}
	// The first solicitation comes up to a second late (RFC 4862, 5.4.2).
	const dad = goal + time.Second
	linkLocal, slaac := eui64("fe80::", l.child.MAC), eui64("2001:db8::", l.child.MAC)
	l.has(t, linkLocal, netsetup.SourceND, dad)
	l.has(t, slaac, netsetup.SourceND, 10*time.Second) // when its router solicitations are through

	static, outside := netip.MustParseAddr("192.0.2.10"), nettest.OutsideAddr4.Addr()
	address(netlink.AddrAdd, "192.0.2.10/24")
	must(t, guest.Do(func() error {
		_, _, err := wire.Pinger{}.Ping(t.Context(), outside, 1)
		return err
	}))
	l.has(t, static, netsetup.SourceARP, goal)

	address(netlink.AddrAdd, "2001:db8::10/64")
	l.has(t, netip.MustParseAddr("2001:db8::10"), netsetup.SourceND, dad)
	taken := nettest.OutsideAddr6.Addr()
	address(netlink.AddrAdd, "2001:db8::1/64")
	for end := time.Now().Add(dad); !strings.Contains(linkAddresses(t, guest), "2001:db8::1/64 failed") && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	l.has(t, taken, "", goal)

	var lease *nclient4.Lease
	must(t, guest.Do(func() (err error) {
		client, err := nclient4.New("eth0")
		if err != nil {
			return err
		}
		defer client.Close()
		lease, err = client.Request(t.Context())
		return err
	}))
	leased, ok := server.Lease(l.child.MAC)
	if !ok {
		t.Fatalf("the server knows of no lease, the client of %v", lease.ACK)
	}
	l.has(t, leased, netsetup.SourceDHCP, goal)
	must(t, guest.Do(func() error {
		client, err := nclient4.New("eth0", nclient4.WithServerAddr(&net.UDPAddr{IP: outside.AsSlice(), Port: 67}))
		if err != nil {
			return err
		}
		defer client.Close()
		return client.Release(lease)
	}))
	l.has(t, leased, "", goal)

	var leased6 netip.Addr
	must(t, guest.Do(func() error {
		client, err := nclient6.New("eth0")
		if err != nil {
			return err
		}
		defer client.Close()
		offer, err := client.Solicit(t.Context())
		if err != nil {
			return err
		}
		reply, err := client.Request(t.Context(), offer)
		if err != nil {
			return err
		}
		leased6 = addressOf(reply)
		return nil
	}))
	l.has(t, leased6, netsetup.SourceDHCP, goal)

	// Nobody answers for an address that was given up.
	address(netlink.AddrDel, "192.0.2.10/24")
	must(t, lab.Outside.FlushNeighbours(lab.Outside.NIC))
	_, received, err := lab.Outside.Ping(t.Context(), static, 5, time.Second)
	if received > 0 {
		t.Errorf("it still answers: %d, %v", received, err)
	}
	l.has(t, static, "", goal)
	l.has(t, linkLocal, netsetup.SourceND, 0)
	t.Log(l.list())
}

// eui64 is the address that a MAC has in a /64 (RFC 4291, appendix A).
func eui64(prefix string, mac net.HardwareAddr) netip.Addr {
	b := netip.MustParseAddr(prefix).As16()
	copy(b[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	return netip.AddrFrom16(b)
}

// linkAddresses lists what eth0 has, and marks what failed its DAD.
func linkAddresses(t *testing.T, guest *netsetup.Namespace) string {
	t.Helper()
	var list []string
	must(t, guest.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		for _, a := range addrs {
			s := a.IPNet.String()
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				s += " failed"
			}
			list = append(list, s)
		}
		return err
	}))
	return strings.Join(list, ", ")
}

// addressOf is the address that a server's reply gives.
func addressOf(reply *dhcpv6.Message) netip.Addr {
	for _, ia := range reply.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			ip, _ := netip.AddrFromSlice(a.IPv6Addr)
			return ip
		}
	}
	return netip.Addr{}
}
