package netsetup_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// newGuest makes a child that is up, with its tap.
func newGuest(t *testing.T, lab *nettest.Lab, c netsetup.Child) *tapped {
	t.Helper()
	g := newTapped(t, lab, c)
	must(t, g.ns.Up(c))
	return g
}

// childOn is the nth child of these tests, of a parent.
func childOn(parent string, mode configs.Mode, n int) netsetup.Child {
	c := testChild(mode, n)
	c.Parent = parent
	return c
}

// send writes a tagged frame into the guest's tap, behind the header of a
// virtio NIC that a tap begins with (drivers/net/tap.c, tap_open).
func (g *tapped) send(t *testing.T, from, to net.HardwareAddr, tag string) {
	t.Helper()
	const header = 10 // struct virtio_net_hdr
	if _, err := g.tap.Write(append(make([]byte, header), wire.Tagged(to, from, tag)...)); err != nil {
		t.Error(err)
	}
}

// comesOut makes sure that a guest's broadcast is heard at these far ends, once
// each, and at no other.
func comesOut(t *testing.T, lab *nettest.Lab, g *tapped, want []string, others ...string) {
	t.Helper()
	g.sent++
	tag := fmt.Sprintf("from %d, %d", g.Index, g.sent)
	captures := map[string]*wire.Capture{}
	for _, far := range append(slices.Clone(want), others...) {
		captures[far] = lab.Outside.Capture(far, tag)
	}
	g.send(t, g.MAC, wire.Broadcast, tag)
	for _, far := range want {
		captures[far].Wait(1, 2*time.Second)
	}
	time.Sleep(50 * time.Millisecond)
	for far, c := range captures {
		expect := 0
		if slices.Contains(want, far) {
			expect = 1
		}
		if got := c.Counts().Received(); got != expect {
			t.Errorf("%s: %d of its frames came out at %s, want %d", g.Lower(), got, far, expect)
		}
	}
}

// goesIn makes sure that what is sent from a far end comes out of the tap.
func goesIn(t *testing.T, lab *nettest.Lab, far string, g *tapped) {
	t.Helper()
	g.sent++
	tag := fmt.Sprintf("to %d, %d", g.Index, g.sent)
	must(t, lab.Outside.Send(far, wire.Tagged(g.MAC, lab.Outside.MAC, tag)))
	if got := readTagged(t, g.tap, tag); got != tag {
		t.Errorf("%s: what was sent from %s: %s", g.Lower(), far, got)
	}
}

// check holds a child against the lab's host.
func check(t *testing.T, lab *nettest.Lab, c netsetup.Child) []netsetup.Problem {
	t.Helper()
	return netsetup.Check([]netsetup.Child{c}, survey(t, lab, c.Parent, c.Lower()), nil)
}

// refused makes sure that Check says so, and the kernel does.
func refused(t *testing.T, lab *nettest.Lab, c netsetup.Child, want netsetup.Problem, errno error) {
	t.Helper()
	if diff := cmp.Diff([]netsetup.Problem{want}, check(t, lab, c)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", c.Lower(), diff)
	}
	if err := create(t, lab, newNamespace(t), c); !errors.Is(err, errno) {
		t.Errorf("%s: the kernel says %v, want %v", c.Lower(), err, errno)
	}
}

func fine(t *testing.T, lab *nettest.Lab, c netsetup.Child) {
	t.Helper()
	if problems := check(t, lab, c); len(problems) > 0 {
		t.Errorf("%s: %+v", c.Lower(), problems)
	}
}

func setUp(t *testing.T, h *nettest.Host, names ...string) {
	t.Helper()
	for _, name := range names {
		must(t, h.Do(func() error {
			return netlink.LinkSetUp(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: indexIn(t, h, name)}})
		}))
	}
}

func indexIn(t *testing.T, h *nettest.Host, name string) int {
	t.Helper()
	link, err := h.Link(name)
	must(t, err)
	return link.Attrs().Index
}

// addVLANs puts VLAN devices on a link, named as AcquireVLAN does.
func addVLANs(t *testing.T, h *nettest.Host, parent string, ids ...int) {
	t.Helper()
	for _, id := range ids {
		name := fmt.Sprintf("%s.%d", parent, id)
		must(t, h.Do(addLink(&netlink.Vlan{LinkAttrs: attrs(name, indexIn(t, h, parent)), VlanId: id})))
		setUp(t, h, name)
	}
}

// tagsAt returns the VLAN tags of the next frame with this tag in its payload. A packet
// socket tells them apart from the frame (packet(7), PACKET_AUXDATA).
func tagsAt(t *testing.T, h *nettest.Host, dev, tag string, send func()) uint16 {
	t.Helper()
	var fd int
	must(t, h.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		link, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: link.Index}))
	}))
	defer unix.Close(fd)
	send()
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for {
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, 0)
		if err != nil {
			t.Fatalf("%s: %v", dev, err)
		}
		if !bytes.Contains(buf[:n], []byte(tag)) {
			continue
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		must(t, err)
		for _, m := range msgs {
			if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA {
				return uint16(m.Data[16]) | uint16(m.Data[17])<<8 // struct tpacket_auxdata, tp_vlan_tci
			}
		}
		return 0
	}
}

// Children on two VLANs of one NIC: frames leave with the VLAN's tag, come in
// without it, and each hears its own VLAN alone.
func TestVLANParent(t *testing.T) {
	nettest.Kernel(t, "vlan")
	lab := nettest.New(t)
	addVLANs(t, lab.Host, "lab0", 10, 11)
	addVLANs(t, lab.Outside, "wire0", 10, 11)
	var guests []*tapped
	for i, id := range []int{10, 11, 0} {
		c := testChild(configs.ModeBridge, i)
		c.VLAN = id
		fine(t, lab, c)
		guests = append(guests, newGuest(t, lab, c))
	}
	for i, far := range []string{"wire0.10", "wire0.11"} {
		g := guests[i]
		comesOut(t, lab, g, []string{far}, []string{"wire0.11", "wire0.10"}[i])
		goesIn(t, lab, far, g)
		tag := "which VLAN " + far
		if tci := tagsAt(t, lab.Outside, "wire0", tag, func() { g.send(t, g.MAC, wire.Broadcast, tag) }); int(tci) != g.VLAN {
			t.Errorf("%s: the frame came with tag %d", g.Lower(), tci)
		}
	}
	comesOut(t, lab, guests[2], nil, "wire0.10", "wire0.11")
	goesIn(t, lab, "wire0", guests[2])

	t.Run("one MAC on two VLANs", func(t *testing.T) {
		c := testChild(configs.ModeBridge, 3)
		c.VLAN, c.MAC = 11, guests[0].MAC
		fine(t, lab, c)
		comesOut(t, lab, newGuest(t, lab, c), []string{"wire0.11"}, "wire0.10")
	})
	t.Run("MTU", func(t *testing.T) {
		c := testChild(configs.ModeBridge, 4)
		c.VLAN, c.MTU = 10, 1501
		refused(t, lab, c, problem("mtu", "1501 is above the 1500 of lab0: lower it, or type: ip link set lab0 mtu 1501"), unix.EINVAL)
		must(t, lab.Host.Do(func() error { return netlink.LinkSetMTU(linkOf("lab0", indexIn(t, lab.Host, "lab0")), 9000) }))
		refused(t, lab, c, problem("mtu", "1501 is above the 1500 of lab0.10: lower it, or type: ip link set lab0.10 mtu 1501"), unix.EINVAL)
	})
	t.Run("passthru", func(t *testing.T) {
		addVLANs(t, lab.Host, "lab0", 12)
		c := testChild(configs.ModePassthru, 5)
		c.VLAN, c.MAC = 12, lab.Host.MAC
		fine(t, lab, c)
		newGuest(t, lab, c)
		c.VLAN = 10
		if err := create(t, lab, newNamespace(t), c); !errors.Is(err, unix.EINVAL) {
			t.Errorf("beside another guest: %v", err)
		}
	})
}

func linkOf(name string, index int) netlink.Link {
	a := netlink.NewLinkAttrs()
	a.Name, a.Index = name, index
	return &netlink.Dummy{LinkAttrs: a}
}

// A VLAN of a bridge's port has its frames before the bridge does.
func TestVLANOfBridgePort(t *testing.T) {
	nettest.Kernel(t, "vlan")
	lab := nettest.New(t)
	lab.AddNIC("port0", nettest.NIC{Bridge: "br0"})
	addVLANs(t, lab.Host, "port0", 10)
	addVLANs(t, lab.Outside, "wire-port0", 10)
	c := childOn("port0", configs.ModeBridge, 1)
	c.VLAN = 10
	fine(t, lab, c)
	g := newGuest(t, lab, c)
	comesOut(t, lab, g, []string{"wire-port0.10"})
	goesIn(t, lab, "wire-port0.10", g)
}

// Children on a bond send by its active link alone, and by the other when that
// is unplugged. The links themselves have an owner.
func TestBondParent(t *testing.T) {
	nettest.Kernel(t, "bond", "vlan")
	lab := nettest.New(t)
	bond := netlink.NewLinkBond(attrs("bond0", 0))
	bond.Mode, bond.Miimon = netlink.BOND_MODE_ACTIVE_BACKUP, 20
	inLab(t, lab, addLink(bond))
	master := linkOf("bond0", indexOf(t, lab, "bond0"))
	for _, name := range []string{"nic1", "nic2"} {
		lab.AddNIC(name, nettest.NIC{})
		link := linkOf(name, indexOf(t, lab, name))
		inLab(t, lab,
			func() error { return netlink.LinkSetDown(link) },
			func() error { return netlink.LinkSetMaster(link, master) })
	}
	setUp(t, lab.Host, "bond0")
	waitActive(t, lab, "nic1")

	c := childOn("bond0", configs.ModeBridge, 1)
	fine(t, lab, c)
	g := newGuest(t, lab, c)
	comesOut(t, lab, g, []string{"wire-nic1"}, "wire-nic2")
	goesIn(t, lab, "wire-nic1", g)
	lab.SetCarrier("nic1", false)
	waitActive(t, lab, "nic2")
	comesOut(t, lab, g, []string{"wire-nic2"})
	goesIn(t, lab, "wire-nic2", g)

	t.Run("slave", func(t *testing.T) {
		refused(t, lab, childOn("nic2", configs.ModeBridge, 2), problem("parent",
			`nic2 is owned by the bond bond0, and a link has one such owner only: use parent = "bond0", or type: ip link set nic2 nomaster`), unix.EBUSY)
	})
	t.Run("VLAN", func(t *testing.T) {
		addVLANs(t, lab.Host, "bond0", 10)
		addVLANs(t, lab.Outside, "wire-nic2", 10)
		c := childOn("bond0", configs.ModeBridge, 3)
		c.VLAN = 10
		fine(t, lab, c)
		g := newGuest(t, lab, c)
		comesOut(t, lab, g, []string{"wire-nic2.10"})
		goesIn(t, lab, "wire-nic2.10", g)
	})
	t.Run("MTU", func(t *testing.T) {
		c := childOn("bond0", configs.ModeBridge, 4)
		c.MTU = 1600
		refused(t, lab, c, problem("mtu", "1600 is above the 1500 of bond0: lower it, or type: ip link set bond0 mtu 1600"), unix.EINVAL)
		inLab(t, lab, func() error { return netlink.LinkSetMTU(master, 1600) })
		fine(t, lab, c)
		must(t, create(t, lab, newNamespace(t), c))
		if link, err := lab.Host.Link("nic2"); err != nil || link.Attrs().MTU != 1600 {
			t.Errorf("the links did not follow: %+v, %v", link, err)
		}
	})
}

// waitActive waits until a bond sends by one of its links.
func waitActive(t *testing.T, lab *nettest.Lab, name string) {
	t.Helper()
	want := indexOf(t, lab, name)
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		link, err := lab.Host.Link("bond0")
		must(t, err)
		if bond := link.(*netlink.Bond); bond.ActiveSlave == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the bond does not use %s: %+v", name, link)
		}
	}
}

// Children on a bridge itself are heard at all of its ports; a port has an owner.
func TestBridgeParent(t *testing.T) {
	lab := nettest.New(t)
	lab.AddNIC("port0", nettest.NIC{Bridge: "br0"})
	lab.AddNIC("port1", nettest.NIC{Bridge: "br0"})
	fine(t, lab, childOn("br0", configs.ModeBridge, 1))
	g := newGuest(t, lab, childOn("br0", configs.ModeBridge, 1))
	comesOut(t, lab, g, []string{"wire-port0", "wire-port1"})
	goesIn(t, lab, "wire-port0", g)
	goesIn(t, lab, "wire-port1", g)
	refused(t, lab, childOn("port0", configs.ModeBridge, 2), problem("parent",
		`port0 is owned by the bridge br0, and a link has one such owner only: use parent = "br0", or type: ip link set port0 nomaster`), unix.EBUSY)
}

// Guests on a dummy link have each other and nobody else.
func TestDummyParent(t *testing.T) {
	nettest.Kernel(t, "dummy")
	lab := nettest.New(t)
	inLab(t, lab, addLink(&netlink.Dummy{LinkAttrs: attrs("dummy0", 0)}))
	setUp(t, lab.Host, "dummy0")
	fine(t, lab, childOn("dummy0", configs.ModeBridge, 1))
	one, other := newGuest(t, lab, childOn("dummy0", configs.ModeBridge, 1)), newGuest(t, lab, childOn("dummy0", configs.ModeBridge, 2))
	one.send(t, one.MAC, other.MAC, "for the other")
	if got := readTagged(t, other.tap, "for the other"); got != "for the other" {
		t.Errorf("the other guest has %s", got)
	}
}

// On a NIC that filters unicast a child adds its address to the filter, and
// makes nothing promiscuous that need not be.
func TestUnicastFilteringParent(t *testing.T) {
	nettest.InGuest(t)
	lab := nettest.New(t)
	link, err := netlink.LinkByName("eth0")
	must(t, err)
	var ns *os.File
	must(t, lab.Host.Do(func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	}))
	defer ns.Close()
	// At the lab's end the kernel moves it back (net/core/dev.c, default_device_exit_net).
	must(t, netlink.LinkSetNsFd(link, int(ns.Fd())))
	setUp(t, lab.Host, "eth0")
	own := link.Attrs().HardwareAddr
	for _, tt := range []struct {
		name             string
		mode             configs.Mode
		promisc          bool
		promiscuity, all int
	}{
		{"bridge", configs.ModeBridge, true, 0, 0},
		{"private", configs.ModePrivate, true, 0, 0},
		{"vepa", configs.ModeVEPA, true, 0, 0},
		{"passthru", configs.ModePassthru, true, 1, 0},
		{"passthru without promisc", configs.ModePassthru, false, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := childOn("eth0", tt.mode, 1)
			c.Promisc = tt.promisc
			if tt.mode == configs.ModePassthru {
				c.MAC = own
			}
			fine(t, lab, c)
			g := newGuest(t, lab, c)
			nic, err := lab.Host.Link("eth0")
			must(t, err)
			if a := nic.Attrs(); a.Promisc != tt.promiscuity || a.Allmulti != tt.all {
				t.Errorf("promiscuity %d, allmulti %d; want %d and %d", a.Promisc, a.Allmulti, tt.promiscuity, tt.all)
			}
			fdb, err := inside(lab.Host.Namespace, "bridge", "fdb", "show", "dev", "eth0")
			must(t, err)
			if listed := strings.Contains(fdb, c.MAC.String()); listed != (tt.mode != configs.ModePassthru) {
				t.Errorf("the child's address is in the filter: %t\n%s", listed, fdb)
			}
			g.end(t)
			if nic, err = lab.Host.Link("eth0"); err != nil || nic.Attrs().Promisc != 0 || nic.Attrs().Allmulti != 0 {
				t.Errorf("left behind: %+v, %v", nic, err)
			}
		})
	}
}

// A length left out is the kernel's own; the tap receives then, as with one of
// its own.
func TestQueueLengths(t *testing.T) {
	for _, tt := range []struct{ tx, bc, wantTx, wantBc int }{
		{0, 0, 500, 1000}, // drivers/net/tap.h, TUN_READQ_SIZE; macvlan.c, MACVLAN_DEFAULT_BC_QUEUE_LEN
		{2000, 3000, 2000, 3000},
	} {
		lab := nettest.New(t)
		c := testChild(configs.ModeBridge, 1)
		c.TxQueueLen, c.BcQueueLen = tt.tx, tt.bc
		g := newGuest(t, lab, c)
		goesIn(t, lab, "wire0", g)
		link := macvtap(t, g.ns)
		if link.Attrs().TxQLen != tt.wantTx || int(link.BCQueueLen) != tt.wantBc || int(link.UsedBCQueueLen) != tt.wantBc {
			t.Errorf("lengths %d and %d, used %d; want %d and %d", link.Attrs().TxQLen, link.BCQueueLen, link.UsedBCQueueLen, tt.wantTx, tt.wantBc)
		}
	}
}
