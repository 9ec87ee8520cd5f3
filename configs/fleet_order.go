package configs

import (
	"maps"
	"slices"
	"strings"
)

// order resolves after to guests, and refuses what would wait for itself.
func (b *builder) order(members []*member) {
	names := map[string][]string{} // a guest's own, and a pattern's
	for _, m := range b.members {  // of those too whose name has a complaint
		names[m.guest.Name] = []string{m.guest.Name}
		if m.pattern != m.guest.Name {
			names[m.pattern] = append(names[m.pattern], m.guest.Name)
		}
	}
	for _, m := range members {
		m.resolveAfter(b, names)
	}
	c := circles{builder: b, members: map[string]*member{}, done: map[string]bool{}, places: map[string]int{}}
	for _, m := range members {
		c.members[m.guest.Name] = m
	}
	for _, m := range members {
		c.walk(m.guest.Name)
	}
}

// resolveAfter fills in the guests that one comes after.
func (m *member) resolveAfter(b *builder, names map[string][]string) {
	given, comes := map[string]bool{}, map[string]bool{}
	for i, name := range m.after {
		key := indexKey("after", i)
		if given[name] {
			b.addOf(m, key, "%s is in the list already: remove one", quote(name))
			continue
		}
		given[name] = true
		guests, ok := names[name]
		if !ok && !b.unnamed && !m.isKnown(key) {
			b.addOf(m, key, "%s", b.noGuest(name, names))
		}
		for _, guest := range guests {
			if !comes[guest] {
				m.guest.After = append(m.guest.After, guest)
			}
			comes[guest] = true
		}
	}
}

func (b *builder) noGuest(name string, guests map[string][]string) string {
	if b.isFull() {
		return ""
	}
	names := slices.Sorted(maps.Keys(guests))
	msg := quote(name) + " is no guest of this file: "
	if b.layers.templates[name] != nil {
		return msg + "it is a template, so name the guests that are made of it"
	}
	if meant := closestKey(name, names); meant != "" {
		return msg + "did you mean " + quote(meant) + "?"
	}
	return msg + "the guests here are " + someOf(names)
}

// circles looks for guests that come after themselves.
type circles struct {
	*builder
	members map[string]*member
	done    map[string]bool
	path    []string       // the guests of which each comes after the next
	places  map[string]int // theirs in path
}

func (c *circles) walk(name string) {
	m, ok := c.members[name]
	if !ok || c.done[name] {
		return
	}
	c.places[name] = len(c.path)
	c.path = append(c.path, name)
	for _, next := range m.guest.After {
		i, ok := c.places[next]
		switch {
		case !ok:
			c.walk(next)
		case !c.isKnown(m.src.origins.find("after")):
			c.addOf(m, "after", "%s", circle(c.path[i:]))
			for _, name := range c.path[i:] { // once is enough for all in it
				c.mark(c.members[name].src.origins.find("after"))
			}
		}
	}
	c.path = c.path[:len(c.path)-1]
	delete(c.places, name)
	c.done[name] = true
}

func circle(names []string) string {
	if len(names) == 1 {
		return names[0] + " would come after itself: write below its [[guest]] what it comes after, or after = []"
	}
	const most = 8
	if len(names) > most {
		names = append(slices.Clone(names[:most/2]), append([]string{"…"}, names[len(names)-most/2:]...)...)
	}
	return strings.Join(append(slices.Clone(names), names[0]), " after ") + " is a circle: remove one of them"
}
