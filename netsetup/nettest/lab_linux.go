package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/netsetup"
)

// Where the lab's machines are on its network. The rest of 192.0.2.0/24 and of
// 2001:db8::/64 is free for guests.
var (
	OutsideAddr4 = netip.MustParsePrefix("192.0.2.1/24")
	OutsideAddr6 = netip.MustParsePrefix("2001:db8::1/64")
	HostAddr4    = netip.MustParsePrefix("192.0.2.2/24")
	HostAddr6    = netip.MustParsePrefix("2001:db8::2/64")
)

var (
	outsideMAC = net.HardwareAddr{0x02, 0x00, 0x5e, 0x10, 0x00, 0x01}
	hostMAC    = net.HardwareAddr{0x02, 0x00, 0x5e, 0x10, 0x00, 0x02}
	switchMAC  = net.HardwareAddr{0x02, 0x00, 0x5e, 0x10, 0x00, 0x03}
)

const (
	hostNIC    = "lab0"
	outsideNIC = "wire0"
	bridge     = "sw0"
)

// Lab is a host, a machine outside, and the wire between them.
type Lab struct {
	Host    *Host
	Outside *Host
	// Switch is where the bridge sw0 is; nil when the wire is plain.
	Switch *Host

	t        testing.TB
	opts     options
	machines map[string]*Host
	nics     map[string]string // the host's, and the far end of each
}

type options struct {
	onSwitch, hairpin bool
	mtu               int
}

// Option chooses what New builds.
type Option func(*options)

// Switch puts a bridge on the wire.
func Switch(o *options) { o.onSwitch = true }

// Hairpin puts a bridge on the wire that reflects what the host sends.
func Hairpin(o *options) { o.onSwitch, o.hairpin = true, true }

// MTU sets the MTU of the wire and both NICs on it.
func MTU(mtu int) Option {
	return func(o *options) { o.mtu = mtu }
}

// Root skips the test when it does not run as root, or fails it when
// VMRUN_TEST_REQUIRE is 1.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
		t.Fatal("not root, and VMRUN_TEST_REQUIRE=1")
	}
	t.Skip("needs root for network namespaces: run go test as root")
}

// New builds a lab that ends with the test, together with every process that is
// still in it then.
func New(t testing.TB, opts ...Option) *Lab {
	t.Helper()
	Root(t)
	l := &Lab{t: t, machines: make(map[string]*Host), nics: make(map[string]string)}
	for _, opt := range opts {
		opt(&l.opts)
	}
	t.Cleanup(l.end)
	l.Host, l.Outside = l.newHost("host"), l.newHost("outside")
	l.Host.NIC, l.Host.MAC = hostNIC, hostMAC
	l.Outside.NIC, l.Outside.MAC = outsideNIC, outsideMAC
	if l.opts.onSwitch {
		l.Switch = l.newHost("switch")
		l.must("switch", l.Switch.Do(func() error {
			off := false
			attrs := l.attrs(bridge)
			attrs.HardwareAddr = switchMAC // not its ports', which come and go
			return addUp(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off})
		}))
		l.must("outside", l.connect(l.Outside, outsideNIC, outsideMAC, l.Switch, "port-"+outsideNIC))
		l.must("outside", l.Outside.addAddresses(outsideNIC, OutsideAddr4, OutsideAddr6))
	}
	l.AddNIC(hostNIC, NIC{MAC: hostMAC, Addresses: []netip.Prefix{HostAddr4, HostAddr6}})
	l.must("outside", l.Outside.waitAddresses(outsideNIC))
	return l
}

// AddMachine puts another machine on the wire, which has to have a switch. The
// NIC is named for it, NAME0.
func (l *Lab) AddMachine(name string, addrs ...netip.Prefix) *Host {
	l.t.Helper()
	if l.Switch == nil {
		l.t.Fatalf("lab: %s: a plain wire has two ends: build the lab with nettest.Switch", name)
	}
	h := l.newHost(name)
	h.NIC, h.MAC = name+"0", slices.Clone(outsideMAC)
	h.MAC[3], h.MAC[5] = 0x11, byte(len(l.machines))
	l.must(name, l.connect(h, h.NIC, h.MAC, l.Switch, "port-"+h.NIC))
	l.must(name, h.addAddresses(h.NIC, addrs...))
	l.must(name, h.waitAddresses(h.NIC))
	return h
}

// end kills what is left in the lab, and then lets go of it.
func (l *Lab) end() {
	l.endProcesses()
	for _, m := range l.machines {
		m.Namespace.Close()
	}
}

func (l *Lab) must(what string, err error) {
	if err != nil {
		l.t.Helper()
		l.t.Fatalf("lab: %s: %v", what, err)
	}
}

func (l *Lab) attrs(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, l.opts.mtu
	return attrs
}

// newHost makes a namespace whose addresses are usable at once and stay where a
// NIC goes down, and which sends nothing unasked.
func (l *Lab) newHost(name string) *Host {
	l.t.Helper()
	if l.machines[name] != nil {
		l.t.Fatalf("lab: there is a machine %s already", name)
	}
	ns, err := netsetup.NewNamespace()
	l.must("namespace", err)
	h := &Host{Namespace: ns, t: l.t}
	l.machines[name] = h
	defaults := map[string]string{
		"accept_dad": "0", "accept_ra": "0", "router_solicitations": "0", "keep_addr_on_down": "1",
	}
	if name == "switch" {
		defaults["disable_ipv6"] = "1" // it is nobody on the network
	}
	l.must("namespace", h.Do(func() error {
		for key, value := range defaults {
			path := filepath.Join("/proc/sys/net/ipv6/conf/default", key)
			if err := os.WriteFile(path, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}))
	return h
}

// NIC holds the options of a NIC; its zero value is one with a MAC of its own
// and no address.
type NIC struct {
	MAC       net.HardwareAddr
	MTU       int
	Addresses []netip.Prefix
	Bridge    string // the bridge of the host that it is a port of; made when missing
	Unplugged bool   // without carrier
}

// AddNIC gives the host another NIC. Its far end is on the switch, or else in
// Outside with the name wire-NAME. It may have the name of one that was removed.
func (l *Lab) AddNIC(name string, o NIC) {
	l.t.Helper()
	far, peer := l.far(), "wire-"+name
	if name == hostNIC {
		peer = outsideNIC
	}
	if far == l.Switch {
		peer = "port-" + name
	}
	mtu := l.opts.mtu
	if o.MTU != 0 {
		l.opts.mtu = o.MTU
	}
	err := l.connect(l.Host, name, o.MAC, far, peer)
	l.opts.mtu = mtu
	l.must(name, err)
	l.nics[name] = peer
	l.must(name, l.Host.addAddresses(name, o.Addresses...))
	if peer == outsideNIC {
		l.must(name, l.Outside.addAddresses(peer, OutsideAddr4, OutsideAddr6))
	}
	if o.MTU == 0 || o.MTU >= 1280 { // RFC 8200, 5
		l.must(name, l.Host.waitAddresses(name))
	}
	if o.Bridge != "" {
		l.must(name, l.Host.Do(func() error { return enslave(name, o.Bridge) }))
	}
	if o.Unplugged {
		l.SetCarrier(name, false)
	}
}

// RemoveNIC takes a NIC out of the host, as a driver that is unloaded does. On a
// plain wire the far end is gone with it.
func (l *Lab) RemoveNIC(name string) {
	l.t.Helper()
	l.must(name, l.Host.onLink(name, netlink.LinkDel))
	delete(l.nics, name)
}

// RenameNIC gives a NIC of the host another name while it is up, as udev may
// (Linux 6.2 and later).
func (l *Lab) RenameNIC(name, to string) {
	l.t.Helper()
	l.must(name, l.Host.onLink(name, func(link netlink.Link) error { return netlink.LinkSetName(link, to) }))
	l.nics[to] = l.nics[name]
	delete(l.nics, name)
	if l.Host.NIC == name {
		l.Host.NIC = to
	}
}

// MoveNIC moves a NIC from one machine of the lab to another and sets it up
// there; it arrives without its addresses.
func (l *Lab) MoveNIC(name string, from, to *Host) {
	l.t.Helper()
	fd, err := to.open()
	l.must(name, err)
	defer unix.Close(fd)
	l.must(name, from.onLink(name, func(link netlink.Link) error { return netlink.LinkSetNsFd(link, fd) }))
	l.must(name, to.onLink(name, netlink.LinkSetUp))
}

// SetCarrier plugs and unplugs the cable of a NIC of the host.
func (l *Lab) SetCarrier(name string, plugged bool) {
	l.t.Helper()
	set := netlink.LinkSetDown
	if plugged {
		set = netlink.LinkSetUp
	}
	l.must(name, l.far().onLink(l.nics[name], set))
}

// SetMTU sets the MTU of a NIC of the host and of its far end. What lies beyond
// a switch keeps its own.
func (l *Lab) SetMTU(name string, mtu int) {
	l.t.Helper()
	set := func(link netlink.Link) error { return netlink.LinkSetMTU(link, mtu) }
	l.must(name, l.far().onLink(l.nics[name], set))
	l.must(name, l.Host.onLink(name, set))
}

// far is where the far ends of the host's NICs are.
func (l *Lab) far() *Host {
	if l.Switch != nil {
		return l.Switch
	}
	return l.Outside
}

// connect makes a veth pair between two namespaces, both ends up. The far end
// joins the switch when it is there.
func (l *Lab) connect(h *Host, name string, mac net.HardwareAddr, far *Host, peer string) error {
	fd, err := far.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attrs := l.attrs(name)
	attrs.HardwareAddr = mac
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerNamespace: netlink.NsFd(fd), PeerMTU: uint32(l.opts.mtu)}
	switch {
	case peer == outsideNIC:
		pair.PeerHardwareAddr = outsideMAC
	case mac != nil: // one that is the same when the NIC is made again
		pair.PeerHardwareAddr = slices.Clone(mac)
		pair.PeerHardwareAddr[0] ^= 0x04
	}
	if err := h.Do(func() error { return addUp(pair) }); err != nil {
		return err
	}
	return far.Do(func() error {
		link, err := netlink.LinkByName(peer)
		if err != nil {
			return fmt.Errorf("%s: %w", peer, err)
		}
		if far == l.Switch {
			if err := enslave(peer, bridge); err != nil {
				return err
			}
			if l.opts.hairpin && h == l.Host {
				if err := netlink.LinkSetHairpin(link, true); err != nil {
					return fmt.Errorf("%s: hairpin: %w", peer, err)
				}
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		return waitUp(peer)
	})
}

// waitUp waits until a link has noticed its carrier, which the kernel may tell it
// only a second later (net/core/link_watch.c): until then a switch's port is shut.
func waitUp(name string) error {
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: no carrier: %s", name, link.Attrs().OperState)
		}
	}
}

// addUp creates a link in the calling thread's namespace and sets it up.
func addUp(link netlink.Link) error {
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("%s: create: %w", link.Attrs().Name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s: up: %w", link.Attrs().Name, err)
	}
	return nil
}

// enslave makes port a port of a bridge, which it creates when missing.
func enslave(port, master string) error {
	link, err := netlink.LinkByName(port)
	if err != nil {
		return fmt.Errorf("%s: %w", port, err)
	}
	br, err := netlink.LinkByName(master)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = master
		if err := addUp(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		br, err = netlink.LinkByName(master)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", master, err)
	}
	if err := netlink.LinkSetMaster(link, br); err != nil {
		return fmt.Errorf("%s: master %s: %w", port, master, err)
	}
	return nil
}
