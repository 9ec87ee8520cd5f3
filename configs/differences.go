package configs

import (
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Difference is one key that two specs of a guest have different values for.
type Difference struct {
	Key    string // as in the file: "nic[0].mtu"
	Before string // as the value is written in the file; "" when it is unset
	After  string
}

// Differences returns what changes from one spec of a guest to another, in the
// order of examples/complete.toml.
func Differences(before, after *Guest) []Difference {
	var list []Difference
	was, is := settings(before), settings(after)
	had := map[string]string{}
	for _, s := range was {
		had[s.key] = s.text
	}
	has := map[string]bool{}
	for _, s := range is {
		has[s.key] = true
		if had[s.key] != s.text {
			list = append(list, Difference{Key: s.key, Before: had[s.key], After: s.text})
		}
	}
	for _, s := range was {
		if !has[s.key] && s.text != "" {
			list = append(list, Difference{Key: s.key, Before: s.text})
		}
	}
	return list
}

// setting is a key of a guest and its value as one would write it.
type setting struct{ key, text string }

// settings returns all keys of a guest. The raw struct has their names and their
// order, and its fields have the guest's names.
func settings(g *Guest) []setting {
	var list []setting
	addSettings(&list, "", reflect.TypeFor[rawGuest](), reflect.ValueOf(g).Elem())
	return list
}

func addSettings(list *[]setting, at string, raw reflect.Type, v reflect.Value) {
	for i := range raw.NumField() {
		field := v.FieldByName(raw.Field(i).Name)
		if !field.IsValid() { // from and count, which are resolved
			continue
		}
		key := joinKey(at, raw.Field(i).Tag.Get("toml"))
		of := raw.Field(i).Type
		if of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice {
			of = of.Elem()
		}
		switch {
		case of.Kind() != reflect.Struct:
			*list = append(*list, setting{key, written(key, field)})
		case field.Kind() == reflect.Slice:
			for i := range field.Len() {
				addSettings(list, indexKey(key, i), of, field.Index(i))
			}
		default:
			addSettings(list, key, of, field)
		}
	}
}

// written returns a value as one would write it in a file.
func written(key string, v reflect.Value) string {
	switch v := v.Interface().(type) {
	case uuid.UUID:
		if v == uuid.Nil {
			return ""
		}
	case time.Duration:
		text := v.String()
		for _, zero := range []string{"m0s", "h0m"} {
			if strings.HasSuffix(text, zero) {
				text = strings.TrimSuffix(text, zero[1:])
			}
		}
		return strconv.Quote(text)
	case netip.Addr:
		return strconv.Quote(v.String())
	case bool, int, float64:
		return fmt.Sprint(v)
	}
	if v.IsZero() {
		return ""
	}
	if s, ok := v.Interface().(fmt.Stringer); ok {
		return strconv.Quote(s.String())
	}
	if v.Kind() == reflect.String {
		return strconv.Quote(v.String())
	}
	var items []string
	for i := range v.Len() {
		items = append(items, written(key, v.Index(i)))
	}
	return "[" + strings.Join(items, ", ") + "]"
}
