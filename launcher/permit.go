package launcher

import (
	"fmt"
	"net"
	"slices"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

// maxListed is how many addresses QEMU keeps of a guest's lists, both together,
// before it says that they overflow (hw/net/virtio-net.c, MAC_TABLE_ENTRIES).
const maxListed = 64

// permit is what a child lets in for a guest that wishes so, the address that
// it has then, and what was refused of the wish, in words, or "". It is pure. A
// wish of nil is one that nobody can know: the card has no way to tell.
func permit(c netsetup.Child, wish *qmp.RxFilter) (f netsetup.Filter, mac net.HardwareAddr, refused string) {
	mac = c.MAC
	if wish == nil {
		return firstFilter(c), mac, ""
	}
	f.AllMulticast = c.Multicast == configs.MulticastAll
	if c.Multicast == configs.MulticastGuest {
		f.AllMulticast = wish.Promiscuous || wish.Multicast == "all" || wish.MulticastOverflow || len(wish.MulticastTable) > maxListed
		if wish.Multicast == "normal" && !f.AllMulticast {
			f.Multicast = addresses(wish.MulticastTable, func(mac net.HardwareAddr) bool { return mac[0]&1 != 0 })
		}
	}
	if main, err := net.ParseMAC(wish.MainMAC); err == nil && !slices.Equal(main, c.MAC) && c.Kind != configs.KindIPvtap {
		switch {
		case c.Trust == configs.TrustNone:
			refused = fmt.Sprintf(`the guest set its MAC to %s, and keeps %s: nothing sent to the other reaches it: trust = "mac" allows it`, main, c.MAC)
		case configs.CheckMAC(main) != nil:
			refused = fmt.Sprintf("the guest set its MAC to %s, which nobody can have", main)
		default:
			mac = main
		}
	}
	if c.Trust != configs.TrustAll || c.Mode != configs.ModePassthru {
		return f, mac, refused
	}
	// Only a passthru child has more addresses than one (drivers/net/macvlan.c, macvlan_fdb_add).
	f.Promisc = wish.Promiscuous || wish.UnicastOverflow || len(wish.UnicastTable) > maxListed
	if !f.Promisc {
		f.Unicast = addresses(wish.UnicastTable, func(mac net.HardwareAddr) bool { return configs.CheckMAC(mac) == nil })
	}
	return f, mac, refused
}

// firstFilter is what a child lets through while nobody knows what its guest
// wants: until its driver is heard, as firmware that boots from the network has
// none, and of a card that cannot tell.
func firstFilter(c netsetup.Child) netsetup.Filter {
	return netsetup.Filter{AllMulticast: c.Multicast != configs.MulticastOff}
}

// addresses reads the MACs that fit. QEMU keeps a guest's lists as they are,
// whatever is in them (hw/net/virtio-net.c, virtio_net_handle_mac).
func addresses(texts []string, fit func(net.HardwareAddr) bool) []net.HardwareAddr {
	var macs []net.HardwareAddr
	for _, text := range texts {
		if mac, err := net.ParseMAC(text); err == nil && len(mac) == 6 && fit(mac) {
			macs = append(macs, mac)
		}
	}
	return macs
}
