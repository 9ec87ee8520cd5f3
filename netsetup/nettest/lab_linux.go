package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

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

	t    testing.TB
	opts options
	nics []string // the host's
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
	l := &Lab{t: t}
	for _, opt := range opts {
		opt(&l.opts)
	}
	l.Host, l.Outside = l.newHost(), l.newHost()
	if l.opts.onSwitch {
		l.Switch = l.newHost()
		l.must("switch", l.Switch.Do(func() error {
			off := false
			return addUp(&netlink.Bridge{LinkAttrs: l.attrs(bridge), MulticastSnooping: &off})
		}))
		l.must("outside", l.connect(l.Outside, outsideNIC, outsideMAC, l.Switch, "port-"+outsideNIC))
	}
	// After the namespaces, so that it comes before their cleanups.
	t.Cleanup(l.endProcesses)
	l.AddNIC(hostNIC, NIC{MAC: hostMAC, Addresses: []netip.Prefix{HostAddr4, HostAddr6}})
	l.must("outside", l.Outside.addAddresses(outsideNIC, OutsideAddr4, OutsideAddr6))
	l.Host.NIC, l.Host.MAC = hostNIC, hostMAC
	l.Outside.NIC, l.Outside.MAC = outsideNIC, outsideMAC
	return l
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

// newHost makes a namespace whose addresses are usable at once and which sends
// nothing unasked.
func (l *Lab) newHost() *Host {
	l.t.Helper()
	ns, err := netsetup.NewNamespace()
	l.must("namespace", err)
	l.t.Cleanup(func() { ns.Close() })
	h := &Host{Namespace: ns, t: l.t}
	l.must("namespace", h.Do(func() error {
		for _, key := range []string{"accept_dad", "accept_ra", "router_solicitations"} {
			path := filepath.Join("/proc/sys/net/ipv6/conf/default", key)
			if err := os.WriteFile(path, []byte("0"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
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
// Outside with the name wire-NAME.
func (l *Lab) AddNIC(name string, o NIC) {
	l.t.Helper()
	far, peer := l.Outside, l.peer(name)
	if l.Switch != nil {
		far = l.Switch
	}
	mtu := l.opts.mtu
	if o.MTU != 0 {
		l.opts.mtu = o.MTU
	}
	err := l.connect(l.Host, name, o.MAC, far, peer)
	l.opts.mtu = mtu
	l.must(name, err)
	l.nics = append(l.nics, name)
	l.must(name, l.Host.addAddresses(name, o.Addresses...))
	if o.Bridge != "" {
		l.must(name, l.Host.Do(func() error { return enslave(name, o.Bridge) }))
	}
	if o.Unplugged {
		l.SetCarrier(name, false)
	}
}

// SetCarrier plugs and unplugs the cable of a NIC of the host.
func (l *Lab) SetCarrier(name string, plugged bool) {
	l.t.Helper()
	far := l.Outside
	if l.Switch != nil {
		far = l.Switch
	}
	l.must(name, far.Do(func() error {
		link, err := netlink.LinkByName(l.peer(name))
		if err != nil {
			return err
		}
		if plugged {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	}))
}

// RemoveNIC takes a NIC out of the host, as a driver that is unloaded does.
func (l *Lab) RemoveNIC(name string) {
	l.t.Helper()
	l.must(name, l.Host.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}))
	for i, n := range l.nics {
		if n == name {
			l.nics = append(l.nics[:i:i], l.nics[i+1:]...)
			break
		}
	}
}

// peer names the far end of a NIC of the host.
func (l *Lab) peer(name string) string {
	switch {
	case l.Switch != nil:
		return "port-" + name
	case name == hostNIC:
		return outsideNIC
	}
	return "wire-" + name
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
	if peer == outsideNIC {
		pair.PeerHardwareAddr = outsideMAC
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
		return netlink.LinkSetUp(link)
	})
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
