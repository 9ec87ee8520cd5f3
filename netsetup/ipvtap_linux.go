package netsetup

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// address puts the guest's addresses on its ipvtap, which is up. By them ipvlan
// tells the children of a parent apart, whose MAC is one (drivers/net/ipvlan/
// ipvlan_core.c, ipvlan_addr_lookup). The frames themselves go to the tap, so the
// host's stack hears nothing, and is kept from saying anything. The error is
// EADDRINUSE where another child has one of them.
func (ns *Namespace) address(c Child) error {
	return ns.Do(func() error {
		// With IFF_NOARP an address joins no solicited-node group, for which MLD
		// would speak, and is not probed for (net/ipv6/addrconf.c,
		// addrconf_join_solict, addrconf_dad_begin). ipvlan takes the flag off a
		// link that goes up, and from addresses that are there then these follow.
		if err := c.try("arp off", netlink.LinkSetARPOff); err != nil {
			return err
		}
		for _, addr := range c.Addresses {
			if err := c.addAddress(addr); err != nil {
				return c.err("address "+addr.String(), err)
			}
		}
		return nil
	})
}

func (c Child) addAddress(addr netip.Addr) error {
	if addr.Is6() {
		if err := c.enableIPv6(); err != nil {
			return err
		}
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())},
		Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
	err := netlink.AddrReplace(c.link(), a)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("another ipvlan or ipvtap link on %s has it: %w", c.Lower(), err)
	}
	return err
}

// enableIPv6 takes back for the child what Quiet did, and keeps IPv6 as quiet by
// itself: it makes no address of its own and asks for no router.
func (c Child) enableIPv6() error {
	for _, setting := range []struct{ key, value string }{
		{"addr_gen_mode", "1"}, // none (linux/if_link.h, IN6_ADDR_GEN_MODE_NONE)
		{"accept_ra", "0"},
		{"router_solicitations", "0"},
		{"disable_ipv6", "0"},
	} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+c.Name+"/"+setting.key, []byte(setting.value), 0)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("this kernel has no IPv6: leave the guest's IPv6 addresses out: %w", err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
