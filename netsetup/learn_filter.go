package netsetup

import (
	"slices"

	"golang.org/x/net/bpf"
)

// snapLength is how much of a frame is read: all of the longest DHCP message.
const snapLength = 2048

// learnFilter is what the kernel does with each frame of a busy guest: it lets
// through what a table can learn from, and of that what has no VLAN tag. A tag
// that came in is beside the frame by then (net/core/dev.c, skb_vlan_untag), one
// that goes out still inside; of the former, one with a mere priority is fine.
func learnFilter() ([]bpf.RawInstruction, error) {
	pass, drop := bpf.RetConstant{Val: snapLength}, bpf.RetConstant{Val: 0}
	need := func(v uint32) []bpf.Instruction {
		return []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: 1}, drop}
	}
	needNone := func(bits uint32) []bpf.Instruction {
		return []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: bits, SkipFalse: 1}, drop}
	}
	passIf := func(v uint32) []bpf.Instruction {
		return []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: v, SkipTrue: 1}, pass}
	}
	// when runs block, which ends, for the value v.
	when := func(v uint32, block []bpf.Instruction) []bpf.Instruction {
		jump := bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: v, SkipTrue: uint8(len(block))}
		return append([]bpf.Instruction{jump}, block...)
	}
	load := func(offset uint32, size int) []bpf.Instruction {
		return []bpf.Instruction{bpf.LoadAbsolute{Off: offset, Size: size}}
	}
	end := []bpf.Instruction{drop}

	tag := append([]bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtVLANTag}}, needNone(0x0fff)...)
	ipv4 := slices.Concat(
		load(ethernetLength+9, 1), need(protoUDP),
		load(ethernetLength+6, 2), needNone(0x1fff), // a later fragment
		[]bpf.Instruction{bpf.LoadMemShift{Off: ethernetLength}, bpf.LoadIndirect{Off: ethernetLength, Size: 2}},
		passIf(dhcp4Server),
		[]bpf.Instruction{bpf.LoadIndirect{Off: ethernetLength + 2, Size: 2}},
		passIf(dhcp4Server), end)
	const body = ethernetLength + ipv6Length
	ipv6 := slices.Concat(
		load(ethernetLength+6, 1),
		when(protoUDP, slices.Concat(load(body+2, 2), passIf(dhcp6Client), passIf(dhcp6Server), end)),
		need(protoICMP), load(body, 1),
		passIf(routerSolicitation), passIf(routerAdvertisement),
		passIf(neighbourSolicitation), passIf(neighbourAdvertisement), end)
	return bpf.Assemble(slices.Concat(
		[]bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: uint8(len(tag))},
		},
		tag,
		load(12, 2), when(typeIPv4, ipv4), when(typeIPv6, ipv6), passIf(typeARP), end))
}
