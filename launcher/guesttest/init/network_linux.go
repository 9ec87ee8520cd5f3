package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setUpNetwork sets every NIC up and gives it its addresses. IPv6 addresses are
// usable at once, and the guest asks for no router: what a test sees on the wire
// is what it asked for, and neighbour discovery.
func setUpNetwork(wanted []linkAddresses) error {
	for _, key := range []string{"accept_dad", "accept_ra", "router_solicitations"} {
		for _, which := range []string{"all", "default"} {
			_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", which, key), []byte("0"), 0)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	var errs []error
	for _, link := range links {
		name := link.Attrs().Name
		_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "accept_dad"), []byte("0"), 0)
		if err := netlink.LinkSetUp(link); err != nil {
			errs = append(errs, fmt.Errorf("%s: up: %w", name, err))
		}
	}
	for _, w := range wanted {
		errs = append(errs, addAddresses(w.dev, w.addresses))
	}
	return errors.Join(errs...)
}

func addAddresses(dev string, addresses []string) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("%s: %w", dev, err)
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return fmt.Errorf("%s: %w", dev, err)
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("%s: address %s: %w", dev, a, err)
		}
	}
	return nil
}

// onLink runs do on the link named dev.
func onLink(dev string, do func(netlink.Link) error) (answer, error) {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", dev, err)
	}
	if err := do(link); err != nil {
		return answer{}, fmt.Errorf("%s: %w", dev, err)
	}
	return answer{}, nil
}

func (g *guest) up(args []string) (answer, error)   { return onLink(args[0], netlink.LinkSetUp) }
func (g *guest) down(args []string) (answer, error) { return onLink(args[0], netlink.LinkSetDown) }

func (g *guest) allmulti(args []string) (answer, error) {
	if args[1] == "on" {
		return onLink(args[0], netlink.LinkSetAllmulticastOn)
	}
	return onLink(args[0], netlink.LinkSetAllmulticastOff)
}

func (g *guest) promisc(args []string) (answer, error) {
	if args[1] == "on" {
		return onLink(args[0], netlink.SetPromiscOn)
	}
	return onLink(args[0], netlink.SetPromiscOff)
}

func (g *guest) mac(args []string) (answer, error) {
	mac, err := net.ParseMAC(args[1])
	if err != nil {
		return answer{}, err
	}
	return onLink(args[0], func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, mac) })
}

func (g *guest) mtu(args []string) (answer, error) {
	if len(args) == 1 {
		return ofLink(args[0], "mtu")
	}
	mtu, err := strconv.Atoi(args[1])
	if err != nil {
		return answer{}, err
	}
	return onLink(args[0], func(l netlink.Link) error { return netlink.LinkSetMTU(l, mtu) })
}

func (g *guest) route(args []string) (answer, error) {
	r := &netlink.Route{}
	if args[0] != "default" {
		_, dst, err := net.ParseCIDR(args[0])
		if err != nil {
			return answer{}, err
		}
		r.Dst = dst
	}
	if gw := net.ParseIP(args[1]); gw != nil {
		r.Gw = gw
		return answer{}, netlink.RouteReplace(r)
	}
	return onLink(args[1], func(l netlink.Link) error {
		r.LinkIndex = l.Attrs().Index
		return netlink.RouteReplace(r)
	})
}

func (g *guest) join(args []string) (answer, error) {
	c, err := joinGroup(args[0], args[1])
	if err != nil {
		return answer{}, err
	}
	g.held.put("join "+args[0]+" "+args[1], c)
	return answer{}, nil
}

func (g *guest) leave(args []string) (answer, error) {
	if !g.held.drop("join " + args[0] + " " + args[1]) {
		return answer{}, fmt.Errorf("%s was not joined on %s", args[0], args[1])
	}
	return answer{}, nil
}

// joinGroup makes dev receive a multicast group until the result is closed.
func joinGroup(group, dev string) (io.Closer, error) {
	link, err := net.InterfaceByName(dev)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dev, err)
	}
	mac, err := net.ParseMAC(group)
	if err == nil {
		return joinMAC(mac, link.Index)
	}
	addr, err := netip.ParseAddr(group)
	if err != nil {
		return nil, err
	}
	family := unix.AF_INET6
	if addr.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if addr.Is4() {
		err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: addr.As4(), Ifindex: int32(link.Index)})
	} else {
		err = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
			&unix.IPv6Mreq{Multiaddr: addr.As16(), Interface: uint32(link.Index)})
	}
	return heldSocket(fd, err)
}

// joinMAC is for groups that belong to no IP address, such as LLDP's.
func joinMAC(mac net.HardwareAddr, ifindex int) (io.Closer, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req := &unix.PacketMreq{Ifindex: int32(ifindex), Type: unix.PACKET_MR_MULTICAST, Alen: uint16(len(mac))}
	copy(req.Address[:], mac)
	return heldSocket(fd, unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, req))
}

func heldSocket(fd int, err error) (io.Closer, error) {
	f := os.NewFile(uintptr(fd), "group")
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
