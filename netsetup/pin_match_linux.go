package netsetup

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// match is a condition, or what to do when all before it held.
type match []expr.Any

func (p *pinRules) chains(names ...string) {
	for _, name := range names {
		p.conn.AddChain(&nftables.Chain{Table: p.table, Name: name})
	}
}

func (p *pinRules) add(chain string, parts ...match) {
	p.conn.AddRule(&nftables.Rule{Table: p.table, Chain: &nftables.Chain{Name: chain}, Exprs: slices.Concat(parts...)})
}

// ether matches bytes of the frame; without any it only loads, for in.
func ether(offset uint32, is ...byte) match { return field(expr.PayloadBaseLLHeader, offset, is) }

// ip matches bytes from the network header on.
func ip(offset uint32, is ...byte) match { return field(expr.PayloadBaseNetworkHeader, offset, is) }

// payload6 matches the length of what is behind the IPv6 header. Hosts cut off
// the rest of the frame.
func payload6(length uint16) match { return ip(ip6PayloadLength, u16(length)...) }

func ipAtMost(offset uint32, limit byte) match {
	m := ip(offset, limit)
	compare(m).Op = expr.CmpOpLte
	return m
}

const register = 1 // of 16 bytes, enough for every field

func field(base expr.PayloadBase, offset uint32, is []byte) match {
	load := &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: uint32(len(is))}
	return match{load, &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: is}}
}

// masked looks only at the bits of a field that are set in mask.
func masked(field match, mask ...byte) match {
	bits := &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(mask)),
		Mask: mask, Xor: make([]byte, len(mask))}
	return match{field[0], bits, field[1]}
}

// not turns a comparison round. A frame without the field still does not match.
func not(field match) match {
	compare(field).Op = expr.CmpOpNeq
	return field
}

func compare(field match) *expr.Cmp { return field[len(field)-1].(*expr.Cmp) }

func (p *pinRules) in(field match, values ...[]byte) match { return p.lookup(field, values, false) }

func (p *pinRules) notIn(field match, values ...[]byte) match { return p.lookup(field, values, true) }

// lookup matches a field against a set of values, all of one length. An empty
// set has nothing in it. The kernel lets only one rule use it.
func (p *pinRules) lookup(field match, values [][]byte, invert bool) match {
	length := 1
	elements := make([]nftables.SetElement, len(values))
	for i, v := range values {
		length, elements[i].Key = len(v), v
	}
	p.sets++
	set := &nftables.Set{Table: p.table, ID: p.sets, Name: "__set%d", Anonymous: true, Constant: true, KeyType: nftables.TypeInteger}
	set.KeyType.Bytes = uint32(length)
	if err := p.conn.AddSet(set, elements); err != nil && p.err == nil {
		p.err = err
	}
	load := *field[0].(*expr.Payload)
	load.Len = uint32(length)
	return match{&load, &expr.Lookup{SourceRegister: register, SetName: set.Name, SetID: set.ID, Invert: invert}}
}

func u16(v uint16) []byte { return []byte{byte(v >> 8), byte(v)} }

func accept() match { return match{&expr.Verdict{Kind: expr.VerdictAccept}} }

func goTo(chain string) match { return match{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }

// drop counts the frame and ends it.
func drop(counter string) match {
	return match{
		&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: counter},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}
