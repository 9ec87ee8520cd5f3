package configs

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Difference is one key that two specs of a guest have different values for.
type Difference struct {
	Key    string // as in a spec of one guest: "nic[0].mtu"
	Before string // as one would write the value there; "" when it is unset
	After  string
}

// OnlyAtStart tells that the key has no meaning for a guest that runs, so that
// there is nothing to do about it before the next start.
func (d Difference) OnlyAtStart() bool {
	return d.Key == "after" || d.Key == "autostart" || strings.HasPrefix(d.Key, "ready.")
}

// Differences returns what changes from one spec of a guest to another, in the
// order of examples/complete.toml. Of a disk or NIC that is in one of them only,
// it has what is not the default. The file's path is no difference.
func Differences(before, after *Guest) []Difference {
	var c comparison
	c.tables("", reflect.TypeFor[rawGuest](), plain(before), plain(after))
	return c.found
}

// plain returns a guest without what a spec cannot say of it.
func plain(g *Guest) reflect.Value {
	copied := *g
	copied.NICs = slices.Clone(g.NICs)
	for i := range copied.NICs {
		if n := &copied.NICs[i]; n.Kind == KindIPvtap {
			n.MAC, n.Multicast = nil, ""
		}
	}
	return reflect.ValueOf(copied)
}

// comparison walks over two guests along the raw structs, which have the names
// and the order of the keys.
type comparison struct {
	found []Difference
}

func (c *comparison) tables(at string, raw reflect.Type, before, after reflect.Value) {
	for i := range raw.NumField() {
		was, is := before.FieldByName(raw.Field(i).Name), after.FieldByName(raw.Field(i).Name)
		if !was.IsValid() { // from and count: what comes of them is compared
			continue
		}
		key, of := joinKey(at, raw.Field(i).Tag.Get("toml")), raw.Field(i).Type
		switch {
		case isTable(of):
			c.tables(key, of.Elem(), was, is)
		case of.Kind() == reflect.Slice && of.Elem().Kind() == reflect.Struct:
			c.arrays(key, of.Elem(), was, is)
		default:
			c.values(key, written(key, was, before), written(key, is, after))
		}
	}
}

// arrays compares disks or NICs by their places.
func (c *comparison) arrays(key string, raw reflect.Type, before, after reflect.Value) {
	for i := range max(before.Len(), after.Len()) {
		at := indexKey(key, i)
		switch {
		case i >= before.Len():
			added := comparison{}
			added.tables(at, raw, unset(after.Index(i)), after.Index(i))
			for _, d := range added.found {
				c.values(d.Key, "", d.After)
			}
		case i >= after.Len():
			removed := comparison{}
			removed.tables(at, raw, before.Index(i), unset(before.Index(i)))
			for _, d := range removed.found {
				c.values(d.Key, d.Before, "")
			}
		default:
			c.tables(at, raw, before.Index(i), after.Index(i))
		}
	}
}

// unset returns a disk, NIC or share with the defaults that v would have.
func unset(v reflect.Value) reflect.Value {
	c := &resolver{report: &report{}}
	switch v := v.Interface().(type) {
	case NIC:
		return reflect.ValueOf(c.nic("", &rawNIC{}, v.Queues))
	case Credential:
		return reflect.ValueOf(Credential{})
	}
	if _, ok := v.Interface().(Share); ok {
		return reflect.ValueOf(Share{})
	}
	return reflect.ValueOf(c.disk("", &rawDisk{}))
}

func (c *comparison) values(key, before, after string) {
	if before != after {
		c.found = append(c.found, Difference{Key: key, Before: before, After: after})
	}
}

// written returns a key's value as one would write it, in being the struct that
// it is in.
func written(key string, v, in reflect.Value) string {
	name := key[strings.LastIndexByte(key, '.')+1:]
	switch v := v.Interface().(type) {
	case []netip.Addr:
		if nic, ok := in.Interface().(NIC); ok && name == "addresses" {
			return quoted(reflect.ValueOf(nic.addressWords()))
		}
	case bool:
		return strconv.FormatBool(v)
	case float64:
		if v == 0 {
			return ""
		}
		return strconv.FormatFloat(v, 'g', -1, 64)
	case int:
		if v < 0 || v == 0 && name != "boot_index" && name != "limit" {
			return ""
		}
		return strconv.Itoa(v)
	case time.Duration:
		return strconv.Quote(spanWord(v))
	case Pin:
		if v != PinMAC {
			return strconv.FormatBool(v == PinAll)
		}
	case ReadyWhen:
		if v == ReadyConsole {
			return strconv.Quote(string(v) + ":" + in.Interface().(Ready).Console)
		}
	case uuid.UUID:
		if v == uuid.Nil {
			return ""
		}
	case Size:
		if v == 0 && key == "console.log_size" {
			return `"0"`
		}
		if limits, ok := in.Interface().(Limits); ok && limits.MemoryAuto && name == "memory" {
			return `"auto"`
		}
	}
	return quoted(v)
}

// quoted returns a text or a list of texts, or "" for none.
func quoted(v reflect.Value) string {
	text, isText := v.Interface().(fmt.Stringer)
	switch {
	case v.IsZero(), v.Kind() == reflect.Slice && v.Len() == 0: // an empty list is as good as none
		return ""
	case isText:
		return strconv.Quote(text.String())
	case v.Kind() == reflect.String:
		return strconv.Quote(v.String())
	}
	items := make([]string, v.Len())
	for i := range items {
		items[i] = quoted(v.Index(i))
	}
	return "[" + strings.Join(items, ", ") + "]"
}

// spanWord writes a duration without the units that are zero.
func spanWord(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
