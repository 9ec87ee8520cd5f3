package configs

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// wrongType says what a key wants instead of v, and how to write it.
func wrongType(path string, v any, want reflect.Type) string {
	text, isText := v.(string)
	number, isNumber := v.(int64)
	switch want {
	case reflect.TypeFor[sizeText]():
		msg := "want a size with a unit, in quotes, not " + describe(v)
		if isNumber {
			return msg + ": write " + strconv.Quote(likelySize(number))
		}
		return msg + `: as "512MiB" or "20GiB"`
	case reflect.TypeFor[spanText]():
		msg := "want a duration with a unit, in quotes, not " + describe(v)
		if isNumber && number >= 0 {
			return msg + fmt.Sprintf(`: write "%ds" for seconds`, number)
		}
		return msg + `: as "60s" or "2m30s"`
	case reflect.TypeFor[rateText]():
		msg := "want a rate with a unit, in quotes, not " + describe(v)
		if isNumber && number > 0 {
			return msg + fmt.Sprintf(`: write "%dmbit"`, number)
		}
		return msg + `: as "100mbit" or "1gbit"`
	case reflect.TypeFor[rawBandwidth]():
		return "want inbound and outbound, not " + describe(v) + `: write bandwidth.inbound = "100mbit" for the way to the guest, bandwidth.outbound for the other`
	}
	switch want.Kind() {
	case reflect.String:
		msg := "want text in quotes, not " + describe(v)
		switch v.(type) {
		case int64, float64:
			return msg + fmt.Sprintf(": write \"%v\"", v)
		}
		return msg
	case reflect.Int64:
		msg := "want a whole number, not " + describe(v)
		if _, err := strconv.ParseInt(text, 10, 64); isText && err == nil {
			return msg + ": write " + text + " without quotes"
		}
		return msg
	case reflect.Bool:
		return "want true or false, without quotes, not " + describe(v)
	case reflect.Struct:
		return "want a table, not " + describe(v) + ": " + tableHint(path, v)
	}
	return wrongArray(path, v, want)
}

// wrongArray is wrongType for a key that wants an array.
func wrongArray(path string, v any, want reflect.Type) string {
	if want.Elem().Kind() == reflect.Struct {
		msg := "want an array of tables, not " + describe(v)
		if _, ok := v.(map[string]any); ok {
			return msg + fmt.Sprintf(": write [[%s]], with two pairs of brackets", header(path))
		}
		return msg + fmt.Sprintf(": write [[%s]] on a line of its own, and its keys below", header(path))
	}
	msg := "want an array of texts, not " + describe(v)
	text, ok := v.(string)
	if !ok {
		return msg
	}
	words := strings.Fields(text)
	if len(text) > maxQuoted || len(words) == 0 {
		return msg + `: write each in quotes of its own, as ["a", "b"]`
	}
	for i, w := range words {
		words[i] = strconv.Quote(strings.TrimSuffix(w, ","))
	}
	return msg + ": write [" + strings.Join(words, ", ") + "]"
}

// tableHint says how to open the table at path, which may be an element of an
// array.
func tableHint(path string, v any) string {
	if strings.HasSuffix(path, "]") {
		return fmt.Sprintf("write [[%s]] on a line of its own, and its keys below", header(path))
	}
	if _, ok := v.([]map[string]any); ok {
		return fmt.Sprintf("write [%s], with one pair of brackets", header(path))
	}
	return fmt.Sprintf("write [%s] on a line of its own, and its keys below", header(path))
}

// header returns what stands in the brackets of a table's header: its path
// without the places in arrays.
func header(path string) string { return indexes().ReplaceAllString(path, "") }

var indexes = lazyPattern(`\[\d+\]`)

// likelySize guesses the unit that a bare number was meant in: bytes when that
// makes a size, and MiB when it is small.
func likelySize(n int64) string {
	switch {
	case n <= 0:
		return "0B"
	case Size(n) >= mib && Size(n)%mib == 0:
		return Size(n).String()
	case Size(n) >= mib:
		return strconv.FormatInt(n, 10) + "B"
	}
	return strconv.FormatInt(n, 10) + "MiB"
}

// describe names a decoded value for an error.
func describe(v any) string {
	switch v := v.(type) {
	case string:
		return "the text " + quote(v)
	case int64, float64:
		return fmt.Sprintf("the number %v", v)
	case bool:
		return fmt.Sprintf("%v", v)
	case time.Time:
		return "a date or time"
	case map[string]any:
		return "a table"
	}
	return "an array"
}

// unknownKey complains about a key that has no field in the raw struct of its
// table, and proposes one that does.
func (r *report) unknownKey(path, name string, table reflect.Type) {
	msg := "unknown key " + quote(name) + ": "
	keys, also := keysOf(table), []string(nil)
	if path == "" {
		keys, also = slices.DeleteFunc(keys, isFleetKey), fleetTables
	}
	base := guestTable(path)
	if table == reflect.TypeFor[rawFleet]() {
		base = keyGuest
	}
	meant := closestKey(name, append(also, keys...))
	switch {
	case meant != "" && strings.EqualFold(name, meant):
		msg += fmt.Sprintf("keys are case-sensitive: use %q", meant)
	case homesOf(base, name) != "":
		msg += "it belongs " + homesOf(base, name)
		if meant != "" {
			msg += fmt.Sprintf("; or did you mean %q?", meant)
		}
	case insideOf(table, name) != "":
		msg += fmt.Sprintf("write %s.%s", insideOf(table, name), name)
	case meant != "":
		msg += fmt.Sprintf("did you mean %q?", meant)
	default:
		msg += "the keys here are " + list(keys, "and")
		if table.NumField() == 1 {
			msg = "unknown key " + quote(name) + ": the only key here is " + keysOf(table)[0]
		}
	}
	if meant != "" {
		r.mark(joinKey(path, meant)) // no complaint that it is missing
	}
	r.place(joinKey(path, name), path, msg)
}

// keysOf returns the keys of a raw struct in the order of its fields.
func keysOf(table reflect.Type) []string {
	keys := make([]string, table.NumField())
	for i := range keys {
		keys[i] = table.Field(i).Tag.Get("toml")
	}
	return keys
}

// homesOf says in which of a guest's tables there is a key of this name, where
// all of them are in the table base. The commonest slip in TOML is a key of the
// top level below the first table.
func homesOf(base, name string) string {
	var homes []string
	top := reflect.TypeFor[rawGuest]()
	for i := range top.NumField() {
		field := top.Field(i)
		key := field.Tag.Get("toml")
		if key == name {
			return homeAtTop(base, name)
		}
		elem := field.Type
		for elem.Kind() == reflect.Pointer || elem.Kind() == reflect.Slice {
			elem = elem.Elem()
		}
		if elem.Kind() != reflect.Struct {
			continue
		}
		if _, ok := fieldsOf(elem)[name]; ok {
			homes = append(homes, brackets(field.Type, strings.TrimPrefix(base+"."+key, ".")))
		}
	}
	if len(homes) == 0 {
		return ""
	}
	return "in " + list(homes, "or")
}

// homeAtTop says where a key belongs that is in none of a guest's tables.
func homeAtTop(base, name string) string {
	switch {
	case base == keyGuest, base != "" && (name == "name" || name == "count"):
		return "below [[guest]], above the guest's other tables"
	case base != "":
		return "below [" + base + "]"
	case isFleetKey(name):
		return "below [[guest]], in a file of many guests"
	}
	return "at the top of the file, above the first table"
}

// guestTable returns the header of the table that has a guest's keys around a
// path in a fleet's file, and "" for a spec of one guest.
func guestTable(path string) string {
	parts := strings.SplitN(header(path), ".", 3)
	switch {
	case parts[0] == keyTemplate && len(parts) > 1:
		return parts[0] + "." + parts[1]
	case slices.Contains(fleetTables, parts[0]):
		return parts[0]
	}
	return ""
}

// brackets puts a table's header into its brackets.
func brackets(of reflect.Type, header string) string {
	if of.Kind() == reflect.Slice {
		return "[[" + header + "]]"
	}
	return "[" + header + "]"
}

// insideOf returns the key of a table's own table that has a key of this name,
// or "".
func insideOf(table reflect.Type, name string) string {
	for i := range table.NumField() {
		field := table.Field(i)
		if field.Type.Kind() != reflect.Pointer || field.Type.Elem().Kind() != reflect.Struct {
			continue
		}
		if _, ok := fieldsOf(field.Type.Elem())[name]; ok {
			return field.Tag.Get("toml")
		}
	}
	return ""
}

// closestKey returns the key that name was probably meant to be, or "".
func closestKey(name string, keys []string) string {
	if len(name) > maxQuoted { // the distance takes time with the square of it
		return ""
	}
	best, bound := "", min(2, len(name)/2)
	for _, key := range keys {
		if strings.EqualFold(name, key) {
			return key
		}
		if len(name) > len(key)+bound || len(key) > len(name)+bound {
			continue
		}
		if d := editDistance(strings.ToLower(name), key); d <= bound {
			best, bound = key, d-1
		}
	}
	return best
}

// editDistance counts the insertions, deletions, substitutions and swaps of
// neighbours that lead from a to b.
func editDistance(a, b string) int {
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(row[j+1]+1, next[j]+1, row[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

// list joins words as "a, b and c".
func list[T ~string](words []T, last string) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i > 0 && i == len(words)-1:
			b.WriteString(" " + last + " ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(string(w))
	}
	return b.String()
}
