package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"vmrun/configs"
	"vmrun/launcher"
)

// nicLines is everything about one NIC, as keys with values. What its owner
// should do something about comes right below its name, behind a "!".
func nicLines(s launcher.Status, n launcher.NICStatus) [][2]string {
	var lines [][2]string
	add := func(key, value string) {
		if value != "" {
			lines = append(lines, [2]string{key, value})
		}
	}
	add("nic "+n.Name, nicHead(n))
	if s.PID != 0 {
		for _, text := range urgent(s, n) {
			add("  !", text)
		}
		add("  link", linkText(s, n))
	}
	one := launcher.Status{NICs: []launcher.NICStatus{n}}
	for _, a := range one.GuestAddresses() {
		add("  address", addressText(a))
	}
	add("  multicast", multicastText(n))
	add("  trust", string(n.Trust))
	add("  pin", pinText(n))
	add("  host", hostText(n))
	if b := n.Bandwidth; b != nil {
		add("  bandwidth", bandwidthText(*b))
	}
	return lines
}

func nicHead(n launcher.NICStatus) string {
	words := []string{fmt.Sprintf("%s on %s", manner(n), n.Lower()), "MAC " + n.MAC}
	if n.MTU != 0 {
		words = append(words, fmt.Sprintf("MTU %d", n.MTU))
	}
	words = append(words, plural(n.Queues, "queue"))
	if n.Vhost {
		words = append(words, "vhost")
	}
	return strings.Join(append(words, fmt.Sprintf("ifindex %d", n.Index)), ", ")
}

// urgent is what the owner should know of a NIC, with what to type.
func urgent(s launcher.Status, n launcher.NICStatus) []string {
	var list []string
	if n.Refused != "" {
		list = append(list, n.Refused)
		if n.Trust == configs.TrustNone && n.Pin == configs.PinNone && n.Kind != configs.KindIPvtap {
			list = append(list, fmt.Sprintf("to allow it: vmrun nic %s set %s trust=mac", s.Name, n.Name))
		}
	}
	if n.Note != "" {
		list = append(list, n.Note)
	}
	for _, a := range n.Learned {
		if a.Conflict != "" {
			list = append(list, fmt.Sprintf("%s is claimed by %s too: give one of the two another address", a.IP, a.Conflict))
		}
	}
	return list
}

func linkText(s launcher.Status, n launcher.NICStatus) string {
	switch n.Link {
	case launcher.LinkDown:
		return fmt.Sprintf("down, by its owner: vmrun nic %s set %s link=up", s.Name, n.Name)
	case launcher.LinkNoCarrier:
		return fmt.Sprintf("no carrier: %s is down, or its cable is out: ip link show %[1]s", n.Lower())
	case launcher.LinkParentGone:
		return fmt.Sprintf("%s is gone; the NIC will be plugged into the next link of that name", n.Lower())
	case "":
		if s.Supervisor == 0 {
			return "unknown: nobody looks after it"
		}
		return "not known yet"
	}
	return string(n.Link)
}

func addressText(a launcher.GuestAddress) string {
	text := fmt.Sprintf("%s, by %s, seen %s", a.IP, a.Source, ago(a.Seen))
	if a.Source == launcher.SourceSpec {
		text = fmt.Sprintf("%s, by the spec, not seen so far", a.IP)
	}
	if note := addressNote(a); note != "" {
		text += ", " + note
	}
	return text
}

func multicastText(n launcher.NICStatus) string {
	switch {
	case n.Multicast == configs.MulticastOff:
		return "off: none is let in"
	case n.Multicast == configs.MulticastAll:
		return "all is let in"
	case n.Link == "": // nobody knows by now
		return "guest: what it has joined"
	case n.AllGroups:
		return "guest: all is let in, by the guest's wish or for want of knowing it"
	}
	return fmt.Sprintf("guest: %s joined", plural(len(n.Groups), "group"))
}

func pinText(n launcher.NICStatus) string {
	if n.Pin == configs.PinNone {
		return ""
	}
	text := "to its MAC"
	if n.Pin == configs.PinAll {
		text = "to its MAC and addresses"
	}
	if n.Dropped == nil {
		return text
	}
	return text + ", dropped: " + cmp.Or(n.Dropped.String(), "nothing")
}

func hostText(n launcher.NICStatus) string {
	if !n.HostAccess {
		return ""
	}
	switch {
	case n.Link == "":
		return "is to reach the guest"
	case len(n.Unrouted) == 0:
		return "reaches the guest, and the guest the host"
	}
	var words []string
	for _, addr := range slices.SortedFunc(maps.Keys(n.Unrouted), netip.Addr.Compare) {
		words = append(words, fmt.Sprintf("%s: %s", addr, n.Unrouted[addr]))
	}
	return "does not reach " + strings.Join(words, "; ")
}

func bandwidthText(b configs.Bandwidth) string {
	word := func(r configs.Rate) string {
		if r == 0 {
			return "no limit"
		}
		return r.String()
	}
	return fmt.Sprintf("%s to the guest, %s from it", word(b.Inbound), word(b.Outbound))
}
