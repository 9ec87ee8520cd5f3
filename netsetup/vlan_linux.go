package netsetup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// AcquireVLAN makes sure that VLAN id of parent has a device, up, and returns
// its name. One of ours gets owner's mark and stays until the last of its users
// has released it; one that is somebody else's is used as it is. The host has
// no address on ours and says nothing there. The error is a *LinkError;
// errors.Is finds unix.EOPNOTSUPP where the kernel has no 8021q.
func AcquireVLAN(ctx context.Context, owner int, parent string, id int) (string, error) {
	name := configs.NIC{Parent: parent, VLAN: id}.Lower()
	failed := func(op string, err error) (string, error) {
		return "", &LinkError{Op: op, Link: name, Err: err}
	}
	unlock, err := lockShared(ctx)
	if err != nil {
		return failed("acquire", err)
	}
	defer unlock()
	p, err := netlink.LinkByName(parent)
	if err != nil {
		return failed("find parent", err)
	}
	l, err := findVLAN(name, p.Attrs().Index, id)
	if err != nil {
		return failed("acquire", err)
	}
	if l == nil {
		if l, err = addVLAN(name, p.Attrs(), id); err != nil {
			return "", err
		}
	}
	if !shared(l) {
		return name, nil
	}
	if err := addUser(l, owner); err != nil {
		return "", err
	}
	return name, upVLAN(l)
}

// ReleaseVLAN takes owner's mark off the VLAN device, and removes one of ours
// that has no other user. One that is gone already is no error.
func ReleaseVLAN(ctx context.Context, owner int, parent string, id int) error {
	unlock, err := lockShared(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := present(netlink.LinkByName(configs.NIC{Parent: parent, VLAN: id}.Lower()))
	if err != nil || l == nil || !shared(l) {
		return err
	}
	return dropUsers(l, func(user int) bool { return user == owner })
}

// findVLAN returns the device of that name, or nil. It is an error if it is
// something else, or if the VLAN has a device of another name.
func findVLAN(name string, parent, id int) (netlink.Link, error) {
	l, err := present(netlink.LinkByName(name))
	if err != nil {
		return nil, err
	}
	if l != nil {
		if isVLAN(l, parent, id) {
			return l, nil
		}
		return nil, fmt.Errorf("a %s of that name is something else: rename it, or type: ip link delete %s", l.Type(), name)
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if isVLAN(l, parent, id) {
			other := l.Attrs().Name
			return nil, fmt.Errorf("the VLAN has a device already, %s: use parent = %q without vlan", other, other)
		}
	}
	return nil, nil
}

func isVLAN(l netlink.Link, parent, id int) bool {
	v, ok := l.(*netlink.Vlan)
	return ok && v.ParentIndex == parent && v.NetNsID < 0 && v.VlanId == id &&
		(v.VlanProtocol == netlink.VLAN_PROTOCOL_8021Q || v.VlanProtocol == netlink.VLAN_PROTOCOL_UNKNOWN)
}

// addVLAN creates a device of ours on which the host keeps quiet.
func addVLAN(name string, parent *netlink.LinkAttrs, id int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, parent.Index
	return addShared(&netlink.Vlan{LinkAttrs: attrs, VlanId: id, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q},
		fmt.Sprintf("VLAN %d of %s for guests", id, parent.Name))
}

// upVLAN sets a device of ours up, without the host's IPv6. On a parent that is
// down it cannot come up, and comes up with it (net/8021q/vlan.c,
// vlan_device_event).
func upVLAN(l netlink.Link) error {
	a := l.Attrs()
	if a.Flags&net.FlagUp != 0 {
		return nil
	}
	err := writeSysctl("ipv6/conf/"+a.Name+"/disable_ipv6", "1")
	if err != nil && !errors.Is(err, os.ErrNotExist) { // no IPv6 in this kernel
		return sharedErr("keep quiet", a, err)
	}
	if err := netlink.LinkSetUp(l); err != nil && !errors.Is(err, unix.ENETDOWN) {
		return sharedErr("up", a, err)
	}
	return nil
}
