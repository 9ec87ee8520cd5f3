package netsetup

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"vmrun/configs"
)

// Problem is a rule of the host that a child would break.
type Problem struct {
	Child int    // index into the children checked
	Key   string // the spec's key that is to blame: "parent", "vlan", "kind", "mode", "mac" or "mtu"
	Msg   string // what is wrong, why, and what to do

	Force   bool // --force overrides it
	Warning bool // worth saying, no reason to stop
}

// Check holds children, all of one guest, against what the host has and against
// the children of other guests, and returns everything that the kernel would
// refuse or that would surprise. It is pure. The host was surveyed for each
// child's Parent and Lower; a VLAN device that does not exist yet is no problem.
func Check(children []Child, host Host, others []Sibling) []Problem {
	var problems []Problem
	for i, c := range children {
		add := func(key, format string, args ...any) {
			problems = append(problems, Problem{Child: i, Key: key, Msg: fmt.Sprintf(format, args...)})
		}
		nic, ok := host.Parents[c.Parent]
		if !ok {
			add("parent", "%s", missing(c.Parent, host.Names))
			continue
		}
		p, key, msg := host.lower(c, nic)
		if msg != "" {
			add(key, "%s", msg)
			continue
		}
		if !nic.Up {
			problems = append(problems, Problem{Child: i, Key: "parent", Warning: true, Msg: fmt.Sprintf(
				"%s is down, so the guest has no link yet: type: ip link set %s up", nic.Name, nic.Name)})
		}
		for _, below := range []Parent{nic, p} { // one and the same without a VLAN
			if c.MTU > below.MTU {
				add("mtu", "%d is above the %d of %s: lower it, or type: ip link set %s mtu %d", c.MTU, below.MTU, below.Name, below.Name, c.MTU)
				break
			}
		}
		siblings := siblingsOf(i, children, host, others)
		checkMode(c, p, siblings, add)
		checkMAC(c, p, siblings, add)
		if c.Mode == configs.ModePassthru {
			problems = append(problems, cutOff(i, p)...)
		}
	}
	return problems
}

// lower is the link that the child would sit on, or what is wrong with it and
// the key to blame. Of a VLAN device that is yet to be made it tells what is
// known: it takes after its NIC (net/8021q/vlan_dev.c, vlan_dev_init).
func (h Host) lower(c Child, nic Parent) (p Parent, key, msg string) {
	if c.VLAN == 0 {
		return nic, "parent", Unfit(nic, c.Kind)
	}
	if msg := unfitForVLAN(nic); msg != "" {
		return p, "vlan", msg
	}
	p, ok := h.Parents[c.Lower()]
	if !ok {
		return Parent{Name: c.Lower(), Kind: "vlan", MAC: nic.MAC, MTU: nic.MTU, Up: nic.Up, Ethernet: true}, "", ""
	}
	if p.Kind != "vlan" {
		return p, "vlan", fmt.Sprintf("%s is to be VLAN %d of %s, and there is a %s of that name: rename it, or type: ip link delete %s",
			p.Name, c.VLAN, c.Parent, p.Kind, p.Name)
	}
	return p, "vlan", Unfit(p, c.Kind)
}

// unfitForVLAN says why p cannot have a VLAN that guests are on, or "". A bridge's
// port can: its VLAN devices take their frames before the bridge does
// (net/core/dev.c, __netif_receive_skb_core).
func unfitForVLAN(p Parent) string {
	switch {
	case p.Loopback || !p.Ethernet:
		return Unfit(p, configs.KindMacvtap)
	case p.Wireless:
		return p.Name + " is a Wi-Fi link, which carries no VLAN tags: use a wired NIC, or leave vlan out"
	case p.MasterKind == "bond" || p.MasterKind == "team":
		return fmt.Sprintf("%s is one of the links of %s %s, which may send by another: use parent = %q", p.Name, p.MasterKind, p.Master, p.Master)
	}
	return ""
}

func missing(name string, names []string) string {
	msg := fmt.Sprintf("this host has no link %q", name)
	if len(names) == 0 {
		return msg + ", nor any other Ethernet link"
	}
	if len(names) > 8 {
		names = append(slices.Clone(names[:8]), "…")
	}
	return msg + ": use one of " + strings.Join(names, ", ")
}

// Unfit says why no child of a kind can be put on p, or "".
func Unfit(p Parent, kind configs.Kind) string {
	switch {
	case p.Loopback:
		return fmt.Sprintf("%s is the loopback link, which cannot have %s children: use an Ethernet NIC", p.Name, kindName(kind))
	case !p.Ethernet:
		return fmt.Sprintf("%s carries no Ethernet frames (kind %s): use an Ethernet NIC", p.Name, p.Kind)
	case p.Wireless && kind != configs.KindIPvtap:
		return p.Name + ` is a Wi-Fi link: access points drop frames from a second MAC, so no guest would ever hear an answer: use kind = "ipvtap", which shares the NIC's own, or a wired NIC`
	case p.Kind == "ipvlan" && kind != configs.KindIPvtap:
		return fmt.Sprintf(`%s is an ipvlan link, which hears what is for its own addresses alone: use kind = "ipvtap", or parent = %q`, p.Name, p.Lower)
	case p.Master != "" && p.MasterKind != "vrf": // a VRF leaves the receive handler of its links free
		return fmt.Sprintf("%s is owned by the %s %s, and a link has one such owner only: use parent = %q, or type: ip link set %s nomaster",
			p.Name, p.MasterKind, p.Master, p.Master, p.Name)
	}
	return ""
}

func kindName(kind configs.Kind) configs.Kind {
	if kind == "" {
		return configs.KindMacvtap
	}
	return kind
}

// siblingsOf is everybody else who sits where the child does, or would.
func siblingsOf(self int, children []Child, host Host, others []Sibling) []Sibling {
	c := children[self]
	device := host.device(c.Lower(), c.Kind)
	var siblings []Sibling
	for _, s := range host.Parents[c.Lower()].Children {
		if s.Parent == device {
			siblings = append(siblings, s)
		}
	}
	for _, o := range others {
		if host.device(o.Parent, o.Kind) == device {
			siblings = append(siblings, o)
		}
	}
	for _, other := range children[:self] {
		if host.device(other.Lower(), other.Kind) == device {
			siblings = append(siblings, Sibling{Parent: device, Name: other.Name, Guest: "this guest",
				Kind: other.Kind, Mode: other.Mode, MAC: other.MAC})
		}
	}
	return siblings
}

// device is where the children of a parent land: a macvlan passes a macvtap on
// to its own parent (drivers/net/macvlan.c, macvlan_common_newlink), and an
// ipvlan an ipvtap (drivers/net/ipvlan/ipvlan_main.c, ipvlan_link_new).
func (h Host) device(parent string, kind configs.Kind) string {
	p := h.Parents[parent]
	if p.Lower != "" && (p.Kind == "ipvlan") == (kind == configs.KindIPvtap) {
		return p.Lower
	}
	return parent
}

func checkMode(c Child, p Parent, siblings []Sibling, add func(key, format string, args ...any)) {
	for _, s := range siblings {
		switch {
		case c.Mode == configs.ModePassthru:
			add("mode", "passthru takes %s for one child alone, and %s is on it already (%s): end that first, or use mode = \"bridge\"", p.Name, s, s.manner())
			return
		case s.Mode == configs.ModePassthru:
			add("parent", "%s belongs to %s alone (mode passthru): end that first, or use another NIC", p.Name, s)
			return
		case c.ipvtap() != s.ipvtap():
			add("kind", "%s is on %s already (%s), and a link has macvtap or ipvtap children, not both: use kind = %q, or another NIC",
				s, p.Name, s.manner(), kindName(s.Kind))
			return
		case c.ipvtap() && s.Mode != "" && s.Mode != modeL2:
			add("kind", "%s is on %s in ipvlan's mode %s, which all of its children share, and a guest's needs l2: end that first, or use another NIC",
				s, p.Name, s.Mode)
			return
		}
	}
}

func checkMAC(c Child, p Parent, siblings []Sibling, add func(key, format string, args ...any)) {
	if c.ipvtap() {
		return // has the parent's
	}
	if c.Mode != configs.ModePassthru && bytes.Equal(c.MAC, p.MAC) {
		add("mac", "%s is the MAC of %s itself: leave mac out to have one derived", c.MAC, p.Name)
		return
	}
	for _, s := range siblings {
		if !s.ipvtap() && bytes.Equal(c.MAC, s.MAC) {
			add("mac", "%s is in use on %s by %s: leave mac out to have one derived, or give another", c.MAC, p.Name, s)
			return
		}
	}
}

// cutOff warns of a passthru child that takes the NIC the host itself lives on.
func cutOff(child int, p Parent) []Problem {
	var what []string
	if p.Default {
		what = append(what, "the host's default route")
	}
	if len(p.Addresses) > 0 {
		what = append(what, "the host's address "+strings.Join(p.Addresses, ", "))
	}
	if len(what) == 0 {
		return nil
	}
	return []Problem{{Child: child, Key: "mode", Force: true, Msg: fmt.Sprintf(
		"passthru gives %s to the guest, and %s is on it: the host would be cut off: use mode = \"bridge\", another NIC, or --force",
		p.Name, strings.Join(what, " and "))}}
}

// ipvtap reports whether the sibling counts as one.
func (s Sibling) ipvtap() bool { return s.Kind == configs.KindIPvtap }

// manner says how the sibling sits on its parent.
func (s Sibling) manner() string {
	if s.ipvtap() {
		return "kind ipvtap"
	}
	return fmt.Sprintf("mode %s", s.Mode)
}

// String names a sibling for a person.
func (s Sibling) String() string {
	switch {
	case s.Guest == "this guest":
		return s.Name + " of this guest"
	case s.Guest != "":
		return "guest " + s.Guest
	}
	return "link " + s.Name
}
