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
	Key   string // the spec's key that is to blame: "parent", "mode", "mac" or "mtu"
	Msg   string // what is wrong, why, and what to do

	Force   bool // --force overrides it
	Warning bool // worth saying, no reason to stop
}

// Check holds children, all of one guest, against what the host has and against
// the children of other guests, and returns everything that the kernel would
// refuse or that would surprise. It is pure.
func Check(children []Child, host Host, others []Sibling) []Problem {
	var problems []Problem
	for i, c := range children {
		add := func(key, format string, args ...any) {
			problems = append(problems, Problem{Child: i, Key: key, Msg: fmt.Sprintf(format, args...)})
		}
		p, ok := host.Parents[c.Parent]
		if !ok {
			add("parent", "%s", missing(c.Parent, host.Names))
			continue
		}
		if msg := Unfit(p); msg != "" {
			add("parent", "%s", msg)
			continue
		}
		if !p.Up {
			problems = append(problems, Problem{Child: i, Key: "parent", Warning: true, Msg: fmt.Sprintf(
				"%s is down, so the guest has no link yet: type: ip link set %s up", p.Name, p.Name)})
		}
		if c.MTU > p.MTU {
			add("mtu", "%d is above the %d of %s: lower it, or type: ip link set %s mtu %d", c.MTU, p.MTU, p.Name, p.Name, c.MTU)
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

// Unfit says why nothing at all can be put on p, or "".
func Unfit(p Parent) string {
	switch {
	case p.Loopback:
		return p.Name + " is the loopback link, which cannot have macvtap children: use an Ethernet NIC"
	case !p.Ethernet:
		return fmt.Sprintf("%s carries no Ethernet frames (kind %s): use an Ethernet NIC", p.Name, p.Kind)
	case p.Wireless:
		return p.Name + " is a Wi-Fi link: access points drop frames from a second MAC, so no guest would ever hear an answer: use a wired NIC"
	case p.Master != "" && p.MasterKind != "vrf": // a VRF leaves the receive handler of its links free
		return fmt.Sprintf("%s is owned by the %s %s, and a link has one such owner only: use parent = %q, or type: ip link set %s nomaster",
			p.Name, p.MasterKind, p.Master, p.Master, p.Name)
	}
	return ""
}

// siblingsOf is everybody else who sits where the child does, or would.
func siblingsOf(self int, children []Child, host Host, others []Sibling) []Sibling {
	p := host.Parents[children[self].Parent]
	device := host.device(p.Name)
	siblings := slices.Clone(p.Children)
	for _, o := range others {
		if host.device(o.Parent) == device {
			siblings = append(siblings, o)
		}
	}
	for _, other := range children[:self] {
		if host.device(other.Parent) == device {
			siblings = append(siblings, Sibling{Parent: p.Name, Name: other.Name, Guest: "this guest", Mode: other.Mode, MAC: other.MAC})
		}
	}
	return siblings
}

// device is where the children of a parent land: a macvlan passes them on to
// its own parent (drivers/net/macvlan.c, macvlan_common_newlink).
func (h Host) device(parent string) string {
	if lower := h.Parents[parent].Lower; lower != "" {
		return lower
	}
	return parent
}

func checkMode(c Child, p Parent, siblings []Sibling, add func(key, format string, args ...any)) {
	for _, s := range siblings {
		switch {
		case c.Mode == configs.ModePassthru:
			add("mode", "passthru takes %s for one child alone, and %s is on it already (mode %s): end that first, or use mode = \"bridge\"", p.Name, s, s.Mode)
			return
		case s.Mode == configs.ModePassthru:
			add("parent", "%s belongs to %s alone (mode passthru): end that first, or use another NIC", p.Name, s)
			return
		}
	}
}

func checkMAC(c Child, p Parent, siblings []Sibling, add func(key, format string, args ...any)) {
	if c.Mode != configs.ModePassthru && bytes.Equal(c.MAC, p.MAC) {
		add("mac", "%s is the MAC of %s itself: leave mac out to have one derived", c.MAC, p.Name)
		return
	}
	for _, s := range siblings {
		if bytes.Equal(c.MAC, s.MAC) {
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
