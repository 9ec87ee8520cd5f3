package netsetup

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// findShim returns the shim on a parent, or nil.
func findShim(parent *netlink.LinkAttrs) (netlink.Link, error) {
	l, err := present(netlink.LinkByName(shimName(parent)))
	if err != nil || l != nil && isShim(l, parent) {
		return l, err
	}
	links, err := sharedLinks() // one that was given another name, perhaps
	for _, l := range links {
		if isShim(l, parent) {
			return l, err
		}
	}
	return nil, err
}

func isShim(l netlink.Link, parent *netlink.LinkAttrs) bool {
	m, ok := l.(*netlink.Macvlan)
	return ok && shared(l) && m.ParentIndex == parent.Index && m.NetNsID < 0
}

// shimName follows from the parent's index, because its name may be as long as a
// name can be, and may change.
func shimName(parent *netlink.LinkAttrs) string { return fmt.Sprintf("vmrun%d", parent.Index) }

// shimMAC follows from the parent's MAC, so that guests which remember it
// reach a shim that was made anew.
func shimMAC(parent *netlink.LinkAttrs) net.HardwareAddr {
	sum := sha256.Sum256(append([]byte("vmrun shim\x00"), parent.HardwareAddr...))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2 // unicast, locally administered
	return mac
}

// addShim creates the shim, down and without users.
func addShim(parent *netlink.LinkAttrs) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.HardwareAddr = shimName(parent), parent.Index, shimMAC(parent)
	old, err := present(netlink.LinkByName(attrs.Name))
	switch {
	case err != nil:
		return err
	case old != nil && shared(old): // its parent has gone to another namespace
		if err := netlink.LinkDel(old); err != nil {
			return sharedErr("delete", old.Attrs(), err)
		}
	case old != nil:
		return fmt.Errorf("a %s has that name, which vmrun needs: rename it, or type: ip link delete %s", old.Type(), attrs.Name)
	}
	_, err = addShared(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE},
		"the host reaches its guests on "+parent.Name+" through this link")
	return err
}

// shimLinkLocal is the shim's only address. Neighbour advertisements for link-local
// sources are sent from one or not at all (net/ipv6/ndisc.c, ndisc_send_na).
func shimLinkLocal(mac net.HardwareAddr) netip.Prefix {
	ip := [16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
	return netip.PrefixFrom(netip.AddrFrom16(ip), 128)
}

// sysctl is a setting below /proc/sys/net and its value.
type sysctl struct{ path, value string }

// shimSysctls are set before the shim comes up.
func shimSysctls(name string, ipv6 bool) []sysctl {
	four, six := "ipv4/conf/"+name+"/", "ipv6/conf/"+name+"/"
	if !ipv6 {
		return []sysctl{
			{four + "arp_filter", "1"}, {four + "rp_filter", "1"}, {four + "arp_ignore", "0"}, {four + "proxy_arp", "0"},
			{six + "disable_ipv6", "1"},
		}
	}
	return []sysctl{
		{four + "arp_filter", "1"}, // answer only whom the shim leads to
		{four + "rp_filter", "1"},  // and listen to no other
		{four + "arp_ignore", "0"}, // the host's address is on the parent
		{four + "proxy_arp", "0"},
		{six + "addr_gen_mode", "1"}, // none
		{six + "accept_dad", "0"},
		{six + "accept_ra", "0"},
		{six + "autoconf", "0"},
		{six + "forwarding", "1"}, // or proxy_ndp does nothing (net/ipv6/ndisc.c, ndisc_recv_ns)
		{six + "proxy_ndp", "1"},
		{"ipv6/neigh/" + name + "/proxy_delay", "0"},
		{six + "disable_ipv6", "0"}, // after all else, as the shim may be up already
	}
}

// readSysctl returns a setting of the calling thread's namespace. It is called so
// often that it does without os.ReadFile's four other system calls.
func readSysctl(path string) (string, error) {
	fd, err := unix.Open("/proc/sys/net/"+path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var buf [64]byte
	n, err := unix.Read(fd, buf[:])
	return strings.TrimSpace(string(buf[:max(n, 0)])), err
}

func writeSysctl(path, value string) error {
	return os.WriteFile("/proc/sys/net/"+path, []byte(value), 0)
}

// differs reports whether the setting has to be made. A kernel without IPv6 has
// none for it.
func (s sysctl) differs() bool {
	value, err := readSysctl(s.path)
	return value != s.value && !errors.Is(err, os.ErrNotExist)
}

// setForwarding writes a link's IPv6 forwarding. Each such write makes the
// kernel forget the default routes of the whole namespace that it learned from
// router advertisements, on links whose accept_ra is not 2 (net/ipv6/addrconf.c,
// addrconf_fixup_forwarding; net/ipv6/route.c, rt6_purge_dflt_routers). So for
// that moment it is.
func (s sysctl) setForwarding(routes []netlink.Route) error {
	for _, r := range routes {
		if r.Protocol != unix.RTPROT_RA || r.Family != netlink.FAMILY_V6 || len(r.Gw) == 0 {
			continue
		}
		router, err := net.InterfaceByIndex(r.LinkIndex)
		if err != nil {
			continue
		}
		path := "ipv6/conf/" + router.Name + "/accept_ra"
		if value, err := readSysctl(path); err != nil || value != "1" {
			continue
		}
		if err := writeSysctl(path, "2"); err != nil {
			return err
		}
		defer writeSysctl(path, "1")
	}
	return writeSysctl(s.path, s.value)
}
