package configs

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Fleet is the guests of one file, in its order.
type Fleet struct {
	Path   string // the file, absolute; "" when they were not in one
	Guests []*Guest
}

// Guest returns the guest of that name, or nil.
func (f *Fleet) Guest(name string) *Guest {
	for _, g := range f.Guests {
		if g.Name == name {
			return g
		}
	}
	return nil
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

// The tables of a fleet's file.
const (
	keyDefaults = "defaults"
	keyTemplate = "template"
	keyGuest    = "guest"
)

// isFleet tells a fleet's file by its tables, none of which is a spec's.
func (d *document) isFleet() bool {
	for _, key := range []string{keyDefaults, keyTemplate, keyGuest} {
		if _, ok := d.table[key]; ok {
			return true
		}
	}
	return false
}

// layer is one table of a fleet's file that has a guest's keys.
type layer struct {
	at  string // its path in the file: "defaults", "template.web", "guest[0]"
	raw rawGuest
}

// fleet returns the guests of a document that is a fleet's.
func (d *document) fleet() (*Fleet, error) {
	r := &report{src: d.src}
	f := &Fleet{Path: d.path}
	l := readLayers(r, d.table)
	for i := range l.guests {
		merged, from := l.merge(&l.guests[i])
		own := &report{src: d.src, base: r}
		own.src.origins = from
		g := resolve(own, d.dir, merged)
		g.Path = d.path
		f.Guests = append(f.Guests, g)
		r.errs = append(r.errs, own.errs...)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return f, nil
}

// layers is a fleet's file, before its guests are put together.
type layers struct {
	defaults layer
	guests   []layer
}

func readLayers(r *report, table map[string]any) *layers {
	l := &layers{defaults: layer{at: keyDefaults}}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		switch v := table[name]; name {
		case keyDefaults:
			decodeValue(r, name, v, reflect.ValueOf(&l.defaults.raw).Elem())
		case keyGuest:
			var raw []rawGuest
			decodeValue(r, name, v, reflect.ValueOf(&raw).Elem())
			for i := range raw {
				l.guests = append(l.guests, layer{at: indexKey(name, i), raw: raw[i]})
			}
		default:
			r.addf(name, "unknown key")
		}
	}
	return l
}

// merge puts a guest together from its layers, and tells where each key is from.
func (l *layers) merge(guest *layer) (*rawGuest, origins) {
	merged := &rawGuest{}
	from := origins{table: guest.at, keys: map[string]string{}}
	for _, layer := range []*layer{&l.defaults, guest} {
		overlay(reflect.ValueOf(merged).Elem(), reflect.ValueOf(&layer.raw).Elem(), "", layer.at, from.keys)
	}
	return merged, from
}

// overlay sets what a nearer layer has over what is there: tables key by key,
// and a list as a whole. The layers themselves are left as they are.
func overlay(dst, layer reflect.Value, key, at string, from map[string]string) {
	for i := range layer.NumField() {
		field := layer.Field(i)
		if field.IsZero() {
			continue
		}
		name := layer.Type().Field(i).Tag.Get("toml")
		key, at := joinKey(key, name), joinKey(at, name)
		from[key] = at
		if field.Kind() != reflect.Pointer || field.Type().Elem().Kind() != reflect.Struct {
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

// origins tells where the keys of a guest stand that was put together from the
// tables of a fleet's file. The zero value is for a file of one guest, where
// each stands in its place.
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

// isFleetKey tells the keys of a guest that only a fleet's has.
func isFleetKey(name string) bool { return name == "from" || name == "count" || name == "after" }

// refuseFleetKeys complains about keys that have no meaning in a table.
func refuseFleetKeys(r *report, at string, raw *rawGuest, why string) {
	for _, k := range []struct {
		name string
		set  bool
	}{{"from", raw.From != nil}, {"count", raw.Count != nil}, {"after", raw.After != nil}} {
		if k.set {
			r.addf(joinKey(at, k.name), "%s", why)
		}
	}
}
