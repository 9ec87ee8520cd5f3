package nettest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/netsetup/nettest/wire"
)

// addSettings notes how a machine's network is set up beside its links: whoever
// changes any of it puts it back.
func (s *Snapshot) addSettings(st state, name string, m *Host) error {
	err := m.Do(func() error {
		list, err := Settings()
		if m == s.lab.Host {
			list = append(list, sysctls()...)
		}
		for _, line := range list {
			st.links[name+": "+line] = ""
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Settings lists what a snapshot looks at in the calling thread's namespace, but
// for sysctls: links, addresses, routes, neighbours and nftables tables.
func Settings() ([]string, error) {
	links, err := wire.Dump(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, part := range []func([]netlink.Link) ([]string, error){describe, addresses, routes, neighbours, tables} {
		list, err := part(links)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

func describe(links []netlink.Link) ([]string, error) {
	var list []string
	for _, link := range links {
		a := link.Attrs()
		list = append(list, fmt.Sprintf("%s %s mac=%s mtu=%d promiscuity=%d allmulti=%d flags=%s master=%d",
			link.Type(), a.Name, a.HardwareAddr, a.MTU, a.Promisc, a.Allmulti, a.Flags, a.MasterIndex))
	}
	return list, nil
}

// addresses lists the links' addresses and other names.
func addresses(links []netlink.Link) ([]string, error) {
	var list []string
	for _, link := range links {
		a := link.Attrs()
		for _, other := range a.AltNames {
			list = append(list, fmt.Sprintf("altname %s of %s", other, a.Name))
		}
		addrs, err := wire.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
		if err != nil {
			return nil, fmt.Errorf("%s: addresses: %w", a.Name, err)
		}
		for _, addr := range addrs {
			list = append(list, fmt.Sprintf("address %s scope %d on %s", addr.IPNet, addr.Scope, a.Name))
		}
	}
	return list, nil
}

// routes lists those of all tables, the kernel's own too.
func routes(links []netlink.Link) ([]string, error) {
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	var list []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		found, err := wire.Dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, all, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("routes: %w", err)
		}
		for _, r := range found {
			list = append(list, fmt.Sprintf("route %v via %v dev %s src %v table %d type %d protocol %d metric %d",
				r.Dst, r.Gw, nameOf(links, r.LinkIndex), r.Src, r.Table, r.Type, r.Protocol, r.Priority))
		}
		rules, err := wire.Dump(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
		if err != nil {
			return nil, fmt.Errorf("rules: %w", err)
		}
		for _, r := range rules {
			list = append(list, r.String())
		}
	}
	return list, nil
}

// neighbours lists the entries that somebody made: proxied and permanent ones.
func neighbours(links []netlink.Link) ([]string, error) {
	var list []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		proxies, err := wire.Dump(func() ([]netlink.Neigh, error) { return netlink.NeighProxyList(0, family) })
		if err != nil {
			return nil, fmt.Errorf("proxied neighbours: %w", err)
		}
		for _, n := range proxies {
			list = append(list, fmt.Sprintf("proxied neighbour %s on %s", n.IP, nameOf(links, n.LinkIndex)))
		}
		known, err := wire.Dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, family) })
		if err != nil {
			return nil, fmt.Errorf("neighbours: %w", err)
		}
		for _, n := range known {
			if n.State&netlink.NUD_PERMANENT != 0 {
				list = append(list, fmt.Sprintf("permanent neighbour %s at %s on %s", n.IP, n.HardwareAddr, nameOf(links, n.LinkIndex)))
			}
		}
	}
	return list, nil
}

// tables lists those of nftables by name; a table is made and deleted whole.
func tables([]netlink.Link) ([]string, error) {
	c, err := nftables.New() // in the calling thread's namespace
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	found, err := c.ListTables()
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil // a kernel that has not loaded it
	}
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	var list []string
	for _, t := range found {
		list = append(list, fmt.Sprintf("nftables table %s of family %d", t.Name, t.Family))
	}
	return list, nil
}

// sysctls lists what can be set of each link and of those to come.
func sysctls() []string {
	var list []string
	for _, pattern := range []string{"ipv[46]/conf/*/*", "ipv[46]/neigh/*/*", "ipv4/ip_forward"} {
		files, _ := filepath.Glob(filepath.Join("/proc/sys/net", pattern))
		for _, file := range files {
			if value, err := os.ReadFile(file); err == nil { // some cannot be read
				list = append(list, file+" = "+strings.TrimSpace(string(value)))
			}
		}
	}
	return list
}

// nameOf is how a link is called; its number tells nothing to who reads it, and
// is another when the link was made again.
func nameOf(links []netlink.Link, index int) string {
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == index })
	if i < 0 {
		return "-"
	}
	return links[i].Attrs().Name
}
