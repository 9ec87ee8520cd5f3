package configs

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// maxChain is how many templates a guest can be made of, each of the next.
const maxChain = 16

// The tables of a fleet's file. Each has the keys of a guest.
const (
	keyDefaults = "defaults"
	keyTemplate = "template"
	keyGuest    = "guest"
)

var fleetTables = []string{keyDefaults, keyTemplate, keyGuest}

// fleetKeys are the keys of a guest that only a fleet's has.
var fleetKeys = []string{"from", "count", "after"}

func isFleetKey(name string) bool { return slices.Contains(fleetKeys, name) }

// rawFleet has the keys at the top of a fleet's file, for hints.
type rawFleet struct {
	Defaults *rawGuest  `toml:"defaults"`
	Template any        `toml:"template"`
	Guest    []rawGuest `toml:"guest"`
}

// layer is one table with the keys of a guest.
type layer struct {
	at  string // its path in the file: "defaults", "template.web", "guest[0]"
	raw rawGuest
}

// layers is a fleet's file as it was written.
type layers struct {
	defaults  layer
	templates map[string]*layer
	guests    []layer
}

// readLayers reads the tables of a fleet's file, and reports what can be said of
// each by itself, whether it is used or not.
func readLayers(r *report, file map[string]any) *layers {
	l := &layers{defaults: layer{at: keyDefaults}, templates: map[string]*layer{}}
	for _, name := range slices.Sorted(maps.Keys(file)) {
		switch v := file[name]; name {
		case keyDefaults:
			decodeValue(r, name, v, reflect.ValueOf(&l.defaults.raw).Elem())
		case keyTemplate:
			l.readTemplates(r, v)
		case keyGuest:
			l.readGuests(r, v)
		default:
			misplaced(r, name)
		}
	}
	l.check(r)
	return l
}

func (l *layers) readGuests(r *report, v any) {
	if _, ok := v.(map[string]any); ok {
		r.breakf(keyGuest, `want an array of tables, not a table: write [[guest]], with two pairs of brackets, and below it the guest's name, as name = "web1"`)
		return
	}
	var raw []rawGuest
	decodeValue(r, keyGuest, v, reflect.ValueOf(&raw).Elem())
	for i := range raw {
		l.guests = append(l.guests, layer{at: indexKey(keyGuest, i), raw: raw[i]})
	}
}

func (l *layers) readTemplates(r *report, v any) {
	table, ok := v.(map[string]any)
	if !ok {
		r.breakf(keyTemplate, "want a table for each template, not %s: write [template.NAME], as [template.web]", describe(v))
		return
	}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		t := &layer{at: joinKey(keyTemplate, name)}
		if strings.Trim(name, bareKeyChars) != "" || name == "" || len(name) > maxQuoted {
			r.place(t.at, "", quote(name)+` is not a template's name: use letters, digits, "_" and "-", as [template.web]`)
			continue
		}
		decodeValue(r, t.at, table[name], reflect.ValueOf(&t.raw).Elem())
		l.templates[name] = t
	}
}

// misplaced complains about a key at the top of a fleet's file.
func misplaced(r *report, name string) {
	const why = "a file of many guests has it in a guest's table: "
	of := fieldType(reflect.TypeFor[rawGuest](), name)
	switch {
	case of == nil:
		r.unknownKey("", name, reflect.TypeFor[rawFleet]())
	case isTable(of) || of == reflect.TypeFor[[]rawDisk]() || of == reflect.TypeFor[[]rawNIC]():
		r.addf(name, why+"write %s below the guest's [[guest]], or %s for all guests", brackets(of, "guest."+name), brackets(of, "defaults."+name))
	case isFleetKey(name):
		r.addf(name, why+"move it below [[guest]]")
	default:
		r.addf(name, why+"move it below [[guest]], or below [defaults] for all guests")
	}
}

// check reports the keys that a table cannot have, templates that are not there
// or are made of themselves, and placeholders that are none.
func (l *layers) check(r *report) {
	refuse(r, &l.defaults, "from", "[defaults] is beneath every template: remove it, or write from below [[guest]]")
	all := []*layer{&l.defaults}
	for _, name := range slices.Sorted(maps.Keys(l.templates)) {
		all = append(all, l.templates[name])
	}
	for _, t := range all {
		refuse(r, t, "name", "each guest has a name of its own: write it below [[guest]]")
		refuse(r, t, "count", "this is not a guest yet: write count below [[guest]]")
	}
	for i := range l.guests {
		all = append(all, &l.guests[i])
	}
	for _, t := range all {
		l.checkFrom(r, t)
		checkPlaceholders(r, t)
	}
}

// refuse complains about a key that a layer has but must not, and unsets it.
func refuse(r *report, t *layer, name, why string) {
	v := reflect.ValueOf(&t.raw).Elem()
	field := v.Field(fieldsOf(v.Type())[name])
	if field.IsZero() {
		return
	}
	field.SetZero()
	r.addf(joinKey(t.at, name), "%s", why)
}

// checkFrom checks the templates that a layer is made of.
func (l *layers) checkFrom(r *report, t *layer) {
	chain := []string{strings.TrimPrefix(t.at, keyTemplate+".")}
	for from := t.raw.From; from != nil; {
		key := joinKey(t.at, "from")
		next := l.templates[*from]
		switch {
		case next == nil:
			r.addf(key, "%s", l.noTemplate(r, *from))
			return
		case slices.Contains(chain, *from):
			chain = append(chain[slices.Index(chain, *from):], *from)
			r.addf(key, "%s is a circle: remove one of them", strings.Join(chain, " from "))
			for _, name := range chain { // once is enough for all in it
				r.mark(joinKey(l.templates[name].at, "from"))
			}
			return
		case len(chain) > maxChain:
			r.addf(key, "it is made of more than %d templates, each of the next: use fewer", maxChain)
			return
		}
		chain = append(chain, *from)
		t, from = next, next.raw.From
	}
}

func (l *layers) noTemplate(r *report, name string) string {
	if r.isFull() {
		return ""
	}
	names := slices.Sorted(maps.Keys(l.templates))
	msg := quote(name) + " is no template of this file: "
	switch meant := closestKey(name, names); {
	case meant != "":
		return msg + "did you mean " + quote(meant) + "?"
	case len(names) < 2:
		return msg + "open it with [template.NAME]"
	default:
		return msg + "the templates here are " + someOf(names)
	}
}

// merge puts a guest together from its layers, the nearest last, and tells where
// in the file each of its keys is.
func (l *layers) merge(guest *layer) (*rawGuest, origins) {
	chain := []*layer{guest}
	for t := guest; t.raw.From != nil && len(chain) <= maxChain+1; {
		if t = l.templates[*t.raw.From]; t == nil {
			break
		}
		chain = append(chain, t)
	}
	chain = append(chain, &l.defaults)
	merged := &rawGuest{}
	from := origins{table: guest.at, keys: map[string]string{}}
	for _, t := range slices.Backward(chain) {
		overlay(reflect.ValueOf(merged).Elem(), reflect.ValueOf(&t.raw).Elem(), "", t.at, from.keys)
	}
	return merged, from
}

// overlay sets what a nearer layer has over what is there: a table key by key,
// and everything else, lists too, as a whole. The layers stay as they are.
func overlay(dst, layer reflect.Value, key, at string, from map[string]string) {
	for i := range layer.NumField() {
		field := layer.Field(i)
		if field.IsZero() {
			continue
		}
		name := layer.Type().Field(i).Tag.Get("toml")
		key, at := joinKey(key, name), joinKey(at, name)
		from[key] = at
		if !isTable(field.Type()) {
			dst.Field(i).Set(field)
			continue
		}
		table := reflect.New(field.Type().Elem())
		if !dst.Field(i).IsNil() {
			table.Elem().Set(dst.Field(i).Elem())
		}
		overlay(table.Elem(), field.Elem(), key, at, from)
		dst.Field(i).Set(table)
	}
}

func isTable(t reflect.Type) bool {
	return t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct
}

// origins tells where in the file the keys of a fleet's guest are. The zero value
// is a single guest's, whose keys are each in its own place.
type origins struct {
	table string            // the guest's own: "guest[2]"
	keys  map[string]string // "nic": "template.web.nic"
}

// find returns the path in the file of a guest's key.
func (o origins) find(key string) string {
	if o.table == "" {
		return key
	}
	for k := key; k != ""; k = around(k) {
		if at, ok := o.keys[k]; ok {
			return at + key[len(k):]
		}
	}
	return strings.TrimSuffix(o.table+"."+key, ".")
}

// has tells whether a key of the file is the guest's, or where it would be.
func (o origins) has(at string) bool {
	for ; at != ""; at = around(at) {
		if at == o.table {
			return true
		}
		for _, own := range o.keys {
			if own == at {
				return true
			}
		}
	}
	return false
}
