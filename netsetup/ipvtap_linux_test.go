package netsetup_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// ipvtapOn is the nth ipvtap of a parent: 192.0.2.(10+n) and 2001:db8::(10+n).
func ipvtapOn(parent string, n byte) netsetup.Child {
	c := childOn(parent, "", int(n))
	c.Kind, c.MAC = configs.KindIPvtap, nil
	v6 := netip.MustParseAddr("2001:db8::").As16()
	v6[15] = 10 + n
	c.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 10 + n}), netip.AddrFrom16(v6)}
	return c
}

// packet is a frame with an IP packet without any transport, as far as ipvlan
// looks at one.
func packet(dstMAC, srcMAC net.HardwareAddr, dst netip.Addr, tag string) []byte {
	header, src, kind := make([]byte, 20), nettest.OutsideAddr4.Addr(), uint16(unix.ETH_P_IP)
	if dst.Is6() {
		header, src, kind = make([]byte, 40), nettest.OutsideAddr6.Addr(), unix.ETH_P_IPV6
		header[0], header[6], header[7] = 0x60, 59, 64 // no next header
		binary.BigEndian.PutUint16(header[4:], uint16(len(tag)))
		copy(header[8:], src.AsSlice())
		copy(header[24:], dst.AsSlice())
	} else {
		header[0], header[8], header[9] = 0x45, 64, 253 // for experiments (RFC 3692)
		binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(tag)))
		copy(header[12:], src.AsSlice())
		copy(header[16:], dst.AsSlice())
	}
	frame := append(append([]byte{}, dstMAC...), srcMAC...)
	frame = binary.BigEndian.AppendUint16(frame, kind)
	return append(append(frame, header...), tag...)
}

// Children of one MAC are told apart by their addresses, and hear broadcast.
func TestIPvtap(t *testing.T) {
	nettest.Kernel(t, "ipvtap")
	lab := nettest.New(t)
	var guests []*tapped
	for n := range byte(2) {
		c := ipvtapOn("lab0", n+1)
		fine(t, lab, c)
		guests = append(guests, newGuest(t, lab, c))
	}
	nic := lab.Host.MAC
	for i, g := range guests {
		if mac := linkIn(t, g.ns, "net0").Attrs().HardwareAddr; mac.String() != nic.String() {
			t.Errorf("the child has MAC %s, the parent %s", mac, nic)
		}
		for _, addr := range g.Addresses {
			must(t, lab.Outside.Send("wire0", packet(nic, lab.Outside.MAC, addr, "by address")))
			if got := readTagged(t, g.tap, "by address"); got != "by address" {
				t.Errorf("what was sent to %s: %s", addr, got)
			}
			other := guests[1-i]
			frame := packet(nic, nic, addr, "from the sibling")
			_, err := other.tap.Write(append(make([]byte, 10), frame...))
			must(t, err)
			if got := readTagged(t, g.tap, "by address", "from the sibling"); got != "from the sibling" {
				t.Errorf("what the sibling sent to %s: %s", addr, got)
			}
		}
		g.MAC = nic
		comesOut(t, lab, g, []string{"wire0"})
	}
	must(t, lab.Outside.Send("wire0", wire.Tagged(wire.Broadcast, lab.Outside.MAC, "for all")))
	for i, g := range guests {
		if got := readTagged(t, g.tap, "by address", "from the sibling", "for all"); got != "for all" {
			t.Errorf("guest %d has %s before the broadcast", i, got)
		}
	}
	if sent, received, err := lab.Host.Ping(t.Context(), nettest.OutsideAddr4.Addr(), 2, 0); err != nil || received != sent {
		t.Errorf("the host itself: %d of %d, %v", received, sent, err)
	}
}

// The host's stack says nothing with the child's addresses: no MLD, no DAD, no
// answer to who has them, and nothing of its own address.
func TestIPvtapIsSilent(t *testing.T) {
	nettest.Kernel(t, "ipvtap")
	for _, tt := range []struct {
		name   string
		spoil  func(t *testing.T, g *tapped)
		silent bool
	}{
		{"as it is used", nil, true},
		{"as IPv6 is, to see that the test hears", func(t *testing.T, g *tapped) {
			for _, words := range []string{"link set net0 arp on", "address add 2001:db8::99/128 dev net0"} {
				_, err := inside(g.ns, append([]string{"ip"}, strings.Fields(words)...)...)
				must(t, err)
			}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := nettest.New(t)
			inLab(t, lab, func() error {
				return os.WriteFile("/proc/sys/net/ipv6/conf/lab0/disable_ipv6", []byte("1"), 0)
			})
			capture := lab.Outside.Capture("wire0", "")
			c := ipvtapOn("lab0", 1)
			c.Addresses = append(c.Addresses, netip.MustParseAddr("fe80::1234"))
			g := newGuest(t, lab, c)
			if tt.spoil != nil {
				tt.spoil(t, g)
			}
			for _, target := range []string{"192.0.2.11", "127.0.0.1"} {
				must(t, lab.Outside.Send("wire0", arpRequest(lab.Outside.MAC, net.IPv4(192, 0, 2, 1), net.ParseIP(target))))
			}
			sent, received, err := lab.Outside.Ping(t.Context(), c.Addresses[1], 1, 10*time.Millisecond)
			if err == nil && received > 0 {
				t.Errorf("the host's stack answers for the guest: %d of %d", received, sent)
			}
			time.Sleep(listenTime)
			if said := spoken(capture, lab.Host.MAC); (len(said) == 0) != tt.silent {
				t.Errorf("%d frames: %q", len(said), said)
			}
			addrs, err := inside(g.ns, "ip", "-6", "address", "show", "dev", "net0")
			must(t, err)
			for _, want := range c.Addresses[1:] {
				if !strings.Contains(addrs, want.String()+"/128") {
					t.Errorf("%s is not on the child:\n%s", want, addrs)
				}
			}
		})
	}
}

// A parent has children of one kind, with addresses of their own, in one mode.
func TestIPvtapErrors(t *testing.T) {
	nettest.Kernel(t, "ipvtap")
	lab := nettest.New(t)
	for _, name := range []string{"macvlans", "ipvlans", "threes"} {
		lab.AddNIC(name, nettest.NIC{})
	}
	inLab(t, lab,
		addLink(&netlink.Macvlan{LinkAttrs: attrs("mv0", indexOf(t, lab, "macvlans")), Mode: netlink.MACVLAN_MODE_BRIDGE}),
		addLink(&netlink.IPVlan{LinkAttrs: attrs("iv0", indexOf(t, lab, "ipvlans")), Mode: netlink.IPVLAN_MODE_L2}),
		addLink(&netlink.IPVlan{LinkAttrs: attrs("iv3", indexOf(t, lab, "threes")), Mode: netlink.IPVLAN_MODE_L3}))
	refused(t, lab, ipvtapOn("macvlans", 1), problem("kind",
		`link mv0 is on macvlans already (mode bridge), and a link has macvtap or ipvtap children, not both: use kind = "macvtap", or another NIC`), unix.EBUSY)
	refused(t, lab, childOn("ipvlans", configs.ModeBridge, 1), problem("kind",
		`link iv0 is on ipvlans already (kind ipvtap), and a link has macvtap or ipvtap children, not both: use kind = "ipvtap", or another NIC`), unix.EBUSY)
	refused(t, lab, childOn("ipvlans", configs.ModePassthru, 1), problem("mode",
		`passthru takes ipvlans for one child alone, and link iv0 is on it already (kind ipvtap): end that first, or use mode = "bridge"`), unix.EBUSY)
	fine(t, lab, ipvtapOn("ipvlans", 1))
	must(t, create(t, lab, newNamespace(t), ipvtapOn("ipvlans", 1)))
	setUp(t, lab.Host, "iv0")
	fine(t, lab, ipvtapOn("iv0", 2))
	must(t, create(t, lab, newNamespace(t), ipvtapOn("iv0", 2)))

	t.Run("the kernel changes the mode of all", func(t *testing.T) {
		want := problem("kind", "link iv3 is on threes in ipvlan's mode l3, which all of its children share, and a guest's needs l2: end that first, or use another NIC")
		refused(t, lab, ipvtapOn("threes", 3), want, nil)
		if link := linkIn(t, lab.Host.Namespace, "iv3"); link.(*netlink.IPVlan).Mode != netlink.IPVLAN_MODE_L2 {
			t.Errorf("it no longer does, so Check need not refuse: %+v", link)
		}
	})
	t.Run("an address twice", func(t *testing.T) {
		newGuest(t, lab, ipvtapOn("ipvlans", 4))
		second := newTapped(t, lab, ipvtapOn("ipvlans", 4))
		err := second.ns.Up(second.Child)
		if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "192.0.2.14: another ipvlan or ipvtap link on ipvlans has it") {
			t.Errorf("%v", err)
		}
		second.end(t)
	})
	t.Run("an address again, after its namespace", func(t *testing.T) {
		first := newGuest(t, lab, ipvtapOn("lab0", 5))
		first.tap.Close()
		must(t, first.ns.Close())
		second := newTapped(t, lab, ipvtapOn("lab0", 5))
		for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			err := second.ns.Up(second.Child)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EADDRINUSE) || time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	})
	t.Run("down and up", func(t *testing.T) {
		g := newGuest(t, lab, ipvtapOn("lab0", 6))
		must(t, g.ns.Do(func() error { return netlink.LinkSetDown(linkOf("net0", g.Index)) }))
		must(t, g.ns.Up(g.Child))
		for _, addr := range g.Addresses {
			must(t, lab.Outside.Send("wire0", packet(lab.Host.MAC, lab.Outside.MAC, addr, "still")))
			if got := readTagged(t, g.tap, "still"); got != "still" {
				t.Errorf("what was sent to %s: %s", addr, got)
			}
		}
	})
}
