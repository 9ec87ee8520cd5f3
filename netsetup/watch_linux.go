package netsetup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"slices"
	"sync/atomic"
	"syscall"

	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// Watcher tells of changes in a network namespace, until it is closed. Its
// socket keeps the namespace alive.
type Watcher struct {
	conn   *mdlayher.Conn
	closed atomic.Bool      // the socket's errors do not tell: EAGAIN is one that comes then
	links  map[int32]uint64 // hashes of what was told last, by index
	done   chan struct{}
}

// Watch calls changed after changes to the links, addresses, routes and settings
// of the calling thread's namespace (rtnetlink(7)), and when it has lost count
// of them. What has changed it does not say: the kernel is there to be asked.
func Watch(changed func()) (*Watcher, error) {
	return watch(changed, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
}

// Watch calls changed after changes to the links of ns, as the function Watch does.
func (ns *Namespace) Watch(changed func()) (w *Watcher, err error) {
	err = ns.Do(func() error {
		w, err = watch(changed, unix.RTNLGRP_LINK)
		return err
	})
	return w, err
}

func watch(changed func(), groups ...uint32) (*Watcher, error) {
	conn, err := mdlayher.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	for _, group := range groups {
		if err := conn.JoinGroup(group); err != nil {
			conn.Close()
			return nil, fmt.Errorf("watch links: %w", err)
		}
	}
	w := &Watcher{conn: conn, links: map[int32]uint64{}, done: make(chan struct{})}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("watch links: %w", err)
	}
	go func() {
		defer close(w.done)
		buf := make([]byte, 8<<10) // the kernel's largest message of this kind takes a page
		for {
			messages, err := receive(raw, buf)
			if w.closed.Load() {
				return
			}
			if err != nil { // ENOBUFS says that there was more than could be told
				clear(w.links)
			}
			if w.areNews(messages) || err != nil {
				changed()
			}
		}
	}()
	return w, nil
}

// receive waits for messages and reads them into buf. A host with many guests has many
// of them, which mdlayher.Conn would make new memory for each time.
func receive(raw syscall.RawConn, buf []byte) (messages []syscall.NetlinkMessage, err error) {
	var n int
	var failure error
	err = raw.Read(func(fd uintptr) bool {
		n, _, failure = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
		return !errors.Is(failure, unix.EAGAIN)
	})
	if err = errors.Join(err, failure); err != nil {
		return nil, err
	}
	return syscall.ParseNetlinkMessage(buf[:n])
}

// areNews reports whether any message says what was not known. Of a parent the kernel
// tells whenever a child of it begins or ceases to hear all multicast, which is nothing
// to its others; with many guests on it that is most of what there is to hear.
func (w *Watcher) areNews(messages []syscall.NetlinkMessage) (news bool) {
	for _, m := range messages {
		if len(m.Data) < unix.SizeofIfInfomsg || m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK {
			news = true
			continue
		}
		link := nl.DeserializeIfInfomsg(m.Data)
		if m.Header.Type == unix.RTM_DELLINK {
			delete(w.links, link.Index)
			news = true
			continue
		}
		hash, err := linkHash(link.Flags, m.Data[unix.SizeofIfInfomsg:])
		if before, known := w.links[link.Index]; known && before == hash && err == nil {
			continue
		}
		w.links[link.Index], news = hash, true
	}
	return news
}

// linkHash is one of a link's flags and attributes, but for those that count.
func linkHash(flags uint32, attributes []byte) (uint64, error) {
	hash := fnv.New64a()
	hash.Write(binary.NativeEndian.AppendUint32(nil, flags))
	attrs, err := mdlayher.NewAttributeDecoder(attributes)
	if err != nil {
		return 0, err
	}
	for attrs.Next() {
		switch kind := attrs.Type(); kind {
		case unix.IFLA_STATS, unix.IFLA_STATS64, unix.IFLA_AF_SPEC: // the last for IPv6's
		case unix.IFLA_PROMISCUITY, unix.IFLA_ALLMULTI: // how many ask for it
		case unix.IFLA_EVENT:
		default:
			hash.Write(binary.NativeEndian.AppendUint16(nil, kind))
			hash.Write(attrs.Bytes())
		}
	}
	return hash.Sum64(), attrs.Err()
}

// AwaitLinks waits until the calling thread's namespace has a link of each name. It
// tells of those that are missing, and again when one has come.
func AwaitLinks(ctx context.Context, names []string, tell func(missing []string)) error {
	news := make(chan struct{}, 1)
	w, err := watch(func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}, unix.RTNLGRP_LINK)
	if err != nil {
		return err
	}
	defer w.Close()
	for told := 0; ; {
		missing, err := missingLinks(names)
		if err != nil || len(missing) == 0 {
			return err
		}
		if len(missing) != told {
			told = len(missing)
			tell(missing)
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func missingLinks(names []string) (missing []string, err error) {
	for _, name := range names {
		link, err := present(netlink.LinkByName(name))
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", name, err)
		}
		if link == nil && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	return missing, nil
}

// Close ends the watch; changed is not called any more when it returns.
func (w *Watcher) Close() {
	if w == nil {
		return
	}
	w.closed.Store(true)
	w.conn.Close()
	<-w.done
}

// Condition is what the kernel has of a child and its parent.
type Condition struct {
	Parent    bool // the host has a link of the parent's name
	ParentMTU int  // bytes
	Carrier   bool // the parent is up and its cable is in

	Child    bool // the child is there
	Attached bool // and it is on the parent of that name
	Up       bool
	MAC      net.HardwareAddr
	MTU      int // bytes
	Mode     configs.Mode
}

// Look says how a child and its parent are. The parent is looked up in the
// caller's namespace. One that is not there is no error.
func (ns *Namespace) Look(c Child) (Condition, error) {
	var cond Condition
	var lower int // where a child of the parent lands
	link, err := present(netlink.LinkByName(c.Lower()))
	if err != nil {
		return cond, c.err("find parent", err)
	}
	if link != nil {
		parent := link.Attrs()
		if lower = parent.Index; kindOf(link) != "" {
			lower = parent.ParentIndex // of a macvlan the children land on its own parent
		}
		cond.Parent, cond.ParentMTU = true, parent.MTU
		cond.Carrier = parent.Flags&net.FlagUp != 0 && parent.RawFlags&unix.IFF_LOWER_UP != 0
	}
	err = ns.Do(func() (err error) {
		link, err = present(netlink.LinkByIndex(c.Index))
		return err
	})
	if err != nil {
		return cond, c.err("look", err)
	}
	if link == nil {
		return cond, nil
	}
	a := link.Attrs()
	cond.Child, cond.Up, cond.MAC, cond.MTU = true, a.Flags&net.FlagUp != 0, a.HardwareAddr, a.MTU
	if m, ok := link.(*netlink.Macvtap); ok {
		cond.Mode = modeNames[m.Mode]
	}
	cond.Attached = lower != 0 && a.ParentIndex == lower
	return cond, nil
}

// present turns the error that there is no such link into none.
func present(link netlink.Link, err error) (netlink.Link, error) {
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	return link, err
}

// SetMode changes the child's mode to c.Mode. The kernel has no way to or from
// passthru (drivers/net/macvlan.c, macvlan_changelink: EINVAL).
func (ns *Namespace) SetMode(c Child) error {
	return ns.Do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(c.Index)
		req.AddData(msg)
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(string(configs.KindMacvtap)))
		info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(modeBits[c.Mode]))
		req.AddData(info)
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return c.err("set mode", err)
		}
		return nil
	})
}

// SetMAC gives the child the address c.MAC; in passthru its parent takes it on.
// errors.Is finds unix.EADDRINUSE where a sibling, or the parent, has it.
func (ns *Namespace) SetMAC(c Child) error {
	return ns.Do(func() error {
		return c.try("set MAC", func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, c.MAC) })
	})
}

// SetMTU gives the child the MTU c.MTU, which is at most its parent's.
func (ns *Namespace) SetMTU(c Child) error {
	return ns.Do(func() error {
		return c.try("set MTU", func(l netlink.Link) error { return netlink.LinkSetMTU(l, c.MTU) })
	})
}
