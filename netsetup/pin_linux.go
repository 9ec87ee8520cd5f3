package netsetup

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	rtnetlink "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

const (
	pinBuffer  = 1 << 20 // bytes for the kernel's answers to one transaction, one for each object in it
	pinTimeout = 5 * time.Second
)

// Pin makes the child drop what its guest forges, as c.Pin says; PinNone takes
// the rules away. They replace those of an earlier Pin in one transaction:
// each frame meets the old ones or the new, and the counts go on. The child
// must be there, up or down. The error is a *LinkError; errors.Is finds
// unix.EOPNOTSUPP or unix.EPROTONOSUPPORT where the kernel has no nf_tables.
//
// The rules are on the child's way out (nft(8), netdev family, egress hook), in
// the guest's namespace, where QEMU has no say. All that is written to a tap
// passes there before it reaches a sibling or the parent (drivers/net/tap.c,
// tap_get_user; net/core/dev.c, __dev_queue_xmit).
//
// PinMAC checks the Ethernet source and the ARP sender's hardware address. The
// hardware addresses inside DHCP and neighbour discovery are left alone: a guest
// that relays or routes for others names theirs.
//
// PinAll lets through ARP, IPv4 and IPv6 only, from c.MAC and c.Addresses, and
// QEMU's own announcements by RARP. VLAN tags, LLDP, EAPOL, spanning tree and
// frames with an IEEE 802.3 length are dropped. Of IPv6 link-local addresses the
// guest has those in c.Addresses and the one made of c.MAC (RFC 4291, appendix
// A); one made in another way (RFC 7217, the default of NetworkManager and
// Windows) has to be listed. Without an address yet a guest may speak as DHCP
// client, probe by ARP (RFC 5227), detect duplicates of its own addresses
// (RFC 4862), solicit routers, and report multicast groups. It cannot be a DHCP
// server or relay, nor an IPv6 router; UDP and ICMP with IPv4 options, and IPv6
// messages behind more than one short extension header, are dropped unread.
//
// Not looked at are the insides of tunnels, DHCP client identifiers (option 61,
// DUIDs), and where a guest leaves UDP segmentation to the host (virtio's
// HOST_USO), the hardware address in DHCP requests behind the first of a batch.
func (ns *Namespace) Pin(c Child) error {
	if err := ns.Do(func() error { return pin(c) }); err != nil {
		return c.err("pin", err)
	}
	return nil
}

func pin(c Child) error {
	conn, err := nftables.New(nftables.WithSockOptions(pinSocket))
	if err != nil {
		return err
	}
	table := pinTable(c)
	conn.AddTable(table) // so that what follows finds one
	if c.Pin == configs.PinNone {
		conn.DelTable(table)
		return pinFailed(conn.Flush())
	}
	// The chain is bound by name, on new kernels (6.18) even to a link that is not there.
	link, err := rtnetlink.LinkByIndex(c.Index)
	if err != nil {
		return err
	}
	if link.Attrs().Name != c.Name {
		return fmt.Errorf("link %d is %q: it is not the one that was made", c.Index, link.Attrs().Name)
	}
	conn.FlushTable(table)
	if err := addPinRules(conn, table, c); err != nil {
		return err
	}
	return pinFailed(conn.Flush())
}

// Pinned returns how many frames the child has dropped since it was first
// pinned, or pinned again after PinNone. ok is false where nothing is pinned.
func (ns *Namespace) Pinned(c Child) (r Refusals, ok bool, err error) {
	var objs []nftables.Obj
	err = ns.Do(func() error {
		conn, err := nftables.New(nftables.WithSockOptions(pinSocket))
		if err != nil {
			return err
		}
		objs, err = conn.GetObjects(pinTable(c))
		return pinFailed(err)
	})
	if err != nil {
		return Refusals{}, false, c.err("read refusals", err)
	}
	fields := r.counters()
	for _, o := range objs {
		if counter, isCounter := o.(*nftables.CounterObj); isCounter {
			if n := fields[counter.Name]; n != nil {
				*n, ok = counter.Packets, true
			}
		}
	}
	return r, ok, nil
}

// unpin takes the rules of a child away that is gone. The kernel leaves them
// behind, and new ones (6.18) put them on the next link of the same name.
func unpin(c Child) {
	c.Pin = configs.PinNone
	_ = pin(c) // a kernel without nf_tables had none
}

func pinTable(c Child) *nftables.Table {
	return &nftables.Table{Name: "vmrun-" + c.Name, Family: nftables.TableFamilyNetdev}
}

func pinSocket(conn *netlink.Conn) error {
	return errors.Join(conn.SetReadBuffer(pinBuffer), conn.SetDeadline(time.Now().Add(pinTimeout)))
}

// pinFailed says what to do about a kernel that lacks what Pin needs.
func pinFailed(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("the kernel has no nf_tables with an egress hook (try modprobe nf_tables; "+
			"it takes Linux 5.16 with CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_EGRESS): %w", err)
	}
	return err
}
