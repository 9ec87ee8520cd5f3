package configs

import (
	"slices"

	"github.com/google/uuid"
)

// together checks the rules between the guests of a fleet, of as many as can be
// told apart.
func (b *builder) together() {
	var members []*member
	for _, m := range b.members {
		if !m.isKnown("name") {
			members = append(members, m)
		}
	}
	members = b.ownNames(members)
	b.ownUUIDs(members)
	b.ownDisks(members)
	b.ownNICs(members)
	b.order(members)
}

// addOf complains about a key of one guest.
func (b *builder) addOf(m *member, key, format string, args ...any) {
	b.addf(m.src.origins.find(key), format, args...)
}

// ownNames returns the guests without those whose name another one has.
func (b *builder) ownNames(members []*member) []*member {
	owners := map[string]*member{}
	return slices.DeleteFunc(members, func(m *member) bool {
		first := claim(owners, m.guest.Name, m)
		if first != m {
			b.addOf(m, "name", "%s is %s's already: give each guest its own", quote(m.guest.Name), first.src.origins.table)
		}
		return first != m
	})
}

func (b *builder) ownUUIDs(members []*member) {
	owners := map[string]string{}
	for _, m := range members {
		if m.guest.UUID == uuid.Nil {
			continue
		}
		if first := claim(owners, m.guest.UUID.String(), m.guest.Name); first != m.guest.Name {
			b.addOf(m, "uuid", "it is %s's already: give each guest its own, or leave it out to have one derived", first)
		}
	}
}

// diskUse is a guest that uses an image: the first, or the first that writes it.
type diskUse struct {
	guest  string
	writes bool
}

// ownDisks checks that no guest writes what another one uses.
func (b *builder) ownDisks(members []*member) {
	uses := map[string]diskUse{}
	for _, m := range members {
		for i, d := range m.guest.Disks {
			key := indexKey("disk", i)
			b.useDisk(uses, m, key+".path", d.Path, !d.Readonly)
			b.useDisk(uses, m, key+".base", d.Base, false)
		}
	}
}

func (b *builder) useDisk(uses map[string]diskUse, m *member, key, path string, writes bool) {
	if path == "" || m.isKnown(key) {
		return
	}
	name := m.guest.Name
	first, ok := uses[path]
	switch {
	case !ok:
		uses[path] = diskUse{name, writes}
	case first.guest == name: // diskPair has compared them
	case first.writes && writes:
		b.addOf(m, key, `%s and %s would both write it: give each guest a disk of its own, as "${name}.qcow2"`, first.guest, name)
	case writes:
		b.addOf(m, key, "%s would write it while %s reads it: add readonly = true, or use another image", name, first.guest)
	case first.writes:
		b.addOf(m, key, "%s would read it while %s writes it: make it readonly there, or use another image", name, first.guest)
	}
}

// nicOwners tells which guest was the first with what only one can have.
type nicOwners struct {
	macs      map[string]string
	addresses map[string]string // "192.0.2.10 eth0"
	parents   map[string]nicOwner
}

type nicOwner struct {
	guest string
	nic   *NIC
}

// ownNICs checks what NICs of different guests cannot share, as nicPair does for
// those of one guest.
func (b *builder) ownNICs(members []*member) {
	owners := nicOwners{map[string]string{}, map[string]string{}, map[string]nicOwner{}}
	for _, m := range members {
		for i := range m.guest.NICs {
			b.ownNIC(owners, m, indexKey("nic", i), &m.guest.NICs[i])
		}
	}
}

func (b *builder) ownNIC(owners nicOwners, m *member, key string, n *NIC) {
	name := m.guest.Name
	if n.MAC != nil && n.Kind != KindIPvtap {
		if first := claim(owners.macs, n.MAC.String(), name); first != name {
			b.addOf(m, key+".mac", "%s is %s's already: give each guest its own, or leave it out to have one derived", n.MAC, first)
		}
	}
	if n.Parent == "" {
		return
	}
	for i, addr := range n.Addresses {
		if first := claim(owners.addresses, addr.String()+" "+n.Lower(), name); first != name {
			b.addOf(m, indexKey(key+".addresses", i), `%s is %s's already, and would be %s's: give each guest its own, with count by a range as "192.0.2.11-192.0.2.40"`, addr, first, name)
		}
	}
	first := claim(owners.parents, n.Lower(), nicOwner{name, n})
	if first.guest == name {
		return
	}
	if n.Mode == ModePassthru || first.nic.Mode == ModePassthru {
		b.addOf(m, key+".parent", `%s is %s's already, and mode "passthru" shares it with nobody: use another parent, or another mode for both`, quote(n.Parent), first.guest)
	}
	if n.Kind != first.nic.Kind && n.Kind != "" && first.nic.Kind != "" {
		b.addOf(m, key+".kind", "%s has one of kind %q there, and a parent has macvtaps or ipvtaps but not both: use another parent, or one kind", first.guest, first.nic.Kind)
	}
}

// claim returns whose something is, which is the one who asks when it is nobody's.
func claim[T any](owners map[string]T, what string, who T) T {
	if first, ok := owners[what]; ok {
		return first
	}
	owners[what] = who
	return who
}
