package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"vmrun/netsetup/nettest/wire"
)

func (g *guest) addr(args []string) (answer, error) {
	if args[0] != "del" {
		return answer{}, addAddresses(args[0], args[1:])
	}
	if len(args) < 3 {
		return answer{}, errors.New("del: want DEV and ADDRESS/BITS")
	}
	return onLink(args[1], func(link netlink.Link) error {
		for _, a := range args[2:] {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrDel(link, addr); err != nil {
				return fmt.Errorf("address %s: %w", a, err)
			}
		}
		return nil
	})
}

func (g *guest) addrs(args []string) (answer, error) {
	var list []string
	_, err := onLink(args[0], func(link netlink.Link) error {
		addrs, err := listAddresses(link)
		for _, a := range addrs {
			list = append(list, a.IPNet.String())
		}
		return err
	})
	return answer{reply: strings.Join(list, ",")}, err
}

// slaac makes a link obey routers, or no longer. Both start the link's IPv6 anew:
// it asks at once, and for duplicates as guests do, or loses what it was advertised. Addresses that a command set
// stay.
func (g *guest) slaac(args []string) (answer, error) {
	value := map[string]string{"on": "1", "off": "0"}[args[1]]
	if value == "" {
		return answer{}, fmt.Errorf("%s: on or off", args[1])
	}
	settings := map[string]string{"accept_ra": value, "autoconf": value, "accept_dad": value, "router_solicitation_delay": "0",
		"router_solicitations": "0", "keep_addr_on_down": "1"}
	if value == "1" {
		settings["router_solicitations"] = "-1" // until a router answers (ip-sysctl)
	}
	return onLink(args[0], func(link netlink.Link) error {
		for key, value := range settings {
			path := filepath.Join("/proc/sys/net/ipv6/conf", args[0], key)
			if err := os.WriteFile(path, []byte(value), 0); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetDown(link); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
}

func (g *guest) neigh(args []string) (answer, error) {
	if args[0] == "flush" {
		if len(args) < 2 {
			return answer{}, errors.New("flush: want DEV")
		}
		return answer{}, wire.FlushNeighbours(args[1])
	}
	known, err := wire.Neighbours(args[0])
	a := answer{reply: fmt.Sprintf("neighbours=%d", len(known))}
	for _, addr := range slices.SortedFunc(maps.Keys(known), netip.Addr.Compare) {
		a.lines = append(a.lines, fmt.Sprintf("%s mac=%s", addr, known[addr]))
	}
	return a, err
}
