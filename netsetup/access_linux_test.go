package netsetup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// Owners of guests, and where the first one is.
const (
	owner1 = 1900000001
	owner2 = 1900000002
)

var (
	guest4 = netip.MustParseAddr("192.0.2.10")
	guest6 = netip.MustParseAddr("2001:db8::10")
)

// station is a guest as others see it: a MAC and addresses on a port of the
// parent's macvlan, here with Linux's own stack behind it.
type station struct {
	ns    *netsetup.Namespace
	mac   net.HardwareAddr
	addrs []netip.Addr
}

// newStation puts one on a parent.
func newStation(t *testing.T, lab *nettest.Lab, parent string, number byte) *station {
	t.Helper()
	s := &station{ns: newNamespace(t), mac: mac(number), addrs: []netip.Addr{
		netip.AddrFrom4([4]byte{192, 0, 2, 9 + number}), guest6}}
	for range number - 1 {
		s.addrs[1] = s.addrs[1].Next()
	}
	var fd int
	must(t, s.ns.Do(func() (err error) {
		if err := sysctl("ipv6/conf/default/accept_dad", "0"); err != nil {
			return err
		}
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	}))
	defer unix.Close(fd)
	a := attrs("net0", indexOf(t, lab, parent))
	a.HardwareAddr, a.Namespace = s.mac, netlink.NsFd(fd)
	inLab(t, lab, addLink(&netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE}))
	must(t, s.ns.Do(func() error {
		link, err := netlink.LinkByName("net0")
		if err != nil {
			return err
		}
		for i, addr := range s.addrs {
			subnet := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask([]int{24, 64}[i], addr.BitLen())}
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: subnet}); err != nil {
				return err
			}
		}
		// So soon a guest asks whether its neighbours are still there.
		return errors.Join(sysctl("ipv6/neigh/net0/base_reachable_time_ms", "500"), netlink.LinkSetUp(link))
	}))
	server := serve(t, s.ns.Do)
	t.Cleanup(func() { server.Close() })
	return s
}

// sysctl changes a network setting of the thread's namespace.
func sysctl(path, value string) error {
	return os.WriteFile("/proc/sys/net/"+path, []byte(value), 0)
}

// known is what Reach is told of a station.
func (s *station) known() map[netip.Addr]net.HardwareAddr {
	known := map[netip.Addr]net.HardwareAddr{}
	for _, addr := range s.addrs {
		known[addr] = s.mac
	}
	return known
}

func serve(t *testing.T, do func(func() error) error) (server *wire.Server) {
	t.Helper()
	must(t, do(func() (err error) {
		server, err = wire.ServeEcho(7)
		return err
	}))
	return server
}

// accessLab has strict reverse path filters, no resolvers of the real host, and
// an echo server on the lab's host.
func accessLab(t *testing.T) *nettest.Lab {
	t.Helper()
	lab := nettest.New(t)
	t.Cleanup(netsetup.SetResolverFiles())
	inLab(t, lab, func() error {
		return errors.Join(sysctl("ipv4/conf/all/rp_filter", "1"), sysctl("ipv4/conf/default/rp_filter", "1"),
			sysctl("ipv4/conf/lab0/rp_filter", "1"))
	})
	server := serve(t, lab.Host.Do)
	t.Cleanup(func() { server.Close() })
	return lab
}

// reach calls Reach on the lab's host, where nothing may be refused.
func reach(t *testing.T, lab *nettest.Lab, owner int, parent string, addrs map[netip.Addr]net.HardwareAddr) {
	t.Helper()
	if refused := tryReach(t, lab, owner, parent, addrs); len(refused) > 0 {
		t.Errorf("refused: %v", refused)
	}
}

func tryReach(t *testing.T, lab *nettest.Lab, owner int, parent string, addrs map[netip.Addr]net.HardwareAddr) (refused map[netip.Addr]string) {
	t.Helper()
	inLab(t, lab, func() (err error) {
		refused, err = netsetup.Reach(t.Context(), owner, parent, addrs)
		return err
	})
	return refused
}

func unreach(t *testing.T, lab *nettest.Lab, owner int, parent string) {
	t.Helper()
	inLab(t, lab, func() error { return netsetup.Unreach(t.Context(), owner, parent) })
}

// echo connects from somewhere to an echo server.
func echo(t *testing.T, do func(func() error) error, to netip.Addr) error {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	return do(func() error {
		_, err := wire.EchoTCP(ctx, netip.AddrPortFrom(to, 7), "hello")
		return err
	})
}

// talk holds host and station against each other in both families and directions.
func (s *station) talk(t *testing.T, lab *nettest.Lab) {
	t.Helper()
	for _, addr := range s.addrs {
		if err := echo(t, lab.Host.Do, addr); err != nil {
			t.Errorf("host to %s: %v", addr, err)
		}
	}
	for _, addr := range []netip.Addr{nettest.HostAddr4.Addr(), nettest.HostAddr6.Addr()} {
		if err := echo(t, s.ns.Do, addr); err != nil {
			t.Errorf("%s to the host's %s: %v", s.addrs[0], addr, err)
		}
	}
}

// shims lists the shared links on the lab's host.
func shims(t *testing.T, lab *nettest.Lab) []netlink.Link {
	t.Helper()
	var found []netlink.Link
	inLab(t, lab, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Alias, "vmrun:") {
				found = append(found, l)
			}
		}
		return err
	})
	return found
}

func shimOf(t *testing.T, lab *nettest.Lab) netlink.Link {
	t.Helper()
	all := shims(t, lab)
	if len(all) != 1 {
		t.Fatalf("%d shims: %v", len(all), all)
	}
	return all[0]
}

// traces describes what host access leaves beside the shim.
func traces(t *testing.T, lab *nettest.Lab) (found []string) {
	t.Helper()
	inLab(t, lab, func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: 118}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			found = append(found, r.String())
		}
		proxies, perr := netlink.NeighProxyList(0, netlink.FAMILY_ALL)
		for _, p := range proxies {
			found = append(found, "proxy "+p.String())
		}
		return errors.Join(err, perr)
	})
	return found
}

// settings reads all of the host's network settings but those of a shim.
func settings(t *testing.T, lab *nettest.Lab) map[string]string {
	t.Helper()
	found := map[string]string{}
	inLab(t, lab, func() error {
		return filepath.WalkDir("/proc/sys/net", func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				if d != nil && strings.HasPrefix(d.Name(), "vmrun") {
					return filepath.SkipDir
				}
				return err
			}
			if text, err := os.ReadFile(path); err == nil && !strings.Contains(path, "nf_conntrack_") {
				found[path] = string(text)
			}
			return nil
		})
	})
	return found
}

// The host and its guests talk, and the LAN notices nothing: nobody there hears
// of the shim's MAC, or believes the host to have another one.
func TestReach(t *testing.T) {
	lab := accessLab(t)
	guest := newStation(t, lab, "lab0", 1)
	before, left := settings(t, lab), lab.Snapshot(t)
	capture := lab.Outside.Capture("wire0", "")
	if err := echo(t, guest.ns.Do, nettest.HostAddr4.Addr()); err == nil {
		t.Fatal("the host is reached without host access, so this test sees nothing")
	}
	reach(t, lab, owner1, "lab0", guest.known())
	shim := shimOf(t, lab).Attrs()
	for i := range 20 {
		must(t, lab.Outside.Do(func() error { return wire.FlushNeighbours("wire0") }))
		guest.talk(t, lab)
		for _, addr := range []netip.Addr{nettest.HostAddr4.Addr(), nettest.HostAddr6.Addr()} {
			if err := echo(t, lab.Outside.Do, addr); err != nil {
				t.Errorf("outside to %s: %v", addr, err)
			}
			var known map[netip.Addr]net.HardwareAddr
			must(t, lab.Outside.Do(func() (err error) {
				known, err = wire.Neighbours("wire0")
				return err
			}))
			if !bytes.Equal(known[addr], lab.Host.MAC) {
				t.Errorf("round %d: the LAN believes %s at %s, not at %s", i, addr, known[addr], lab.Host.MAC)
			}
		}
		time.Sleep(50 * time.Millisecond) // so that neighbours are asked whether they are still there
	}
	if said := spoken(capture, shim.HardwareAddr); len(said) > 0 {
		t.Errorf("the LAN heard of the shim %d times: %q", len(said), said)
	}
	if len(capture.Frames()) == 0 {
		t.Error("the LAN heard nothing at all")
	}
	if diff := cmp.Diff(before, settings(t, lab)); diff != "" {
		t.Errorf("settings changed (-before +with the shim):\n%s", diff)
	}
	unreach(t, lab, owner1, "lab0")
	if all, found := shims(t, lab), traces(t, lab); len(all)+len(found) > 0 {
		t.Errorf("left: %v %q", all, found)
	}
	if diff := cmp.Diff(before, settings(t, lab)); diff != "" {
		t.Errorf("settings changed (-before +after):\n%s", diff)
	}
	left.Check(t)
}

// notifications are all that a change of Reach's could be told to.
var notifications = []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_TC, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF}

// silently fails the test if the host's kernel has anything to tell of what fn does.
func silently(t *testing.T, lab *nettest.Lab, fn func()) {
	t.Helper()
	time.Sleep(100 * time.Millisecond) // a link's state and an IPv6 address are told late (net/core/link_watch.c, net/ipv6/addrconf.c)
	var socket *nl.NetlinkSocket
	inLab(t, lab, func() (err error) {
		socket, err = nl.Subscribe(unix.NETLINK_ROUTE, notifications...)
		return err
	})
	defer socket.Close()
	fn()
	time.Sleep(20 * time.Millisecond)
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(socket.GetFd(), buf, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return
		}
		must(t, err)
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		must(t, err)
		for _, m := range messages {
			if neigh := m.Header.Type == unix.RTM_NEWNEIGH || m.Header.Type == unix.RTM_DELNEIGH; neigh && m.Data[8]&netlink.NUD_PERMANENT == 0 {
				continue // the kernel's own, of neighbours that it asks
			}
			t.Errorf("told: type %d, % x", m.Header.Type, m.Data)
		}
	}
}

func TestReachAgainIsSilent(t *testing.T) {
	lab := accessLab(t)
	guest := newStation(t, lab, "lab0", 1)
	reach(t, lab, owner1, "lab0", guest.known())
	silently(t, lab, func() { reach(t, lab, owner1, "lab0", guest.known()) })
	silently(t, lab, func() {
		refused := tryReach(t, lab, owner1, "lab0", map[netip.Addr]net.HardwareAddr{guest4: guest.mac, guest6: guest.mac,
			nettest.HostAddr4.Addr(): guest.mac})
		if len(refused) != 1 {
			t.Errorf("refused: %v", refused)
		}
	})
}

func BenchmarkReachAgain(b *testing.B) {
	lab := nettest.New(b)
	defer netsetup.SetResolverFiles()()
	known := map[netip.Addr]net.HardwareAddr{guest4: mac(1), guest6: mac(1)}
	if err := lab.Host.Do(func() error {
		for b.Loop() {
			if _, err := netsetup.Reach(b.Context(), owner1, "lab0", known); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
}

func linkDo(name string, do func(netlink.Link) error) func() error {
	return func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return do(link)
	}
}

func ifaddr(p netip.Prefix) *netlink.Addr {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

// Whatever happens to the shim and around it, the next Reach puts it right, and
// the one after has nothing to do.
func TestReachRepairs(t *testing.T) {
	addr4, addr6 := ifaddr(nettest.HostAddr4), ifaddr(nettest.HostAddr6)
	down, up := netlink.LinkSetDown, netlink.LinkSetUp
	for _, tt := range []struct {
		name string
		harm func(shim string) []func() error
	}{
		{"nothing", func(string) []func() error { return nil }},
		{"shim down", func(shim string) []func() error { return []func() error{linkDo(shim, down)} }},
		{"shim down and up", func(shim string) []func() error { return []func() error{linkDo(shim, down), linkDo(shim, up)} }},
		{"shim deleted", func(shim string) []func() error { return []func() error{linkDo(shim, netlink.LinkDel)} }},
		{"parent down and up", func(string) []func() error {
			return []func() error{linkDo("lab0", down), linkDo("lab0", up), linkDo("lab0", func(l netlink.Link) error {
				return netlink.AddrReplace(l, addr6) // which the kernel takes away with down
			})}
		}},
		{"addresses removed and put back", func(string) []func() error {
			return []func() error{
				linkDo("lab0", func(l netlink.Link) error { return netlink.AddrDel(l, addr4) }),
				linkDo("lab0", func(l netlink.Link) error { return netlink.AddrDel(l, addr6) }),
				linkDo("lab0", func(l netlink.Link) error { return netlink.AddrAdd(l, addr4) }),
				linkDo("lab0", func(l netlink.Link) error { return netlink.AddrAdd(l, addr6) }),
			}
		}},
		{"routes deleted", func(shim string) []func() error {
			return []func() error{linkDo(shim, func(l netlink.Link) error {
				routes, err := netlink.RouteList(l, netlink.FAMILY_ALL)
				for _, r := range routes {
					err = errors.Join(err, netlink.RouteDel(&r))
				}
				return err
			})}
		}},
		{"neighbours, proxies and addresses flushed", func(shim string) []func() error {
			return []func() error{linkDo(shim, func(l netlink.Link) error {
				neighbours, err1 := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
				proxies, err2 := netlink.NeighProxyList(l.Attrs().Index, netlink.FAMILY_ALL)
				addrs, err3 := netlink.AddrList(l, netlink.FAMILY_ALL)
				err := errors.Join(err1, err2, err3)
				for _, n := range append(neighbours, proxies...) {
					if n.State != netlink.NUD_NOARP {
						err = errors.Join(err, netlink.NeighDel(&n))
					}
				}
				for _, a := range addrs {
					err = errors.Join(err, netlink.AddrDel(l, &a))
				}
				return err
			})}
		}},
		{"settings changed", func(shim string) []func() error {
			return []func() error{func() error {
				return errors.Join(sysctl("ipv4/conf/"+shim+"/rp_filter", "2"), sysctl("ipv4/conf/"+shim+"/arp_filter", "0"),
					sysctl("ipv6/conf/"+shim+"/proxy_ndp", "0"), sysctl("ipv6/conf/"+shim+"/forwarding", "0"))
			}}
		}},
		{"filter removed", func(shim string) []func() error {
			return []func() error{linkDo(shim, func(l netlink.Link) error {
				return netlink.QdiscDel(&netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
					LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}})
			})}
		}},
		{"user's mark removed", func(shim string) []func() error {
			return []func() error{linkDo(shim, func(l netlink.Link) error { return netlink.LinkDelAltName(l, l.Attrs().AltNames[0]) })}
		}},
		{"shim renamed", func(shim string) []func() error {
			return []func() error{linkDo(shim, func(l netlink.Link) error { return netlink.LinkSetName(l, "other") })}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := accessLab(t)
			guest := newStation(t, lab, "lab0", 1)
			reach(t, lab, owner1, "lab0", guest.known())
			shim := shimOf(t, lab).Attrs()
			inLab(t, lab, tt.harm(shim.Name)...)
			reach(t, lab, owner1, "lab0", guest.known())
			if now := shimOf(t, lab).Attrs().HardwareAddr; !bytes.Equal(now, shim.HardwareAddr) {
				t.Errorf("guests remember the shim at %s, and it is at %s", shim.HardwareAddr, now)
			}
			silently(t, lab, func() { reach(t, lab, owner1, "lab0", guest.known()) })
			guest.talk(t, lab)
			unreach(t, lab, owner1, "lab0")
			if all, found := shims(t, lab), traces(t, lab); len(all)+len(found) > 0 {
				t.Errorf("left: %v %q", all, found)
			}
		})
	}
}

// A renamed parent keeps its shim, and one that goes takes it along.
func TestShimFollowsItsParent(t *testing.T) {
	lab := accessLab(t)
	guest := newStation(t, lab, "lab0", 1)
	reach(t, lab, owner1, "lab0", guest.known())
	shim := shimOf(t, lab).Attrs().Index
	inLab(t, lab, linkDo("lab0", func(l netlink.Link) error { return netlink.LinkSetName(l, "renamed0") }))
	reach(t, lab, owner1, "renamed0", guest.known())
	if now := shimOf(t, lab).Attrs().Index; now != shim {
		t.Errorf("shim %d became %d", shim, now)
	}
	guest.talk(t, lab)
	unreach(t, lab, owner1, "lab0") // no such link any more
	inLab(t, lab, linkDo("renamed0", netlink.LinkDel))
	if all, found := shims(t, lab), traces(t, lab); len(all)+len(found) > 0 {
		t.Errorf("left: %v %q", all, found)
	}
}

// A host that gets its IPv6 address when the shim is up already gives that no
// address of the kernel's making.
func TestReachWithIPv6Later(t *testing.T) {
	lab := accessLab(t)
	guest := newStation(t, lab, "lab0", 1)
	must(t, lab.Host.DelAddress("lab0", nettest.HostAddr6))
	tryReach(t, lab, owner1, "lab0", guest.known())
	must(t, lab.Host.AddAddress("lab0", nettest.HostAddr6))
	reach(t, lab, owner1, "lab0", guest.known())
	inLab(t, lab, linkDo(shimOf(t, lab).Attrs().Name, func(l netlink.Link) error {
		list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if len(list) != 1 || !strings.HasSuffix(list[0].IPNet.String(), "/128") {
			t.Errorf("the shim has the addresses %v", list)
		}
		return err
	}))
	guest.talk(t, lab)
}

func TestReachSharesTheShim(t *testing.T) {
	lab := accessLab(t)
	one, two := newStation(t, lab, "lab0", 1), newStation(t, lab, "lab0", 2)
	reach(t, lab, owner1, "lab0", one.known())
	reach(t, lab, owner2, "lab0", two.known())
	shim := shimOf(t, lab).Attrs().Index
	one.talk(t, lab)
	two.talk(t, lab)
	unreach(t, lab, owner1, "lab0")
	if err := echo(t, one.ns.Do, nettest.HostAddr4.Addr()); err == nil {
		t.Error("one is still let in")
	}
	two.talk(t, lab)
	if now := shimOf(t, lab).Attrs(); now.Index != shim || len(now.AltNames) != 1 {
		t.Errorf("shim %d with users %q, was %d", now.Index, now.AltNames, shim)
	}
	// Only what two has now.
	reach(t, lab, owner2, "lab0", map[netip.Addr]net.HardwareAddr{two.addrs[0]: two.mac})
	if found := traces(t, lab); len(found) != 2 { // a route and a proxy
		t.Errorf("%q", found)
	}
	unreach(t, lab, owner2, "lab0")
	unreach(t, lab, owner2, "lab0")
	if all, found := shims(t, lab), traces(t, lab); len(all)+len(found) > 0 {
		t.Errorf("left: %v %q", all, found)
	}
}

func TestRepairShared(t *testing.T) {
	lab := accessLab(t)
	one, two := newStation(t, lab, "lab0", 1), newStation(t, lab, "lab0", 2)
	reach(t, lab, owner1, "lab0", one.known())
	reach(t, lab, owner2, "lab0", two.known())
	repair := func(living ...int) {
		t.Helper()
		inLab(t, lab, func() error {
			return netsetup.RepairShared(t.Context(), func(owner int) bool {
				for _, o := range living {
					if o == owner {
						return true
					}
				}
				return false
			})
		})
	}
	all := traces(t, lab)
	silently(t, lab, func() { repair(owner1, owner2) })
	if diff := cmp.Diff(all, traces(t, lab)); diff != "" {
		t.Errorf("with all alive:\n%s", diff)
	}
	// One and two claim the same: the dead one's claim does not count for long.
	reach(t, lab, owner1, "lab0", one.known())
	if refused := tryReach(t, lab, owner2, "lab0", one.known()); len(refused) != 2 || !strings.Contains(refused[guest4], fmt.Sprint(owner1)) {
		t.Errorf("refused: %v", refused)
	}
	reach(t, lab, owner2, "lab0", two.known())
	repair(owner2)
	two.talk(t, lab)
	if err := echo(t, one.ns.Do, nettest.HostAddr4.Addr()); err == nil {
		t.Error("the dead one is still let in")
	}
	silently(t, lab, func() { reach(t, lab, owner2, "lab0", two.known()) })
	if users := shimOf(t, lab).Attrs().AltNames; len(users) != 1 || !strings.Contains(users[0], fmt.Sprint(owner2)) {
		t.Errorf("users: %q", users)
	}
	repair()
	if all, found := shims(t, lab), traces(t, lab); len(all)+len(found) > 0 {
		t.Errorf("left: %v %q", all, found)
	}
	repair()
}

// A process that ends between the shim's creation and the rest leaves what the
// next one uses, or removes.
func TestHalfAShim(t *testing.T) {
	half := func(t *testing.T, lab *nettest.Lab) {
		a := attrs(fmt.Sprintf("vmrun%d", indexOf(t, lab, "lab0")), indexOf(t, lab, "lab0"))
		a.Group = 0x766d7275
		inLab(t, lab, addLink(&netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE}))
	}
	t.Run("reach", func(t *testing.T) {
		lab := accessLab(t)
		guest := newStation(t, lab, "lab0", 1)
		half(t, lab)
		reach(t, lab, owner1, "lab0", guest.known())
		guest.talk(t, lab)
	})
	t.Run("repair", func(t *testing.T) {
		lab := accessLab(t)
		before := lab.Snapshot(t)
		half(t, lab)
		inLab(t, lab, func() error { return netsetup.RepairShared(t.Context(), func(int) bool { return true }) })
		before.Check(t)
	})
	t.Run("somebody else's", func(t *testing.T) {
		lab := accessLab(t)
		name := fmt.Sprintf("vmrun%d", indexOf(t, lab, "lab0"))
		inLab(t, lab, addLink(&netlink.Bridge{LinkAttrs: attrs(name, 0)}))
		err := lab.Host.Do(func() error {
			_, err := netsetup.Reach(t.Context(), owner1, "lab0", nil)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "a bridge has that name") {
			t.Errorf("%v", err)
		}
		inLab(t, lab, func() error { return netsetup.RepairShared(t.Context(), func(int) bool { return false }) },
			linkDo(name, netlink.LinkDel))
	})
}

// An address that the host itself depends on is never routed to a guest, and not
// any more once it does.
func TestReachRefuses(t *testing.T) {
	lab := accessLab(t)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	must(t, os.WriteFile(resolv, []byte("search example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n"), 0o600))
	t.Cleanup(netsetup.SetResolverFiles(resolv, "/does/not/exist"))
	lab.AddNIC("lab1", nettest.NIC{Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}})
	gateway := func(addr string) func() error {
		return linkDo("lab0", func(l netlink.Link) error {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(addr)})
		})
	}
	inLab(t, lab, gateway("192.0.2.1"), gateway("2001:db8::1"))
	claimed := map[netip.Addr]net.HardwareAddr{}
	for _, addr := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.53", "192.0.2.255", "198.51.100.1", "198.51.100.7", "203.0.113.1",
		"2001:db8::1", "2001:db8::2", "2001:db8::53", "2001:db8:1::1", "fe80::1", "127.0.0.1"} {
		claimed[netip.MustParseAddr(addr)] = mac(1)
	}
	bad := len(claimed)
	claimed[guest4], claimed[guest6] = mac(1), mac(1)
	refused := tryReach(t, lab, owner1, "lab0", claimed)
	for addr, why := range refused {
		t.Logf("%s: %s", addr, why)
	}
	if len(refused) != bad || refused[guest4]+refused[guest6] != "" {
		t.Errorf("%d refused of %d", len(refused), bad)
	}
	if found := traces(t, lab); len(found) != 3 { // two routes and a proxy
		t.Errorf("%q", found)
	}
	inLab(t, lab, linkDo("lab0", func(l netlink.Link) error {
		to := &net.IPNet{IP: net.IPv4(203, 0, 113, 0), Mask: net.CIDRMask(24, 32)}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: to, Gw: guest4.AsSlice()})
	}))
	if refused := tryReach(t, lab, owner1, "lab0", claimed); !strings.Contains(refused[guest4], "gateway") {
		t.Errorf("%s is routed as a gateway", guest4)
	}
	if found := traces(t, lab); len(found) != 2 {
		t.Errorf("%q", found)
	}
}

// The host keeps the default route that a router advertised.
func TestReachKeepsAdvertisedRoutes(t *testing.T) {
	lab := accessLab(t)
	inLab(t, lab, func() error { return sysctl("ipv6/conf/lab0/accept_ra", "1") })
	routers := func() (n int) {
		inLab(t, lab, func() error {
			routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
			for _, r := range routes {
				if r.Protocol == unix.RTPROT_RA {
					n++
				}
			}
			return err
		})
		return n
	}
	advertisement := append([]byte{0x33, 0x33, 0, 0, 0, 1}, lab.Outside.MAC...)
	advertisement = append(advertisement, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 58, 255)
	from := netip.MustParseAddr("fe80::5eff:fe10:1").As16()
	to := netip.MustParseAddr("ff02::1").As16()
	advertisement = append(append(advertisement, from[:]...), to[:]...)
	message := []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}
	sum := checksum6(from, to, message)
	message[2], message[3] = byte(sum>>8), byte(sum)
	must(t, lab.Outside.Send("wire0", append(advertisement, message...)))
	for deadline := time.Now().Add(2 * time.Second); routers() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no route was learned")
		}
	}
	before := settings(t, lab)
	reach(t, lab, owner1, "lab0", map[netip.Addr]net.HardwareAddr{guest4: mac(1), guest6: mac(1)})
	if routers() != 1 {
		t.Errorf("%d routes are left", routers())
	}
	if diff := cmp.Diff(before, settings(t, lab)); diff != "" {
		t.Errorf("settings changed:\n%s", diff)
	}
}

// checksum6 is ICMPv6's (RFC 4443, 2.3).
func checksum6(from, to [16]byte, message []byte) uint16 {
	pseudo := append(append([]byte{}, from[:]...), to[:]...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(message)), 0, 0, 0, 58)
	pseudo = append(pseudo, message...)
	var sum uint32
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(pseudo[i])<<8 | uint32(pseudo[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// A bridge of the host's is a parent as a NIC is.
func TestReachOnABridge(t *testing.T) {
	lab := accessLab(t)
	lab.AddNIC("port0", nettest.NIC{Bridge: "br0"})
	for _, addr := range []netip.Prefix{nettest.HostAddr4, nettest.HostAddr6} {
		must(t, lab.Host.DelAddress("lab0", addr))
		must(t, lab.Host.AddAddress("br0", addr))
	}
	guest := newStation(t, lab, "br0", 1)
	reach(t, lab, owner1, "br0", guest.known())
	guest.talk(t, lab)
}

// The host is reached by the address that is in the guest's subnet, also where
// that subnet is an on-link route beside a bare address.
func TestReachChoosesTheSource(t *testing.T) {
	lab := accessLab(t)
	for _, addr := range []string{"198.51.100.2/24", "198.51.100.3/24", "2001:db8:1::2/128", "2001:db8:2::2/64"} {
		must(t, lab.Host.AddAddress("lab0", netip.MustParsePrefix(addr)))
	}
	inLab(t, lab, linkDo("lab0", func(l netlink.Link) error {
		to := &net.IPNet{IP: net.ParseIP("2001:db8:1::"), Mask: net.CIDRMask(64, 128)}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: to})
	}))
	want := map[string]string{"192.0.2.10/32": "192.0.2.2", "198.51.100.10/32": "198.51.100.2", "2001:db8::10/128": "2001:db8::2",
		"2001:db8:1::10/128": "2001:db8:1::2", "2001:db8:2::10/128": "2001:db8:2::2"}
	known := map[netip.Addr]net.HardwareAddr{}
	for to := range want {
		known[netip.MustParsePrefix(to).Addr()] = mac(1)
	}
	reach(t, lab, owner1, "lab0", known)
	got := map[string]string{}
	inLab(t, lab, func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: 118}, netlink.RT_FILTER_PROTOCOL)
		for _, r := range routes {
			got[r.Dst.String()] = r.Src.String()
		}
		return err
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Many supervisors at once come and go without tearing down each other's.
func TestReachTogether(t *testing.T) {
	lab := accessLab(t)
	stays := newStation(t, lab, "lab0", 1)
	reach(t, lab, owner1, "lab0", stays.known())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			owner := owner2 + i
			known := map[netip.Addr]net.HardwareAddr{netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)}): mac(byte(100 + i))}
			for range 5 {
				err := lab.Host.Do(func() error {
					if _, err := netsetup.Reach(t.Context(), owner, "lab0", known); err != nil {
						return err
					}
					return netsetup.Unreach(t.Context(), owner, "lab0")
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	stays.talk(t, lab)
	silently(t, lab, func() { reach(t, lab, owner1, "lab0", stays.known()) })
}

// Nobody waits for the lock for ever.
func TestSharedLockHasADeadline(t *testing.T) {
	lab := accessLab(t)
	f, err := os.OpenFile("/run/vmrun.shared", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = lab.Host.Do(func() error {
		_, err := netsetup.Reach(ctx, owner1, "lab0", nil)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "holds the lock") {
		t.Errorf("%v", err)
	}
}

// A parent that is down has nothing to say of; with it up, all is as it was. One
// without IPv6 has a shim without.
func TestReachOnWhatThereIs(t *testing.T) {
	lab := accessLab(t)
	guest := newStation(t, lab, "lab0", 1)
	disabled := func() (value string) {
		name := shimOf(t, lab).Attrs().Name
		inLab(t, lab, func() error {
			text, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
			value = strings.TrimSpace(string(text))
			return err
		})
		return value
	}
	must(t, lab.Host.DelAddress("lab0", nettest.HostAddr6))
	inLab(t, lab, linkDo("lab0", netlink.LinkSetDown))
	for _, harm := range []func() error{nil, linkDo("lab0", netlink.LinkSetUp)} {
		if harm != nil {
			inLab(t, lab, harm)
		}
		if refused := tryReach(t, lab, owner1, "lab0", guest.known()); len(refused) != 1 || refused[guest6] == "" {
			t.Errorf("refused: %v", refused)
		}
		silently(t, lab, func() { tryReach(t, lab, owner1, "lab0", guest.known()) })
		if disabled() != "1" {
			t.Error("the shim has IPv6")
		}
	}
	if err := echo(t, lab.Host.Do, guest4); err != nil {
		t.Error(err)
	}
	must(t, lab.Host.AddAddress("lab0", nettest.HostAddr6))
	reach(t, lab, owner1, "lab0", guest.known())
	if disabled() != "0" {
		t.Error("the shim has no IPv6")
	}
	guest.talk(t, lab)
	must(t, lab.Host.DelAddress("lab0", nettest.HostAddr6))
	tryReach(t, lab, owner1, "lab0", guest.known())
	if found := traces(t, lab); len(found) != 1 || disabled() != "1" {
		t.Errorf("%q, and disable_ipv6 is %s", found, disabled())
	}
}

// A guest's new MAC takes the place of the old one, which is let in no longer.
func TestReachFollowsTheMAC(t *testing.T) {
	lab := accessLab(t)
	guest := newStation(t, lab, "lab0", 1)
	reach(t, lab, owner1, "lab0", map[netip.Addr]net.HardwareAddr{guest4: mac(9), guest6: mac(9)})
	if err := echo(t, guest.ns.Do, nettest.HostAddr4.Addr()); err == nil {
		t.Error("let in with the wrong MAC")
	}
	reach(t, lab, owner1, "lab0", guest.known())
	guest.talk(t, lab)
}

// Guests ask for the host from link-local addresses too (RFC 4861, 7.2.2, and
// Linux does for a neighbour it is not sure of), and are answered.
func TestShimAnswersLinkLocalSources(t *testing.T) {
	lab := accessLab(t)
	guest := newStation(t, lab, "lab0", 1)
	reach(t, lab, owner1, "lab0", guest.known())
	shim := shimOf(t, lab).Attrs().HardwareAddr
	var capture *wire.Capture
	must(t, guest.ns.Do(func() (err error) {
		capture, err = wire.NewCapture("net0", "")
		return err
	}))
	defer capture.Close()
	from, to := netip.MustParseAddr("fe80::77").As16(), nettest.HostAddr6.Addr().As16()
	message := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, to[:]...)
	message = append(append(message, 1, 1), guest.mac...)
	sum := checksum6(from, to, message)
	message[2], message[3] = byte(sum>>8), byte(sum)
	frame := append(append(bytes.Clone(shim), guest.mac...), 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(message)), 58, 255)
	frame = append(append(append(frame, from[:]...), to[:]...), message...)
	must(t, guest.ns.Do(func() error { return wire.Send("net0", frame) }))
	capture.Wait(1, time.Second)
	time.Sleep(50 * time.Millisecond)
	for _, f := range capture.Frames() {
		if len(f) > 54 && bytes.Equal(f[6:12], shim) && f[54] == 136 {
			return
		}
	}
	t.Errorf("no advertisement: %q", spoken(capture, shim))
}

// What would not work is refused with the reason.
func TestReachCannot(t *testing.T) {
	lab := accessLab(t)
	lab0 := indexOf(t, lab, "lab0")
	inLab(t, lab, addLink(&netlink.Macvlan{LinkAttrs: attrs("mv0", lab0), Mode: netlink.MACVLAN_MODE_VEPA}),
		func() error { return sysctl("ipv4/conf/all/arp_ignore", "1") })
	for _, tt := range []struct {
		parent string
		owner  int
		want   string
	}{
		{"mv0", owner1, "use that as the parent"},
		{"eth9", owner1, "find parent"},
		{"lab0", 0, "no uid"},
	} {
		err := lab.Host.Do(func() error {
			_, err := netsetup.Reach(t.Context(), tt.owner, tt.parent, nil)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.parent, err)
		}
	}
	refused := tryReach(t, lab, owner1, "lab0", map[netip.Addr]net.HardwareAddr{guest4: mac(1), guest6: mac(1)})
	if len(refused) != 1 || !strings.Contains(refused[guest4], "arp_ignore") {
		t.Errorf("refused: %v", refused)
	}
}
