package main

import (
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watchLinks gives a NIC that is plugged in its addresses when it comes under a
// name that has some, as a network manager does.
func (g *guest) watchLinks(wanted []linkAddresses) error {
	if len(wanted) == 0 {
		return nil
	}
	known := map[int32]bool{}
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, link := range links {
		known[int32(link.Attrs().Index)] = true
	}
	updates := make(chan netlink.LinkUpdate, 16)
	if err := netlink.LinkSubscribe(updates, nil); err != nil {
		return err
	}
	go func() {
		for u := range updates {
			if u.Header.Type != unix.RTM_NEWLINK || known[u.IfInfomsg.Index] {
				continue
			}
			known[u.IfInfomsg.Index] = true
			for _, w := range wanted {
				if w.dev == u.Link.Attrs().Name {
					g.warn("hot plug", netlink.LinkSetUp(u.Link))
					g.warn("hot plug", addAddresses(w.dev, w.addresses))
				}
			}
		}
	}()
	return nil
}
