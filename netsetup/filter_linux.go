package netsetup

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"time"

	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// Filter is what a child lets in beside broadcast and frames to its own MAC.
//
// The kernel keeps the groups as an 8-bit hash that is different for every child
// (drivers/net/macvlan.c, mc_hash), so a frame to another group gets in where
// the hashes meet: one in 256 for each group listed. Groups that differ in their
// last byte alone never meet. In source mode the sender decides and the groups
// do nothing but tell the parent to listen.
type Filter struct {
	AllMulticast bool
	Multicast    []net.HardwareAddr // exactly these groups
	Unicast      []net.HardwareAddr // further own addresses; passthru only
	Promisc      bool               // everything, all multicast included, and so is the parent promiscuous; passthru only
}

// SetFilter makes the child's filter f, whatever it was, on a child that is up or
// down. It changes only what differs, groups that the host's own IP stack has
// joined on the child included. The error is a *LinkError; it is EOPNOTSUPP for
// what only passthru has.
func (ns *Namespace) SetFilter(c Child, f Filter) error {
	want, err := c.filterState(f)
	if err != nil {
		return c.err("set filter", err)
	}
	err = ns.converse(func(conn *mdlayher.Conn) error {
		// The kernel counts how often a group was joined, and shows no count:
		// one that another has joined too takes another round to go.
		for range 4 {
			have, err := readFilter(conn, c.Index)
			if err != nil {
				return err
			}
			requests := c.filterChanges(have, want)
			if len(requests) == 0 {
				return nil
			}
			if err := sendAll(conn, requests); err != nil {
				return err
			}
		}
		return errors.New("the kernel does not keep what it was told")
	})
	if err != nil {
		return c.err("set filter", err)
	}
	return nil
}

// Filter reads the child's filter from the kernel, each list in order. Promisc
// brings AllMulticast with it; on a passthru child that lets all unicast in
// anyway, AllMulticast brings Promisc too.
func (ns *Namespace) Filter(c Child) (Filter, error) {
	var have filterState
	err := ns.converse(func(conn *mdlayher.Conn) (err error) {
		have, err = readFilter(conn, c.Index)
		return err
	})
	if err != nil {
		return Filter{}, c.err("read filter", err)
	}
	f := Filter{
		Promisc:      have.flags&unix.IFF_PROMISC != 0,
		AllMulticast: have.flags&rxFlags != 0,
	}
	for _, addr := range slices.SortedFunc(maps.Keys(have.addrs), func(a, b address) int { return bytes.Compare(a[:], b[:]) }) {
		if addr.multicast() {
			f.Multicast = append(f.Multicast, addr[:])
			continue
		}
		f.Unicast = append(f.Unicast, addr[:])
	}
	return f, nil
}

type address [6]byte

// multicast tells a group from a station (IEEE 802, the I/G bit).
func (a address) multicast() bool { return a[0]&1 != 0 }

// filterState is a filter as the kernel keeps it.
type filterState struct {
	addrs     map[address]bool
	flags     uint32 // of IFF_UP, IFF_PROMISC, IFF_ALLMULTI
	nopromisc bool   // MACVLAN_FLAG_NOPROMISC
}

// filterState says how the kernel is to keep f for the child.
//
// A parent's counts are where macvlan has habits (macvlan_open, macvlan_stop,
// macvlan_change_rx_flags, macvlan_changelink). Outside of passthru all
// multicast of a child is its parent's as long as the child is up. In passthru
// it becomes the parent's and ceases to be so only by a change of the flag while
// the child is up; the end of the child does not take it back. IFF_PROMISC there
// is the child's alone. So where the parent is promiscuous, IFF_PROMISC stands
// for all multicast; and the parent is made promiscuous by the macvlan flag,
// which the end of the child does take back.
func (c Child) filterState(f Filter) (filterState, error) {
	passthru := c.Mode == configs.ModePassthru
	want := filterState{addrs: map[address]bool{}, nopromisc: c.onItsOwn() && !f.Promisc}
	switch {
	case (f.Promisc || len(f.Unicast) > 0) && !passthru:
		return want, fmt.Errorf("unicast addresses and promiscuous mode in %s mode: %w", c.Mode, unix.EOPNOTSUPP)
	case f.Promisc, f.AllMulticast && passthru && c.Promisc:
		want.flags = unix.IFF_PROMISC
	case f.AllMulticast:
		want.flags = unix.IFF_ALLMULTI
	}
	for _, list := range []struct {
		addrs     []net.HardwareAddr
		multicast bool
	}{{f.Multicast, true}, {f.Unicast, false}} {
		for _, mac := range list.addrs {
			if len(mac) != len(address{}) || address(mac).multicast() != list.multicast || address(mac) == (address{}) {
				return want, fmt.Errorf("%s is in the wrong list: %w", mac, unix.EINVAL)
			}
			want.addrs[address(mac)] = true
		}
	}
	return want, nil
}

// filterChanges builds the requests that lead from have to want, first those
// that let more in, so that nothing wanted before and after is lost in between.
//
// The flags come last once more: an address that goes leaves macvlan's hash only
// with the next change, because the list that the hash is made from still has it
// then (drivers/net/macvlan.c, macvlan_set_mac_lists), and setting flags to what
// they are counts as one (net/core/dev.c, __dev_change_flags).
func (c Child) filterChanges(have, want filterState) []mdlayher.Message {
	var more, less []mdlayher.Message
	for addr := range want.addrs {
		if !have.addrs[addr] {
			more = append(more, c.fdbRequest(unix.RTM_NEWNEIGH, mdlayher.Create|mdlayher.Excl, addr))
		}
	}
	for addr := range have.addrs {
		if !want.addrs[addr] {
			less = append(less, c.fdbRequest(unix.RTM_DELNEIGH, 0, addr))
		}
	}
	if (have.flags^want.flags)&rxFlags != 0 {
		more = append(more, c.flagsRequest(want.flags))
	}
	// A child that is down would have the parent's count changed at once, and
	// again when it comes up.
	if c.onItsOwn() && have.flags&unix.IFF_UP != 0 && have.nopromisc != want.nopromisc {
		more = append(more, c.nopromiscRequest(want.nopromisc))
	}
	if len(less) > 0 {
		less = append(less, c.flagsRequest(want.flags))
	}
	return append(more, less...)
}

// fdbRequest is bridge(8)'s "fdb add ADDR dev CHILD self", or del.
func (c Child) fdbRequest(kind uint16, flags mdlayher.HeaderFlags, addr address) mdlayher.Message {
	msg := &netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(c.Index), State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF}
	return newRequest(kind, flags, msg, nl.NewRtAttr(netlink.NDA_LLADDR, addr[:]))
}

// rxFlags are the flags of a link that are a part of its filter.
const rxFlags = unix.IFF_PROMISC | unix.IFF_ALLMULTI

func (c Child) flagsRequest(flags uint32) mdlayher.Message {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(c.Index), flags, rxFlags
	return newRequest(unix.RTM_NEWLINK, 0, msg)
}

func (c Child) nopromiscRequest(on bool) mdlayher.Message {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(c.Index)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("macvtap"))
	var flags uint16
	if on {
		flags = flagNoPromisc
	}
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_MACVLAN_FLAGS, nl.Uint16Attr(flags))
	return newRequest(unix.RTM_NEWLINK, 0, msg, info)
}

func readFilter(conn *mdlayher.Conn, index int) (filterState, error) {
	state := filterState{addrs: map[address]bool{}}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	replies, err := conn.Execute(newRequest(unix.RTM_GETLINK, 0, msg))
	if err != nil {
		return state, err
	}
	for _, r := range replies {
		if len(r.Data) < unix.SizeofIfInfomsg {
			return state, errors.New("the kernel's answer is too short")
		}
		info := nl.DeserializeIfInfomsg(r.Data)
		state.flags = info.Flags & (unix.IFF_UP | rxFlags)
		state.nopromisc, err = parseNoPromisc(r.Data[unix.SizeofIfInfomsg:])
		if err != nil {
			return state, err
		}
	}
	replies, err = conn.Execute(newRequest(unix.RTM_GETNEIGH, mdlayher.Dump, &netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(index)}))
	if err != nil {
		return state, err
	}
	for _, r := range replies {
		entry, err := netlink.NeighDeserialize(r.Data)
		if err != nil {
			return state, err
		}
		if entry.LinkIndex == index && entry.Flags&netlink.NTF_SELF != 0 && len(entry.HardwareAddr) == len(address{}) {
			state.addrs[address(entry.HardwareAddr)] = true
		}
	}
	return state, nil
}

// parseNoPromisc finds the macvlan flag in the attributes of a link.
func parseNoPromisc(attrs []byte) (on bool, err error) {
	link, err := mdlayher.NewAttributeDecoder(attrs)
	if err != nil {
		return false, err
	}
	data := func(data *mdlayher.AttributeDecoder) error {
		for data.Next() {
			if data.Type() == nl.IFLA_MACVLAN_FLAGS {
				on = data.Uint16()&flagNoPromisc != 0
			}
		}
		return nil
	}
	info := func(info *mdlayher.AttributeDecoder) error {
		for info.Next() {
			if info.Type() == nl.IFLA_INFO_DATA {
				info.Nested(data)
			}
		}
		return nil
	}
	for link.Next() {
		if link.Type() == unix.IFLA_LINKINFO {
			link.Nested(info)
		}
	}
	return on, link.Err()
}

// kernelTime bounds the wait for an answer of the kernel, which is immediate
// unless others hold its lock on the network for long.
const kernelTime = 2 * time.Second

// converse runs fn with a route netlink socket inside ns that is closed
// afterwards; kept open, it would keep the namespace alive.
func (ns *Namespace) converse(fn func(*mdlayher.Conn) error) error {
	var conn *mdlayher.Conn
	err := ns.with(func(fd int) (err error) {
		conn, err = mdlayher.Dial(unix.NETLINK_ROUTE, &mdlayher.Config{NetNS: fd, Strict: true})
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(kernelTime)); err != nil {
		return err
	}
	return fn(conn)
}

// sendAll sends requests in one go and waits until the kernel has done them all.
// That an address is there or gone already is no error. The kernel answers
// those that fail, and the one that does nothing at the end.
func sendAll(conn *mdlayher.Conn, requests []mdlayher.Message) error {
	end := mdlayher.Message{Header: mdlayher.Header{Type: mdlayher.Noop, Flags: mdlayher.Request | mdlayher.Acknowledge}}
	if _, err := conn.SendMessages(append(requests, end)); err != nil {
		return err
	}
	var failed []error
	for range len(requests) + 1 {
		_, err := conn.Receive()
		switch {
		case err == nil:
			return errors.Join(failed...)
		case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOENT):
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return errors.Join(append(failed, err)...)
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

func newRequest(kind uint16, flags mdlayher.HeaderFlags, parts ...nl.NetlinkRequestData) mdlayher.Message {
	m := mdlayher.Message{Header: mdlayher.Header{Type: mdlayher.HeaderType(kind), Flags: mdlayher.Request | flags}}
	for _, part := range parts {
		m.Data = append(m.Data, part.Serialize()...)
	}
	return m
}
