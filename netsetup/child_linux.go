package netsetup

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// modeBits are the values of IFLA_MACVLAN_MODE (linux/if_link.h).
var modeBits = map[configs.Mode]uint32{
	configs.ModePrivate:  nl.MACVLAN_MODE_PRIVATE,
	configs.ModeVEPA:     nl.MACVLAN_MODE_VEPA,
	configs.ModeBridge:   nl.MACVLAN_MODE_BRIDGE,
	configs.ModePassthru: nl.MACVLAN_MODE_PASSTHRU,
	configs.ModeSource:   nl.MACVLAN_MODE_SOURCE,
}

// flagNoPromisc is MACVLAN_FLAG_NOPROMISC (linux/if_link.h).
const flagNoPromisc = 1

func init() {
	// The kernel's extended acknowledgements are the only words it has for an EINVAL.
	nl.EnableErrorMessageReporting = true
}

// Create makes the child inside ns, down and silent. The parent is looked up in
// the caller's namespace. The error is a *LinkError; errors.Is finds
// unix.EADDRINUSE while an earlier owner of the MAC is still being removed.
func (ns *Namespace) Create(c Child) error {
	parent, err := netlink.LinkByName(c.Lower())
	if err != nil {
		return c.err("find parent", err)
	}
	err = ns.with(func(fd int) error {
		_, err := newLinkRequest(c, parent.Attrs().Index, fd).Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil {
		return c.err("create", err)
	}
	if c.Mode != configs.ModePassthru || parent.Attrs().HardwareAddr.String() == c.MAC.String() {
		return nil
	}
	// A passthru child starts with its parent's address whatever the request
	// says (drivers/net/macvlan.c, macvlan_common_newlink); setting it makes the
	// parent take it on, and deletion puts the parent's own back.
	return ns.Do(func() error {
		if err := netlink.LinkSetHardwareAddr(c.link(), c.MAC); err != nil {
			return c.err("set MAC", err)
		}
		return nil
	})
}

// newLinkRequest builds the one RTM_NEWLINK that makes a child where it
// belongs. The netlink package has no macvlan flags, hence by hand. Lengths of 0
// are left out: the kernel would take them at their word, and a tap whose ring
// holds nothing receives nothing.
func newLinkRequest(c Child, parent, nsfd int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(c.Index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(c.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_LINK, nl.Uint32Attr(uint32(parent))))
	req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(nsfd))))
	if c.Mode != configs.ModePassthru && !c.ipvtap() {
		req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, c.MAC))
	}
	if c.MTU != 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(c.MTU))))
	}
	if c.TxQueueLen != 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_TXQLEN, nl.Uint32Attr(uint32(c.TxQueueLen))))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(c.kind()))
	addKindData(info.AddRtAttr(nl.IFLA_INFO_DATA, nil), c)
	req.AddData(info)
	return req
}

// kind is the child's IFLA_INFO_KIND.
func (c Child) kind() string {
	if c.ipvtap() {
		return string(configs.KindIPvtap)
	}
	return string(configs.KindMacvtap)
}

// addKindData adds what is of the child's kind alone. The kernel's own default
// modes would be vepa and l3.
func addKindData(data *nl.RtAttr, c Child) {
	if c.ipvtap() {
		data.AddRtAttr(nl.IFLA_IPVLAN_MODE, nl.Uint16Attr(uint16(netlink.IPVLAN_MODE_L2)))
		return
	}
	data.AddRtAttr(nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(modeBits[c.Mode]))
	if c.Mode == configs.ModePassthru && !c.Promisc {
		data.AddRtAttr(nl.IFLA_MACVLAN_FLAGS, nl.Uint16Attr(flagNoPromisc))
	}
	if c.Mode == configs.ModeSource {
		data.AddRtAttr(nl.IFLA_MACVLAN_MACADDR_MODE, nl.Uint32Attr(nl.MACVLAN_MACADDR_SET))
		list := data.AddRtAttr(nl.IFLA_MACVLAN_MACADDR_DATA, nil)
		for _, mac := range c.Sources {
			list.AddRtAttr(nl.IFLA_MACVLAN_MACADDR, mac)
		}
	}
	if c.BcQueueLen != 0 {
		data.AddRtAttr(nl.IFLA_MACVLAN_BC_QUEUE_LEN, nl.Uint32Attr(uint32(c.BcQueueLen)))
	}
}

// Quiet keeps the host's IPv6 silent on every link that is yet to come in ns.
// Without it a child that comes up sends DAD, MLD and router solicitations with
// the guest's MAC. IPv4 needs nothing: no link in ns ever has an address.
func (ns *Namespace) Quiet() error {
	return ns.Do(func() error {
		for _, scope := range []string{"all", "default"} {
			path := "/proc/sys/net/ipv6/conf/" + scope + "/disable_ipv6"
			err := os.WriteFile(path, []byte("1"), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) { // no IPv6 in this kernel: silent anyway
				return fmt.Errorf("network namespace: %w", err)
			}
		}
		return nil
	})
}

// Up sets the child up, with the filter that it had while down.
func (ns *Namespace) Up(c Child) error {
	f, err := ns.Filter(c)
	if err != nil {
		return err
	}
	err = ns.Do(func() error {
		if c.onItsOwn() && f.AllMulticast {
			if err := c.try("allmulticast off", netlink.LinkSetAllmulticastOff); err != nil {
				return err
			}
		}
		return c.try("up", netlink.LinkSetUp)
	})
	if err != nil {
		return err
	}
	// Again: the host's IPv4 has joined 224.0.0.1 with it (net/ipv4/igmp.c,
	// ip_mc_up), and see onItsOwn.
	if err := ns.SetFilter(c, f); err != nil || !c.ipvtap() {
		return err
	}
	return ns.address(c)
}

// onItsOwn tells a child whose parent hears only what was asked for. When such
// a one is opened with all multicast on, macvlan does not ask its parent for it,
// and when it is closed does not take back what was asked since
// (drivers/net/macvlan.c, macvlan_open and macvlan_stop, of a passthru port).
// So all multicast is asked for after up and taken back before the end; where
// the kernel ends the child alone, the parent is left to hear all multicast.
// Lists of groups have no such trouble.
func (c Child) onItsOwn() bool { return c.Mode == configs.ModePassthru && !c.Promisc }

func (c Child) try(op string, act func(netlink.Link) error) error {
	if err := act(c.link()); err != nil {
		return c.err(op, err)
	}
	return nil
}

// Delete removes the child. One that is gone already is no error.
func (ns *Namespace) Delete(c Child) error {
	return ns.Do(func() error {
		if c.onItsOwn() {
			_ = c.try("allmulticast off", netlink.LinkSetAllmulticastOff) // the deletion will say what is wrong
		}
		if err := c.try("delete", netlink.LinkDel); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
		if c.Pin != configs.PinNone {
			unpin(c)
		}
		if c.Bandwidth.Inbound != 0 {
			unlimit(c)
		}
		return nil
	})
}

// Links lists the children inside ns: macvtap and macvlan links, ipvtap and ipvlan.
func (ns *Namespace) Links() ([]netlink.Link, error) {
	var found []netlink.Link
	err := ns.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if kindOf(l) != "" {
				found = append(found, l)
			}
		}
		return err
	})
	return found, err
}

// link names the child to the netlink package by its index.
func (c Child) link() netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = c.Name, c.Index
	return &netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: attrs}}
}
