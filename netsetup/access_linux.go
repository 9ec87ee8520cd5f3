package netsetup

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks our routes. Linux and iproute2 (rt_protos) give the number
// no name. A route's metric is its owner.
const routeProtocol = 118

// Reach makes the host reach a guest's addresses, given with the MAC that the
// guest has them on, and the guest reach the host: exactly these, and no others
// of that owner on that parent. It returns the addresses that must not be routed,
// each with the reason. Call it again after every change to the addresses or to
// the host's links, addresses and routes: it puts right what is not as it should
// be, and otherwise writes nothing.
//
// The host's own stack is no port of the parent's macvlan, so host and guests
// cannot talk. Reach adds a port for it, the shim: a macvlan in bridge mode, with
// a route for each guest's address, from the host's address on the parent. The
// host answers a guest's ARP on it, and IPv6 neighbour solicitations by proxy.
// On the LAN the host keeps the one MAC it had: the shim passes frames from and
// to the guests alone (see gateProgram), and the host never asks there for a
// guest's MAC, which would tell all others the shim's as its own.
func Reach(ctx context.Context, owner int, parent string, addrs map[netip.Addr]net.HardwareAddr) (refused map[netip.Addr]string, err error) {
	if owner <= 0 || owner > math.MaxUint32 {
		return nil, &LinkError{Op: "host access", Link: parent, Err: fmt.Errorf("%d is no uid of a guest", owner)}
	}
	refused, todo, err := planAccess(owner, parent, addrs)
	if err != nil || len(todo) == 0 {
		return refused, err
	}
	unlock, err := lockShared(ctx)
	if err != nil {
		return refused, err
	}
	defer unlock()
	// What others did meanwhile shows only now, and what a new shim lacks only
	// when it is there. The last round finds nothing.
	for range 4 {
		if refused, todo, err = planAccess(owner, parent, addrs); err != nil || len(todo) == 0 {
			return refused, err
		}
		for _, s := range todo {
			if err := s.do(); err != nil {
				return refused, &LinkError{Op: "host access: " + s.what, Link: parent, Err: err}
			}
		}
	}
	return refused, &LinkError{Op: "host access: " + todo[0].what, Link: parent, Err: errors.New("it does not stay as it was set")}
}

// Unreach takes away all that Reach set up for owner on the parent. With its
// last user the shim goes too. It is no error if there is nothing. Without the
// parent's name, or all at once, RepairShared does the same.
func Unreach(ctx context.Context, owner int, parent string) error {
	p, err := present(netlink.LinkByName(parent))
	if err != nil || p == nil {
		return err
	}
	unlock, err := lockShared(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	shim, err := findShim(p.Attrs())
	if err != nil || shim == nil {
		return err
	}
	return dropUsers(shim, func(user int) bool { return user == owner })
}

// step is one change.
type step struct {
	what string
	do   func() error
}

// guestRoute is what leads to a guest's address.
type guestRoute struct {
	source netip.Addr
	mac    net.HardwareAddr
}

// planAccess lists what is to be changed, in order. It changes nothing.
func planAccess(owner int, parent string, addrs map[netip.Addr]net.HardwareAddr) (refused map[netip.Addr]string, todo []step, err error) {
	link, err := netlink.LinkByName(parent)
	if err != nil {
		return nil, nil, &LinkError{Op: "host access: find parent", Link: parent, Err: err}
	}
	p := link.Attrs()
	if err := fitForShim(link); err != nil {
		return nil, nil, &LinkError{Op: "host access", Link: parent, Err: err}
	}
	shim, err := findShim(p)
	if err != nil {
		return nil, nil, &LinkError{Op: "host access: find shim", Link: parent, Err: err}
	}
	a, err := lookAround(p, shim)
	if err != nil {
		return nil, nil, &LinkError{Op: "host access", Link: parent, Err: err}
	}
	want := map[netip.Addr]guestRoute{}
	refused = map[netip.Addr]string{}
	around := a.surroundings(owner)
	for addr, mac := range addrs {
		source, refusal := around.judge(addr, mac)
		if refusal != "" {
			refused[addr] = refusal
			continue
		}
		want[addr] = guestRoute{source, mac}
	}
	if shim == nil {
		return refused, []step{{"create shim", func() error { return addShim(p) }}}, nil
	}
	if !slices.Contains(users(shim), owner) {
		todo = append(todo, step{"add user", func() error { return addUser(shim, owner) }})
	}
	more, err := a.changes(owner, want)
	if err != nil {
		return refused, nil, &LinkError{Op: "host access", Link: parent, Err: err}
	}
	return refused, append(todo, more...), nil
}

// fitForShim refuses parents on which a shim would not do what it is for.
func fitForShim(parent netlink.Link) error {
	a := parent.Attrs()
	switch parent.(type) {
	case *netlink.Macvlan, *netlink.Macvtap, *netlink.IPVlan, *netlink.IPVtap:
		return fmt.Errorf("children of a %s are on the link below it: use that as the parent", parent.Type())
	}
	if a.MasterIndex == 0 {
		return nil
	}
	master, err := netlink.LinkByIndex(a.MasterIndex)
	if err == nil && master.Type() == "vrf" {
		return fmt.Errorf("it is in the VRF %s, whose routes are apart: host access is not for such parents", master.Attrs().Name)
	}
	return nil
}

// hostNetwork is what the kernel has of the host's network and of a shim.
type hostNetwork struct {
	parent     *netlink.LinkAttrs
	shim       *netlink.LinkAttrs // or nil
	users      []int
	addrs      []netlink.Addr
	routes     []netlink.Route
	neighbours []netlink.Neigh // the shim's permanent ones
	proxies    []netlink.Neigh
}

func lookAround(parent *netlink.LinkAttrs, shim netlink.Link) (a hostNetwork, err error) {
	a.parent = parent
	if a.addrs, err = dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) }); err != nil {
		return a, fmt.Errorf("list addresses: %w", err)
	}
	if a.routes, err = allRoutes(); err != nil {
		return a, err
	}
	if shim == nil {
		return a, nil
	}
	a.shim, a.users = shim.Attrs(), users(shim)
	if a.neighbours, err = permanent(a.shim.Index); err != nil {
		return a, err
	}
	if a.proxies, err = dump(func() ([]netlink.Neigh, error) { return netlink.NeighProxyList(a.shim.Index, netlink.FAMILY_V6) }); err != nil {
		return a, fmt.Errorf("list proxies: %w", err)
	}
	return a, nil
}

// allRoutes lists the routes of all tables.
func allRoutes() ([]netlink.Route, error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

func permanent(link int) ([]netlink.Neigh, error) {
	list, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	return slices.DeleteFunc(list, func(n netlink.Neigh) bool { return n.State != netlink.NUD_PERMANENT }), nil
}

// surroundings is what decides over the addresses of an owner. The routes of one
// that does not use the shim any more decide nothing.
func (a hostNetwork) surroundings(owner int) surroundings {
	s := surroundings{
		parent: a.parent.Name,
		index:  a.parent.Index,
		own:    map[netip.Addr]bool{},
		asked:  resolvers(),
		taken:  map[netip.Addr]int{},
		deaf:   deaf(),
	}
	for _, addr := range a.addrs {
		s.own[ipOf(addr.IP)] = true
	}
	for _, r := range a.routes {
		if !isOurs(r) {
			s.routes = append(s.routes, describe(r))
			continue
		}
		if r.Priority != owner && slices.Contains(a.users, r.Priority) {
			s.taken[prefixOf(r.Dst).Addr()] = r.Priority
		}
	}
	s.subnets = a.subnets()
	return s
}

func isOurs(r netlink.Route) bool { return r.Protocol == routeProtocol }

func describe(r netlink.Route) hostRoute {
	d := hostRoute{to: prefixOf(r.Dst), link: r.LinkIndex, local: r.Type == unix.RTN_LOCAL}
	hop := func(gw net.IP, via netlink.Destination) {
		if v, ok := via.(*netlink.Via); ok {
			gw = v.Addr
		}
		if ip := ipOf(gw); ip.IsValid() {
			d.gateways = append(d.gateways, ip)
		}
	}
	hop(r.Gw, r.Via)
	for _, next := range r.MultiPath {
		hop(next.Gw, next.Via)
	}
	return d
}

// subnets lists those that the parent is connected to by an address, or by a
// route where DHCPv6 gave a bare address. The best comes first: the longest, with
// a source that is neither secondary nor temporary.
func (a hostNetwork) subnets() []subnet {
	var found []subnet
	sources := a.sources()
	for _, addr := range sources {
		net := addr.IPNet
		if addr.Peer != nil {
			net = addr.Peer
		}
		found = append(found, subnet{prefixOf(net).Masked(), ipOf(addr.IP)})
	}
	for _, r := range a.routes {
		d := describe(r)
		if isOurs(r) || r.LinkIndex != a.parent.Index || r.Table != unix.RT_TABLE_MAIN || r.Type != unix.RTN_UNICAST ||
			len(d.gateways) > 0 || d.to.Bits() <= 0 {
			continue
		}
		if source, ok := sourceFor(d.to, ipOf(r.Src), sources); ok {
			found = append(found, subnet{d.to, source})
		}
	}
	found = slices.DeleteFunc(found, func(s subnet) bool { return s.prefix.IsSingleIP() })
	slices.SortStableFunc(found, func(a, b subnet) int { return cmp.Compare(b.prefix.Bits(), a.prefix.Bits()) })
	return found
}

// sourceFor picks the source for an on-link route: the route's own, or the first
// in its prefix, or the first of its family.
func sourceFor(to netip.Prefix, own netip.Addr, sources []netlink.Addr) (best netip.Addr, ok bool) {
	for _, addr := range sources {
		ip := ipOf(addr.IP)
		switch {
		case ip == own, !own.IsValid() && to.Contains(ip):
			return ip, true
		case !own.IsValid() && !ok && ip.Is4() == to.Addr().Is4():
			best, ok = ip, true
		}
	}
	return best, ok
}

// sources lists the parent's addresses that packets can come from.
func (a hostNetwork) sources() []netlink.Addr {
	var found []netlink.Addr
	for _, addr := range a.addrs {
		if addr.LinkIndex == a.parent.Index && !addr.IP.IsLinkLocalUnicast() &&
			addr.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED|unix.IFA_F_DEPRECATED) == 0 {
			found = append(found, addr)
		}
	}
	// IFA_F_SECONDARY of IPv4 is IFA_F_TEMPORARY of IPv6 (linux/if_addr.h).
	slices.SortStableFunc(found, func(a, b netlink.Addr) int {
		return cmp.Compare(a.Flags&unix.IFA_F_SECONDARY, b.Flags&unix.IFA_F_SECONDARY)
	})
	return found
}

// proxied lists the host's addresses that the shim speaks for. Link-local ones are
// not among them: the host takes those in on the parent only.
func (a hostNetwork) proxied() []netip.Addr {
	var found []netip.Addr
	for _, addr := range a.addrs {
		if ip := ipOf(addr.IP); addr.LinkIndex == a.parent.Index && ip.Is6() && !ip.IsLinkLocalUnicast() &&
			addr.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			found = append(found, ip)
		}
	}
	return found
}

// changes lists what makes the shim lead to the addresses wanted by owner.
func (a hostNetwork) changes(owner int, want map[netip.Addr]guestRoute) ([]step, error) {
	proxied := a.proxied()
	todo := a.sysctlChanges(len(proxied) > 0)
	todo = append(todo, a.routeRemovals(owner, want)...)
	neighbours, macs := a.neighbourChanges(owner, want)
	todo = append(todo, neighbours...)
	shut, err := gated(a.shim.Index, macs)
	if err != nil {
		return nil, err
	}
	if !shut {
		todo = append(todo, step{"filter", func() error { return setGate(a.shim.Index, macs) }})
	}
	todo = append(todo, a.linkChanges(len(proxied) > 0)...)
	todo = append(todo, a.proxyChanges(proxied)...)
	return append(todo, a.routeAdditions(owner, want)...), nil
}

func (a hostNetwork) sysctlChanges(ipv6 bool) []step {
	var todo []step
	for _, s := range shimSysctls(a.shim.Name, ipv6) {
		if !s.differs() {
			continue
		}
		set := func() error { return writeSysctl(s.path, s.value) }
		if strings.HasSuffix(s.path, "/forwarding") {
			set = func() error { return s.setForwarding(a.routes) }
		}
		todo = append(todo, step{s.path, set})
	}
	return todo
}

// linkChanges come after the filter, before which nothing may be heard or said.
func (a hostNetwork) linkChanges(ipv6 bool) []step {
	var todo []step
	shim := linkOf(a.shim)
	if a.shim.MTU != a.parent.MTU {
		todo = append(todo, step{"MTU", func() error { return netlink.LinkSetMTU(shim, a.parent.MTU) }})
	}
	if a.shim.Flags&net.FlagUp == 0 {
		todo = append(todo, step{"up", func() error { return netlink.LinkSetUp(shim) }})
	}
	local := shimLinkLocal(a.shim.HardwareAddr)
	if ipv6 && !slices.ContainsFunc(a.addrs, func(addr netlink.Addr) bool {
		return addr.LinkIndex == a.shim.Index && ipOf(addr.IP) == local.Addr()
	}) {
		todo = append(todo, step{"link-local address", func() error {
			return netlink.AddrReplace(shim, &netlink.Addr{IPNet: ipNet(local), Scope: unix.RT_SCOPE_LINK,
				Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE})
		}})
	}
	return todo
}

func (a hostNetwork) proxyChanges(want []netip.Addr) []step {
	var todo []step
	var have []netip.Addr
	for _, proxy := range a.proxies {
		ip := ipOf(proxy.IP)
		if have = append(have, ip); !slices.Contains(want, ip) {
			todo = append(todo, step{"remove proxy " + ip.String(), func() error { return gone(netlink.NeighDel(&proxy)) }})
		}
	}
	for _, ip := range want {
		if !slices.Contains(have, ip) {
			proxy := netlink.Neigh{LinkIndex: a.shim.Index, Family: netlink.FAMILY_V6, Flags: netlink.NTF_PROXY, IP: ip.AsSlice()}
			todo = append(todo, step{"add proxy " + ip.String(), func() error { return netlink.NeighSet(&proxy) }})
		}
	}
	return todo
}

// neighbourChanges lists what makes the shim's neighbours the owner's addresses
// and those that other routes of ours lead to, and returns the MACs of all.
func (a hostNetwork) neighbourChanges(owner int, want map[netip.Addr]guestRoute) (todo []step, macs []net.HardwareAddr) {
	others := map[netip.Addr]bool{}
	for _, r := range a.routes {
		if isOurs(r) && r.LinkIndex == a.shim.Index && r.Priority != owner {
			others[prefixOf(r.Dst).Addr()] = true
		}
	}
	have := map[netip.Addr]bool{}
	for _, n := range a.neighbours {
		ip := ipOf(n.IP)
		w, ok := want[ip]
		switch {
		case ok:
			have[ip] = bytes.Equal(n.HardwareAddr, w.mac)
		case others[ip]:
			macs = append(macs, n.HardwareAddr)
		default:
			todo = append(todo, step{"remove neighbour " + ip.String(), func() error { return gone(netlink.NeighDel(&n)) }})
		}
	}
	for ip, w := range want {
		macs = append(macs, w.mac)
		if !have[ip] {
			n := netlink.Neigh{LinkIndex: a.shim.Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: w.mac}
			todo = append(todo, step{"add neighbour " + ip.String(), func() error { return netlink.NeighSet(&n) }})
		}
	}
	slices.SortFunc(macs, func(a, b net.HardwareAddr) int { return bytes.Compare(a, b) })
	return todo, slices.CompactFunc(macs, func(a, b net.HardwareAddr) bool { return bytes.Equal(a, b) })
}

// routeRemovals lists the owner's routes that lead to what is not wanted.
func (a hostNetwork) routeRemovals(owner int, want map[netip.Addr]guestRoute) []step {
	var todo []step
	for _, r := range a.routes {
		if !isOurs(r) || r.LinkIndex != a.shim.Index || r.Priority != owner {
			continue
		}
		ip := prefixOf(r.Dst).Addr()
		if _, ok := want[ip]; !ok {
			todo = append(todo, step{"remove route " + ip.String(), func() error { return gone(netlink.RouteDel(&r)) }})
		}
	}
	return todo
}

func (a hostNetwork) routeAdditions(owner int, want map[netip.Addr]guestRoute) []step {
	have := map[netip.Addr]netip.Addr{}
	for _, r := range a.routes {
		if isOurs(r) && r.LinkIndex == a.shim.Index && r.Priority == owner {
			have[prefixOf(r.Dst).Addr()] = ipOf(r.Src)
		}
	}
	var todo []step
	for ip, w := range want {
		if have[ip] == w.source {
			continue
		}
		r := netlink.Route{LinkIndex: a.shim.Index, Dst: ipNet(netip.PrefixFrom(ip, ip.BitLen())), Src: w.source.AsSlice(),
			Protocol: routeProtocol, Priority: owner, Scope: unix.RT_SCOPE_LINK, Table: unix.RT_TABLE_MAIN}
		todo = append(todo, step{"route " + ip.String(), func() error { return netlink.RouteReplace(&r) }})
	}
	return todo
}

// dropRoutes removes the routes of owners from a shared link, and the neighbours
// and the way through the filter that only they needed.
func dropRoutes(l netlink.Link, owners func(owner int) bool) error {
	if _, ok := l.(*netlink.Macvlan); !ok {
		return nil
	}
	routes, err := allRoutes()
	if err != nil {
		return sharedErr("remove routes", l.Attrs(), err)
	}
	neighbours, err := permanent(l.Attrs().Index)
	if err != nil {
		return sharedErr("remove routes", l.Attrs(), err)
	}
	a := hostNetwork{shim: l.Attrs(), neighbours: neighbours}
	var todo []step
	for _, r := range routes {
		if !isOurs(r) || r.LinkIndex != a.shim.Index || !owners(r.Priority) {
			a.routes = append(a.routes, r)
			continue
		}
		todo = append(todo, step{"remove route " + r.Dst.String(), func() error { return gone(netlink.RouteDel(&r)) }})
	}
	more, macs := a.neighbourChanges(0, nil)
	todo = append(append(todo, more...), step{"filter", func() error { return setGate(a.shim.Index, macs) }})
	for _, s := range todo {
		if err := s.do(); err != nil {
			return sharedErr(s.what, a.shim, err)
		}
	}
	return nil
}

// gone makes the absence of what is to be removed a success.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// deaf says why the host would not answer a guest's ARP on the shim, or "": the
// stricter of a link's and the namespace's arp_ignore counts.
func deaf() string {
	const path = "ipv4/conf/all/arp_ignore"
	switch value, _ := readSysctl(path); value {
	case "1", "2", "8":
		return "net.ipv4.conf.all.arp_ignore is " + value + ", so the host does not answer a guest's ARP: set it to 0"
	}
	return ""
}

// resolverFiles name the host's resolvers, also those behind a local one.
var resolverFiles = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf"}

func resolvers() map[netip.Addr]bool {
	found := map[netip.Addr]bool{}
	for _, path := range resolverFiles {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) < 2 || fields[0] != "nameserver" {
				continue
			}
			if ip, err := netip.ParseAddr(fields[1]); err == nil {
				found[ip.WithZone("").Unmap()] = true
			}
		}
	}
	return found
}

// linkOf names a link to the netlink package.
func linkOf(a *netlink.LinkAttrs) netlink.Link { return &netlink.GenericLink{LinkAttrs: *a} }

func ipOf(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ipOf(n.IP), ones)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
