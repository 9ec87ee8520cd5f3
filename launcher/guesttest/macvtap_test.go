package guesttest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

var guestMAC = net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}

// bootOnMacvtap boots a guest whose eth0 is on the lab's NIC and hears every
// multicast. Nothing of it is left when it has ended and release was called.
func bootOnMacvtap(t *testing.T, lab *nettest.Lab, cmdline string) (m *machine, release func()) {
	t.Helper()
	ns, err := netsetup.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	child := netsetup.Child{
		Name: "net0", Index: 700000 + os.Getpid(), NIC: configs.NIC{Parent: lab.Host.NIC, Mode: configs.ModeBridge,
			MAC: guestMAC, Queues: 1},
	}
	var taps []*os.File
	err = errors.Join(
		ns.Quiet(),
		lab.Host.Do(func() error { return ns.Create(child) }),
		ns.Up(child),
		ns.Do(func() error {
			link, err := netlink.LinkByName(child.Name)
			if err != nil {
				return err
			}
			return netlink.LinkSetAllmulticastOn(link)
		}),
	)
	if err == nil {
		taps, err = ns.OpenTaps(child)
	}
	if err != nil {
		t.Fatal(err)
	}
	start := func(cmd *exec.Cmd) error {
		cmd.ExtraFiles = taps
		defer taps[0].Close()
		return ns.Do(cmd.Start)
	}
	m = bootBy(t, start, cmdline,
		"-netdev", "tap,id=n0,fd=3", "-device", "virtio-net-pci,netdev=n0,mac="+guestMAC.String())
	return m, func() { ns.Close() }
}

// The guest, its NIC on the lab's, reaches the outside and is reached.
func TestGuestOnMacvtap(t *testing.T) {
	lab := nettest.New(t)
	before := lab.Snapshot(t)
	m, release := bootOnMacvtap(t, lab, "vmrun.addr=eth0:192.0.2.11/24,2001:db8::11/64")
	for _, addr := range []netip.Prefix{nettest.OutsideAddr4, nettest.OutsideAddr6} {
		if reply, _ := m.run(t, fmt.Sprintf("ping %s 3", addr.Addr())); reply != "sent=3 received=3" {
			t.Errorf("ping of %s by the guest: %s", addr.Addr(), reply)
		}
	}
	sent, received, err := lab.Outside.Ping(within30s(t), netip.MustParseAddr("192.0.2.11"), 3, 0)
	if err != nil || sent != 3 || received != 3 {
		t.Errorf("ping of the guest: %d sent, %d received, %v", sent, received, err)
	}
	m.run(t, "count eth0 start to-you")
	for _, dst := range []net.HardwareAddr{guestMAC, wire.Broadcast} {
		if err := lab.Outside.Send(lab.Outside.NIC, wire.Tagged(dst, lab.Outside.MAC, "to-you")); err != nil {
			t.Error(err)
		}
	}
	m.runUntil(t, "count eth0 read to-you", "unicast=1 broadcast=1 multicast=0 other=0 outgoing=0")
	m.run(t, "poweroff")
	m.waitEnd(t)
	release()
	before.Check(t)
}

// The guest uses services and offers its own.
func TestGuestServices(t *testing.T) {
	lab := nettest.New(t, nettest.Switch)
	third := lab.AddMachine("third", netip.MustParsePrefix("192.0.2.3/24"), netip.MustParsePrefix("2001:db8::3/64"))
	before := lab.Snapshot(t)
	m, release := bootOnMacvtap(t, lab, "")
	outside, outside6 := nettest.OutsideAddr4.Addr(), nettest.OutsideAddr6.Addr()

	t.Run("DHCP", func(t *testing.T) {
		if _, _, err := m.Run(within30s(t), "dhcp eth0 0.2"); err == nil {
			t.Error("a lease without a server")
		}
		server := lab.ServeAddresses(t)
		reply, _ := m.run(t, "dhcp eth0")
		t.Log(reply)
		addr, ok := server.Lease(guestMAC)
		if want := fmt.Sprintf("address=%s/24 server=192.0.2.1 lease=1h0m0s", addr); !ok || reply != want {
			t.Errorf("%q, want %q", reply, want)
		}
		if reply, _ := m.run(t, "ping 192.0.2.1 1"); reply != "sent=1 received=1" {
			t.Errorf("ping from the leased address: %s", reply)
		}
		m.run(t, "dhcp-release eth0")
		if reply, _ := m.run(t, "addrs eth0"); strings.Contains(reply, "192.0.2.") {
			t.Errorf("after the release: %s", reply)
		}
		for end := time.Now().Add(2 * time.Second); ok && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			_, ok = server.Lease(guestMAC)
		}
		if ok {
			t.Error("the server heard of no release")
		}
	})
	m.run(t, "addr eth0 192.0.2.11/24 2001:db8::11/64")

	t.Run("SLAAC", func(t *testing.T) {
		lab.ServeAddresses(t)
		const made = "2001:db8::5054:ff:fe12:3456/64"
		m.run(t, "slaac eth0 on")
		m.runUntilMatch(t, "addrs eth0", made)
		m.run(t, "slaac eth0 off")
		m.runUntil(t, "addrs eth0", "192.0.2.11/24,2001:db8::11/64,fe80::5054:ff:fe12:3456/64")
	})

	t.Run("datagrams", func(t *testing.T) {
		for _, group := range []string{"224.0.0.251", "ff02::fb", "192.0.2.11", "2001:db8::11"} {
			to := netip.AddrPortFrom(netip.MustParseAddr(group), 5353)
			if to.Addr().Is6() && to.Addr().IsMulticast() {
				to = netip.AddrPortFrom(to.Addr().WithZone(lab.Outside.NIC), 5353)
			}
			m.run(t, "listen udp "+group+" 5353 eth0")
			if err := lab.Outside.SendUDP(lab.Outside.NIC, to, "who is there", 5); err != nil {
				t.Error(err)
			}
			m.runUntil(t, "heard udp "+group+" 5353 eth0", "datagrams=5")
			m.run(t, "unlisten udp "+group+" 5353 eth0")
			if _, _, err := m.Run(within30s(t), "heard udp "+group+" 5353 eth0"); err == nil {
				t.Errorf("%s is heard of for ever", group)
			}
		}
		l := lab.Outside.Listen(lab.Outside.NIC, netip.MustParseAddrPort("[ff02::fb]:5353"))
		m.run(t, "sendudp ff02::fb%eth0 5353 eth0 hello 3")
		if got := l.Wait(3, 2*time.Second); got != 3 {
			t.Errorf("the outside heard %d", got)
		}
	})

	t.Run("streams", func(t *testing.T) {
		lab.Outside.ServeDiscard(9)
		m.run(t, "tcp serve 7")
		m.run(t, "tcp sink 9")
		linkLocal, err := lab.Outside.LinkLocal(lab.Outside.NIC)
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range []netip.Addr{outside, outside6, linkLocal.WithZone("eth0")} {
			reply, _ := m.run(t, fmt.Sprintf("tcp send %s 9 0.2", addr))
			t.Logf("to %s: %s", addr, reply)
			if !strings.HasPrefix(reply, "bytes=") {
				t.Error(reply)
			}
		}
		for _, addr := range []string{"192.0.2.11", "2001:db8::11", "fe80::5054:ff:fe12:3456%" + lab.Outside.NIC} {
			at := netip.MustParseAddr(addr)
			if answer, err := lab.Outside.EchoTCP(t.Context(), netip.AddrPortFrom(at, 7), "hello"); err != nil || answer != "hello" {
				t.Errorf("the guest echoed %q, %v", answer, err)
			}
			got, err := lab.Outside.SendTCP(t.Context(), netip.AddrPortFrom(at, 9), 200*time.Millisecond)
			if err != nil {
				t.Error(err)
			}
			t.Logf("from outside to %s: %.0f Mbit/s", addr, got.Mbit())
		}
		if reply, _ := m.run(t, "tcp echo 192.0.2.11 7 to myself"); reply != "to myself" {
			t.Errorf("echo: %q", reply)
		}
		m.run(t, "tcp stop 7")
		if _, err := lab.Outside.EchoTCP(t.Context(), netip.MustParseAddrPort("192.0.2.11:7"), "x"); err == nil {
			t.Error("a server that was stopped answers")
		}
	})

	t.Run("neighbours", func(t *testing.T) {
		known := func() string {
			list, err := third.Neighbours(third.NIC)
			if err != nil {
				t.Error(err)
			}
			return fmt.Sprint(list[outside], " ", list[outside6])
		}
		for _, addr := range []netip.Addr{outside, outside6} {
			if _, received, err := third.Ping(t.Context(), addr, 1, 0); received != 1 {
				t.Errorf("ping %s: %v", addr, err)
			}
			m.run(t, fmt.Sprintf("gratuitous eth0 %s", addr))
		}
		want := fmt.Sprint(guestMAC, " ", guestMAC)
		for end := time.Now().Add(2 * time.Second); known() != want && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
		if got := known(); got != want {
			t.Errorf("the third machine believes %s, want %s", got, want)
		}
		m.run(t, "ping 192.0.2.3 1")
		reply, lines := m.run(t, "neigh eth0")
		if all := strings.Join(lines, "\n"); !strings.Contains(all, "192.0.2.3 mac="+third.MAC.String()) {
			t.Errorf("the guest's neighbours: %s\n%s", reply, all)
		}
		m.run(t, "neigh flush eth0")
		if reply, _ := m.run(t, "neigh eth0"); reply != "neighbours=0" {
			t.Errorf("after the flush: %s", reply)
		}
	})
	m.run(t, "poweroff")
	m.waitEnd(t)
	release()
	before.Check(t)
}
