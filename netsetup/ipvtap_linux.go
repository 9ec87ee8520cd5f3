package netsetup

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// address puts the guest's addresses on its ipvtap, which is down. By them ipvlan
// tells the children of a parent apart, whose MAC is one (drivers/net/ipvlan/
// ipvlan_core.c, ipvlan_addr_lookup). The frames themselves go to the tap, so the
// host's stack hears nothing, and is kept from saying anything.
func (ns *Namespace) address(c Child) error {
	return ns.Do(func() error {
		if err := c.quietIPv6(); err != nil {
			return c.err("IPv6", err)
		}
		for _, addr := range c.Addresses {
			if err := c.addAddress(addr); err != nil {
				return c.err("address "+addr.String(), err)
			}
		}
		for _, addr := range c.Addresses {
			if err := c.settle(addr); err != nil {
				return c.err("address "+addr.String(), err)
			}
		}
		return nil
	})
}

// quietIPv6 lets the child, alone in its namespace, have IPv6 addresses. With
// IFF_NOARP an address joins no solicited-node group and is not probed for
// (net/ipv6/addrconf.c, addrconf_join_solict, addrconf_dad_begin), hence no MLD
// report; ipvlan takes the flag back when the child goes up.
func (c Child) quietIPv6() error {
	if !c.hasIPv6Address() {
		return nil
	}
	dir := "/proc/sys/net/ipv6/conf/" + c.Name + "/"
	for _, setting := range []struct{ key, value string }{
		{"addr_gen_mode", "1"}, // no link-local address
		{"accept_dad", "0"},
		{"accept_ra", "0"},
		{"router_solicitations", "0"},
		{"keep_addr_on_down", "1"},
		{"disable_ipv6", "0"},
	} {
		err := os.WriteFile(dir+setting.key, []byte(setting.value), 0)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("this kernel has no IPv6: leave the guest's IPv6 addresses out: %w", err)
		}
		if err != nil {
			return err
		}
	}
	return netlink.LinkSetARPOff(c.link())
}

func (c Child) hasIPv6Address() bool {
	for _, addr := range c.Addresses {
		if addr.Is6() {
			return true
		}
	}
	return false
}

func (c Child) addAddress(addr netip.Addr) error {
	prefix := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
	a := &netlink.Addr{IPNet: prefix}
	if addr.Is6() {
		a.Flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
	}
	err := netlink.AddrAdd(c.link(), a)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("another ipvlan or ipvtap link on %s has it: %w", c.Lower(), err)
	}
	return err
}

// settle waits until the kernel is done with an IPv6 address, which it is in a
// work queue (addrconf_dad_work): before the child is up, where it could be heard.
func (c Child) settle(addr netip.Addr) error {
	if !addr.Is6() {
		return nil
	}
	deadline := time.Now().Add(time.Second)
	for {
		list, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(c.link(), netlink.FAMILY_V6) })
		if err != nil {
			return err
		}
		for _, a := range list {
			if a.IP.Equal(addr.AsSlice()) && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("still tentative: %w", unix.ETIMEDOUT)
		}
		time.Sleep(time.Millisecond)
	}
}
