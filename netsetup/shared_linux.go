package netsetup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A shared link is one of ours in the host's namespace that several guests use,
// each under a supervisor that can die at any time: a shim (see Reach) or a VLAN
// device. Who uses it is written on the link itself, as one alternative name for
// each guest, "vmrun-user-UID-IFINDEX", after the uid that its QEMU runs under,
// its owner. So the list is the kernel's, outlives crashes and ends with the link.
const userPrefix = "vmrun-user-"

// sharedGroup marks a link as ours: it is a link's group ("vmru"), which
// RTM_NEWLINK sets in the moment of creation (net/core/rtnetlink.c,
// rtnl_create_link), where names for people and for users come after it.
const sharedGroup = 0x766d7275

// sharedFile is locked by whoever changes shared links. The lock ends with its
// holder (fcntl(2), open file description locks).
const (
	sharedFile = "/run/vmrun.shared"
	sharedWait = 2 * time.Second
	sharedPoll = 5 * time.Millisecond
)

// lockShared waits for the lock for at most two seconds.
func lockShared(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(sharedFile, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("shared links: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, sharedWait)
	defer cancel()
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EAGAIN && err != unix.EACCES {
			f.Close()
			return nil, fmt.Errorf("shared links: lock %s: %w", sharedFile, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("shared links: another process holds the lock %s: %w", sharedFile, ctx.Err())
		case <-time.After(sharedPoll):
		}
	}
}

// RepairShared takes away what users that are not alive left in the caller's
// namespace: their marks on shared links, their routes and neighbours, and every
// shared link without users. A guest that ends gives up all it has with an alive
// that is false for itself alone.
func RepairShared(ctx context.Context, alive func(owner int) bool) error {
	broken := func(l netlink.Link) bool {
		all := users(l)
		return len(all) == 0 || slices.ContainsFunc(all, func(owner int) bool { return !alive(owner) })
	}
	if some, err := anyShared(); err != nil || !some {
		return err
	}
	links, err := sharedLinks()
	if err != nil || !slices.ContainsFunc(links, broken) {
		return err
	}
	unlock, err := lockShared(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if links, err = sharedLinks(); err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if broken(l) {
			errs = append(errs, dropUsers(l, func(owner int) bool { return !alive(owner) }))
		}
	}
	return errors.Join(errs...)
}

// anyShared reports whether any link may be ours: mostly there is none, and each start
// asks, on hosts with hundreds of links too. So it takes none of them apart.
func anyShared() (bool, error) {
	conn, err := mdlayher.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return false, fmt.Errorf("shared links: %w", err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err == nil {
		err = conn.SetReadDeadline(time.Now().Add(kernelTime))
	}
	if err == nil {
		_, err = conn.Send(newRequest(unix.RTM_GETLINK, mdlayher.Dump, nl.NewIfInfomsg(unix.AF_UNSPEC)))
	}
	buf := make([]byte, 32<<10) // what the kernel writes at most of a list at a time (net/netlink/af_netlink.c, netlink_recvmsg)
	for err == nil {
		var messages []syscall.NetlinkMessage
		messages, err = receive(raw, buf)
		for _, m := range messages {
			switch {
			case m.Header.Type == unix.NLMSG_DONE:
				return false, nil
			case m.Header.Flags&unix.NLM_F_DUMP_INTR != 0, m.Header.Type != unix.RTM_NEWLINK, hasGroup(m.Data, sharedGroup):
				return true, nil // or a list to be asked for again, or an error that the long way tells
			}
		}
	}
	return false, fmt.Errorf("shared links: list links: %w", err)
}

// hasGroup reports whether a link is of a group, or cannot be read.
func hasGroup(link []byte, group uint32) bool {
	if len(link) < unix.SizeofIfInfomsg {
		return true
	}
	attrs, err := mdlayher.NewAttributeDecoder(link[unix.SizeofIfInfomsg:])
	for err == nil && attrs.Next() {
		if attrs.Type() == unix.IFLA_GROUP {
			return attrs.Uint32() == group
		}
	}
	return err != nil || attrs.Err() != nil
}

// sharedLinks lists ours.
func sharedLinks() ([]netlink.Link, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("shared links: list links: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool { return !shared(l) }), nil
}

func shared(l netlink.Link) bool { return l.Attrs().Group == sharedGroup }

// addShared creates a link of ours, down. What it is for goes into its alias,
// where ip link shows it.
func addShared(l netlink.Link, alias string) (netlink.Link, error) {
	a := l.Attrs()
	a.Group = sharedGroup
	if err := netlink.LinkAdd(l); err != nil {
		return nil, sharedErr("create", a, err)
	}
	l, err := netlink.LinkByName(a.Name)
	if err != nil {
		return nil, sharedErr("create", a, err)
	}
	if err := netlink.LinkSetAlias(l, "vmrun: "+alias); err != nil {
		return nil, sharedErr("set alias", a, err)
	}
	return l, nil
}

// removeShared deletes a link of ours. A VLAN device that has an address by now
// serves the host as well, and is somebody else's from then on.
func removeShared(l netlink.Link) error {
	a := l.Attrs()
	if _, vlan := l.(*netlink.Vlan); vlan {
		addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return sharedErr("list addresses", a, err)
		}
		if len(addrs) > 0 {
			return giveAway(l)
		}
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return sharedErr("delete", a, err)
	}
	return nil
}

// giveAway takes our marks off a link, that of the group last.
func giveAway(l netlink.Link) error {
	if err := dropMarks(l, nil); err != nil {
		return err
	}
	if err := netlink.LinkSetAlias(l, ""); err != nil {
		return sharedErr("clear alias", l.Attrs(), err)
	}
	if err := netlink.LinkSetGroup(l, 0); err != nil {
		return sharedErr("give away", l.Attrs(), err)
	}
	return nil
}

// users lists the owners whose marks a shared link carries.
func users(l netlink.Link) []int {
	var owners []int
	for _, name := range l.Attrs().AltNames {
		rest, ok := strings.CutPrefix(name, userPrefix)
		if !ok {
			continue
		}
		uid, _, _ := strings.Cut(rest, "-")
		if owner, err := strconv.Atoi(uid); err == nil {
			owners = append(owners, owner)
		}
	}
	return owners
}

// mark is the alternative name by which owner uses a link. Alternative names are
// unique in a namespace, hence the link's index in it.
func mark(l netlink.Link, owner int) string {
	return fmt.Sprintf("%s%d-%d", userPrefix, owner, l.Attrs().Index)
}

func addUser(l netlink.Link, owner int) error {
	if slices.Contains(users(l), owner) {
		return nil
	}
	if err := netlink.LinkAddAltName(l, mark(l, owner)); err != nil {
		return sharedErr("add user", l.Attrs(), err)
	}
	return nil
}

// dropUsers takes the users that gone names, and what was set up for them, off a
// link of ours, and removes the link when it has no others.
func dropUsers(l netlink.Link, gone func(owner int) bool) error {
	all := users(l)
	left := slices.DeleteFunc(slices.Clone(all), gone)
	if len(left) == 0 {
		return removeShared(l)
	}
	if err := dropRoutes(l, func(owner int) bool { return !slices.Contains(left, owner) }); err != nil {
		return err
	}
	return dropMarks(l, left)
}

// dropMarks removes the marks of all users but some.
func dropMarks(l netlink.Link, left []int) error {
	for _, name := range l.Attrs().AltNames {
		if !strings.HasPrefix(name, userPrefix) || slices.ContainsFunc(left, func(owner int) bool { return name == mark(l, owner) }) {
			continue
		}
		if err := netlink.LinkDelAltName(l, name); err != nil {
			return sharedErr("remove user", l.Attrs(), err)
		}
	}
	return nil
}

func sharedErr(op string, a *netlink.LinkAttrs, err error) error {
	return &LinkError{Op: op, Link: a.Name, Err: err}
}
