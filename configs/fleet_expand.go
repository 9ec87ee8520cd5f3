package configs

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
)

// maxWeight bounds what the guests of a fleet come to together, in bytes: a small
// file can have a large list in [defaults], and many guests.
const maxWeight = int(32 * mib)

// A pattern of names has one place for the index, in the form of printf(3).
var placeForIndex = lazyPattern(`%(0[1-9])?d`)

// indexed returns a guest's name.
func indexed(pattern string, index int) string {
	if len(placeForIndex().FindAllString(pattern, 2)) != 1 || strings.Count(pattern, "%") != 1 {
		return pattern // complained about
	}
	return fmt.Sprintf(pattern, index)
}

// names returns the name that the table of a guest gives, or the pattern for the
// names of count guests; the count is 0 when there is none.
func (b *builder) names(own *layer) (pattern string, count int) {
	if n := own.raw.Count; n != nil {
		count = int((&resolver{report: b.report}).integer(own.at+".count", n, 1, 1, maxGuests))
	}
	key := own.at + ".name"
	if own.raw.Name == nil {
		example := "web1"
		if count > 0 {
			example = "web%02d"
		}
		b.unnamed = true
		b.addf(key, "missing: each guest of a fleet has one, as name = %q", example)
		return "", count
	}
	pattern = *own.raw.Name
	places := len(placeForIndex().FindAllString(pattern, 2))
	if places > 0 && b.isKnown(own.at+".count") {
		count = max(count, 1) // it was meant to have one
	}
	switch {
	case strings.Contains(pattern, "${"):
		b.addf(key, `%s: a name has no placeholders but %%d for the index, as "node%%02d"`, quote(pattern))
	case count == 0 && places > 0:
		b.addf(key, "%s has a place for the index, and there is no count: add count, or write a name without %%", quote(pattern))
	case count > 0 && (places != 1 || strings.Count(pattern, "%") != 1):
		b.addf(key, `%s is for %d guests: put the index into it once, as %%d or with leading zeros: "node%%02d"`, quote(pattern), count)
	}
	return pattern, count
}

// A placeholder is written ${word}, and a ${ that is none $${.
var placeholder = lazyPattern(`\$?\$\{[^{}]*\}?`)

// checkPlaceholders reports what looks like a placeholder and is none.
func checkPlaceholders(r *report, t *layer) {
	raw := t.raw
	raw.Name, raw.From = nil, nil // which have none, and checks of their own
	eachText(reflect.ValueOf(raw), t.at, func(key, text string) string {
		placeholder().ReplaceAllStringFunc(text, func(p string) string {
			if strings.HasPrefix(p, "$$") {
				return p
			}
			if _, ok := plusOf(p); !ok && p != "${name}" && p != "${address}" {
				r.addf(key, "%s is no placeholder: use ${name}, ${index}, ${index+N} or ${address}, and write $${ for a ${ that is to stay", quote(p))
			}
			return p
		})
		return text
	})
}

// plusOf reads ${index} and ${index+10}.
func plusOf(p string) (plus int, ok bool) {
	rest, ok := strings.CutPrefix(p, "${index")
	rest, closed := strings.CutSuffix(rest, "}")
	if !ok || !closed || rest == "" {
		return 0, ok && closed
	}
	digits, ok := strings.CutPrefix(rest, "+")
	n, err := strconv.ParseUint(digits, 10, 31)
	return int(n), ok && err == nil
}

// eachText returns a deep copy of a raw value in which every text has gone
// through fn.
func eachText(v reflect.Value, key string, fn func(key, text string) string) reflect.Value {
	dst := reflect.New(v.Type()).Elem()
	if v.IsZero() {
		return dst
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			name := v.Type().Field(i).Tag.Get("toml")
			dst.Field(i).Set(eachText(v.Field(i), joinKey(key, name), fn))
		}
	case reflect.Slice:
		dst.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
		for i := range v.Len() {
			dst.Index(i).Set(eachText(v.Index(i), indexKey(key, i), fn))
		}
	case reflect.Pointer:
		dst.Set(reflect.New(v.Type().Elem()))
		dst.Elem().Set(eachText(v.Elem(), key, fn))
	case reflect.Interface:
		dst.Set(v)
		if text, ok := v.Interface().(string); ok {
			dst.Set(reflect.ValueOf(fn(key, text)))
		}
	case reflect.String:
		dst.SetString(fn(key, v.String()))
	default:
		dst.Set(v)
	}
	return dst
}

// weigh returns about how much memory a raw value takes with everything in it.
func weigh(v reflect.Value) int {
	weight := int(v.Type().Size())
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			weight += weigh(v.Field(i))
		}
	case reflect.Slice:
		for i := range v.Len() {
			weight += weigh(v.Index(i))
		}
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			weight += weigh(v.Elem())
		}
	case reflect.String:
		// No placeholder becomes more than nine times as long.
		weight += v.Len() * (1 + 8*min(strings.Count(v.String(), "${"), 1))
	}
	return weight
}

// expander makes one guest of a merged table.
type expander struct {
	*report
	name    string
	index   int // from 1; 0 for a guest without count
	count   int
	address string // the first one of the first NIC; "" for none
}

// guest returns a copy of a table with everything in it that is this guest's own.
func (e *expander) guest(merged rawGuest) *rawGuest {
	merged.Name, merged.From, merged.Count = nil, nil, nil
	if len(merged.NICs) > 0 && len(merged.NICs[0].Addresses) > 0 {
		e.address, _, _ = strings.Cut(e.text("nic[0].addresses[0]", merged.NICs[0].Addresses[0]), "/")
	}
	raw := eachText(reflect.ValueOf(merged), "", e.text).Interface().(rawGuest)
	raw.Name = &e.name
	return &raw
}

// text fills in the placeholders of one text, and takes the guest's address from
// a range.
func (e *expander) text(key, text string) string {
	isAddress := strings.HasSuffix(around(key), ".addresses")
	if !isAddress && !strings.Contains(text, "${") || e.isKnown(key) {
		return text
	}
	text = placeholder().ReplaceAllStringFunc(text, func(p string) string {
		switch {
		case strings.HasPrefix(p, "$$"):
			return p[1:]
		case p == "${name}":
			return begin(e.name, maxQuoted) // a longer one is no name
		case p == "${address}":
			if e.address == "" {
				e.addf(key, "${address} is the first of the addresses of the guest's first NIC, and that has none: write addresses below the NIC")
			}
			return begin(e.address, maxQuoted)
		}
		if e.index == 0 {
			e.addf(key, "%s is the index of one guest of several, and there is no count: add count, or write the value", p)
		}
		plus, _ := plusOf(p)
		return strconv.Itoa(e.index + plus)
	})
	if isAddress {
		return e.inRange(key, text)
	}
	return text
}

// inRange returns the guest's address of a range such as
// "192.0.2.11-192.0.2.40", or the text when it is none.
func (e *expander) inRange(key, text string) string {
	bare, prefix, hasPrefix := strings.Cut(text, "/")
	before, after, _ := strings.Cut(bare, "-")
	low, err := netip.ParseAddr(before)
	if err != nil || low.Zone() != "" || before == bare {
		return text // of which the check of addresses complains, if it has to
	}
	high, err := netip.ParseAddr(after)
	size := distance(low, high)
	switch {
	case err != nil || high.Zone() != "":
		e.addf(key, `%s is not a range: write both addresses in full, as "192.0.2.11-192.0.2.40"`, quote(text))
	case low.BitLen() != high.BitLen() || high.Less(low):
		e.addf(key, "%s is not a range: write the lower address first, and both of one kind", quote(text))
	case e.index == 0:
		e.addf(key, "a range has an address for each guest of several, and there is no count: add count, or write one address")
	case size < uint64(e.count):
		e.addf(key, "the range has %d addresses for %d guests: make it longer, or count smaller", size, e.count)
	default:
		for range e.index - 1 {
			low = low.Next()
		}
		if hasPrefix {
			return low.String() + "/" + prefix
		}
		return low.String()
	}
	return text
}

// distance counts the addresses of a range, up to more than any fleet needs.
func distance(low, high netip.Addr) uint64 {
	a, b := low.As16(), high.As16()
	be := binary.BigEndian
	size, borrow := bits.Sub64(be.Uint64(b[8:]), be.Uint64(a[8:]), 0)
	upper, _ := bits.Sub64(be.Uint64(b[:8]), be.Uint64(a[:8]), borrow)
	if upper > 0 || size > 1<<32 {
		return 1 << 32
	}
	return size + 1
}
