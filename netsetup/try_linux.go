package netsetup

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"

	"vmrun/configs"
)

// Try makes a macvtap child and opens its tap, on a NIC and in namespaces made
// for that, and so tells whether the kernel and the caller's privileges do. The
// error is a *LinkError with unix.EOPNOTSUPP where the kernel has no macvtap.
func Try() error {
	host, err := NewNamespace()
	if err != nil {
		return err
	}
	defer host.Close()
	return host.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "parent"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		guest, err := NewNamespace()
		if err != nil {
			return err
		}
		defer guest.Close()
		c := Child{Name: "net0", Index: 1 << 24, NIC: configs.NIC{Parent: attrs.Name, Mode: configs.ModeBridge,
			MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Queues: 1}}
		if err := guest.Create(c); err != nil {
			return err
		}
		taps, err := guest.OpenTaps(c)
		closeAll(taps)
		return err
	})
}
