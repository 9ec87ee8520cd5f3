package netsetup

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// Parent is a NIC of the host as Survey saw it.
type Parent struct {
	Name       string
	Index      int
	Kind       string // IFLA_INFO_KIND: "veth", "bridge", "macvlan", …; "device" for a physical NIC
	MAC        net.HardwareAddr
	MTU        int // bytes
	Up         bool
	Carrier    bool
	Loopback   bool
	Ethernet   bool // carries Ethernet frames (ARPHRD_ETHER)
	Wireless   bool
	Master     string // the bridge or bond that owns it, or ""
	MasterKind string
	Lower      string    // for a macvlan or ipvlan parent: the device that children of its kind land on
	Addresses  []string  // the host's own, in CIDR form, link-local ones left out
	Default    bool      // a default route of the host leads through it
	Promisc    int       // how many users want promiscuous mode
	Children   []Sibling // the visible ones, and those of Lower where it is set; by name
}

// Sibling is a child of a parent, other than the one asked about.
type Sibling struct {
	Parent string
	Name   string       // the link's, or "" where only the guest is known
	Guest  string       // the guest that owns it, or ""
	Kind   configs.Kind // a macvlan counts as a macvtap, an ipvlan as an ipvtap; and "" as a macvtap
	Mode   configs.Mode // or ipvlan's own: l2, l3, l3s
	MAC    net.HardwareAddr
}

// Host is what Survey saw of the host's network.
type Host struct {
	Parents map[string]Parent // the parents asked for that exist
	Names   []string          // every link that could be a parent, for suggestions
}

// Survey looks at the host's links, addresses and routes in the caller's
// namespace. A parent that does not exist is missing from the result. Children
// that live in other namespaces cannot be seen from here.
func Survey(parents ...string) (Host, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return Host{}, fmt.Errorf("list links: %w", err)
	}
	host := Host{Parents: map[string]Parent{}}
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		a := l.Attrs()
		byIndex[a.Index] = l
		child := l.Type() == "macvtap" || l.Type() == "ipvtap" || a.Group == sharedGroup
		if a.Flags&net.FlagLoopback == 0 && a.EncapType == "ether" && !child {
			host.Names = append(host.Names, a.Name)
		}
	}
	for _, l := range links {
		if !slices.Contains(parents, l.Attrs().Name) {
			continue
		}
		p, err := inspect(l, byIndex)
		if err != nil {
			return Host{}, err
		}
		host.Parents[p.Name] = p
	}
	return host, nil
}

func inspect(l netlink.Link, byIndex map[int]netlink.Link) (Parent, error) {
	a := l.Attrs()
	p := Parent{
		Name:     a.Name,
		Index:    a.Index,
		Kind:     l.Type(),
		MAC:      a.HardwareAddr,
		MTU:      a.MTU,
		Up:       a.Flags&net.FlagUp != 0,
		Carrier:  a.RawFlags&unix.IFF_LOWER_UP != 0,
		Loopback: a.Flags&net.FlagLoopback != 0,
		Ethernet: a.EncapType == "ether",
		Wireless: exists("/sys/class/net/"+a.Name+"/phy80211") || exists("/sys/class/net/"+a.Name+"/wireless"),
		Promisc:  a.Promisc,
	}
	if master, ok := byIndex[a.MasterIndex]; ok && a.MasterIndex != 0 {
		p.Master, p.MasterKind = master.Attrs().Name, master.Type()
	}
	devices := []*netlink.LinkAttrs{a}
	if lower, ok := byIndex[a.ParentIndex]; ok && a.NetNsID < 0 && (p.Kind == "macvlan" || p.Kind == "ipvlan") {
		devices = append(devices, lower.Attrs())
		p.Lower = lower.Attrs().Name
	}
	for _, child := range byIndex {
		for _, device := range devices {
			if s, ok := siblingOf(device, child); ok {
				p.Children = append(p.Children, s)
			}
		}
	}
	slices.SortFunc(p.Children, func(a, b Sibling) int { return strings.Compare(a.Name, b.Name) })
	return p, p.inspectLayer3(l)
}

// inspectLayer3 fills in the addresses and routes that a passthru child would cut off.
func (p *Parent) inspectLayer3(l netlink.Link) error {
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("%s: list addresses: %w", p.Name, err)
	}
	for _, addr := range addrs {
		if !addr.IP.IsLinkLocalUnicast() {
			p.Addresses = append(p.Addresses, addr.IPNet.String())
		}
	}
	// Not filtered by link: that would leave out routes with several next hops.
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("%s: list routes: %w", p.Name, err)
	}
	for _, r := range routes {
		if (r.Dst == nil || isZeroPrefix(r.Dst)) && leadsThrough(r, p.Index) {
			p.Default = true
		}
	}
	return nil
}

func leadsThrough(r netlink.Route, link int) bool {
	return r.LinkIndex == link || slices.ContainsFunc(r.MultiPath, func(hop *netlink.NexthopInfo) bool { return hop.LinkIndex == link })
}

// dump repeats a list that changed while the kernel wrote it, which happens on
// a host where others make links too.
func dump[T any](list func() ([]T, error)) (result []T, err error) {
	for range 10 {
		if result, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return result, err
		}
	}
	return result, err
}

func isZeroPrefix(n *net.IPNet) bool {
	ones, _ := n.Mask.Size()
	return ones == 0 && n.IP.IsUnspecified()
}

// siblingOf reports whether child is on the parent and of a kind that takes its
// frames, in the same namespace (a link-netnsid of its own would mean another one).
func siblingOf(parent *netlink.LinkAttrs, child netlink.Link) (Sibling, bool) {
	a := child.Attrs()
	kind := kindOf(child)
	if kind == "" || a.ParentIndex != parent.Index || a.NetNsID >= 0 {
		return Sibling{}, false
	}
	return Sibling{Parent: parent.Name, Name: a.Name, Kind: kind, Mode: modeOf(child), MAC: a.HardwareAddr}, true
}

// kindOf is the kind that a link counts as, or "" for no child at all.
func kindOf(l netlink.Link) configs.Kind {
	switch l.Type() {
	case "macvlan", "macvtap":
		return configs.KindMacvtap
	case "ipvlan", "ipvtap":
		return configs.KindIPvtap
	}
	return ""
}

func modeOf(child netlink.Link) configs.Mode {
	switch c := child.(type) {
	case *netlink.Macvlan:
		return modeNames[c.Mode]
	case *netlink.Macvtap:
		return modeNames[c.Mode]
	case *netlink.IPVlan:
		return ipvlanModeNames[c.Mode]
	case *netlink.IPVtap:
		return ipvlanModeNames[c.Mode]
	}
	return ""
}

var modeNames = map[netlink.MacvlanMode]configs.Mode{
	netlink.MACVLAN_MODE_PRIVATE:  configs.ModePrivate,
	netlink.MACVLAN_MODE_VEPA:     configs.ModeVEPA,
	netlink.MACVLAN_MODE_BRIDGE:   configs.ModeBridge,
	netlink.MACVLAN_MODE_PASSTHRU: configs.ModePassthru,
	netlink.MACVLAN_MODE_SOURCE:   configs.ModeSource,
}

const modeL2 configs.Mode = "l2"

var ipvlanModeNames = map[netlink.IPVlanMode]configs.Mode{
	netlink.IPVLAN_MODE_L2:  modeL2,
	netlink.IPVLAN_MODE_L3:  "l3",
	netlink.IPVLAN_MODE_L3S: "l3s",
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
