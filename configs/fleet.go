package configs

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// maxGuests bounds a fleet, and with it what a count can ask for.
const maxGuests = 1000

// Fleet is the guests of one file, in its order.
type Fleet struct {
	Path   string // the file, absolute; "" when they were not in one
	Guests []*Guest
}

// Guest returns the guest of that name, or nil.
func (f *Fleet) Guest(name string) *Guest {
	i := slices.IndexFunc(f.Guests, func(g *Guest) bool { return g.Name == name })
	if i < 0 {
		return nil
	}
	return f.Guests[i]
}

// LoadFleet reads and checks a file of many guests, or the spec of one, which is
// a fleet of one. Its errors are those of Load.
func LoadFleet(path string) (*Fleet, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return ParseFleet(path, data)
}

// ParseFleet is LoadFleet for what has been read, as Parse is for Load.
func ParseFleet(path string, data []byte) (*Fleet, error) {
	doc, err := newDocument(path, data)
	if err != nil {
		return nil, err
	}
	if doc.isFleet() {
		return doc.fleet()
	}
	g, err := doc.guest()
	if err != nil {
		return nil, err
	}
	return &Fleet{Path: doc.path, Guests: []*Guest{g}}, nil
}

// isFleet tells a fleet's file by its tables, none of which is in a spec of one
// guest.
func (d *document) isFleet() bool {
	for _, key := range fleetTables {
		if _, ok := d.table[key]; ok {
			return true
		}
	}
	return false
}

// fleet returns the guests of a document that is a fleet's.
func (d *document) fleet() (*Fleet, error) {
	b := &builder{report: &report{src: d.src}}
	b.layers = readLayers(b.report, d.table)
	room := true
	for i := 0; room && i < len(b.layers.guests); i++ {
		room = b.add(d, &b.layers.guests[i])
	}
	b.tell()
	if room {
		b.together()
	}
	if b.isClean() && len(b.members) == 0 {
		b.place("", "", "no guest is in it: add one with [[guest]], and its name below")
	}
	if err := b.err(); err != nil {
		return nil, err
	}
	f := &Fleet{Path: d.path}
	for _, m := range b.members {
		f.Guests = append(f.Guests, m.guest)
	}
	return f, nil
}

// builder makes the guests of a fleet. Its report is of the whole file, and that
// of each member of what is wrong with this one.
type builder struct {
	*report
	layers  *layers
	members []*member
	weight  int  // of the guests so far
	unnamed bool // there are guests of which the name is not known
}

// member is a guest of a fleet.
type member struct {
	guest   *Guest
	pattern string // the name as it is in the file: "node%02d"
	after   []string
	*report
}

// add resolves the guests that one [[guest]] stands for, or tells that there is no
// room for them.
func (b *builder) add(d *document, own *layer) bool {
	pattern, count := b.names(own)
	merged, from := b.layers.merge(own)
	if len(b.members)+max(count, 1) > maxGuests {
		b.addf(own.at, "with it the file has more than %d guests: divide them among several files", maxGuests)
		return false
	}
	if b.weight += max(count, 1) * weigh(reflect.ValueOf(*merged)); b.weight > maxWeight {
		b.addf(own.at, "with it the guests come to more than %s: is this a fleet?", Size(maxWeight))
		return false
	}
	src := d.src
	src.origins = from
	for i := 1; i <= max(count, 1); i++ {
		m := &member{pattern: pattern, report: &report{src: src, base: b.report}}
		e := expander{report: m.report, name: pattern, count: count}
		if count > 0 {
			e.index, e.name = i, indexed(pattern, i)
		}
		raw := e.guest(*merged)
		m.after = raw.After
		m.guest = resolve(m.report, d.dir, raw)
		m.guest.Path = d.path
		b.members = append(b.members, m)
	}
	return true
}

// tell takes over what the members have complained about: a key of the file once,
// however many guests it is for. Where it is wrong for some of them only, these
// are named.
func (b *builder) tell() {
	first := map[string]*Error{}
	wrong := map[string][]string{}
	for _, m := range b.members {
		for _, e := range m.errs {
			if first[e.Key] == nil {
				first[e.Key] = e
			}
			wrong[e.Key] = append(wrong[e.Key], m.guest.Name)
		}
		b.more = max(b.more, m.more)
	}
	for _, m := range b.members {
		for _, e := range m.errs {
			if first[e.Key] != e {
				continue
			}
			names := wrong[e.Key]
			named := strings.HasSuffix(e.Key, ".name") // in the message
			if !named && !b.isFull() && len(names) < b.users(e.Key) {
				e.Msg += fmt.Sprintf(" (in %s)", someOf(names))
			}
			b.addf(e.Key, "%s", e.Msg)
		}
	}
}

// users counts the guests that a key of the file is for.
func (b *builder) users(key string) int {
	n := 0
	for _, m := range b.members {
		if m.src.origins.has(key) {
			n++
		}
	}
	return n
}

// someOf lists a few of many names.
func someOf(names []string) string {
	const few = 3
	var words []string
	for _, name := range names[:min(len(names), few)] {
		if q := quote(name); q != `"`+name+`"` { // it can be of any length, and of several lines
			name = q
		}
		words = append(words, name)
	}
	if len(names) <= few {
		return list(words, "and")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(words, ", "), len(names)-few)
}
