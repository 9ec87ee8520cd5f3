package configs

import (
	_ "embed"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// complete explains every key, in the comment above it. All that is said about
// keys elsewhere (vmrun help KEY, vmrun.toml(5), the schema, completions) is made
// of it and of the raw structs.
//
//go:embed examples/complete.toml
var complete string

// Key is one key of a spec, or one of its tables.
type Key struct {
	Path    string // "nic.mode"; "nic" is the table, and "" the file itself
	Table   string // the path of the table that it is in
	Type    Type
	Must    bool     // a table of its kind needs it
	Words   []string // all that text can be, with capitals for a part of one's own; with another type, what is taken as well
	Low     int64    // the smallest whole number
	High    int64    // the largest; 0: neither says anything
	Default string   // what Text says of it: a value as in TOML, perhaps with words behind it, or words; "" for none
	Example string   // a value, as in TOML
	Text    string   // the comment with its lines, but without "# "
}

// Type is what the value of a key is.
type Type string

// The types.
const (
	TypeTable   Type = "table"
	TypeTables  Type = "array of tables"
	TypeText    Type = "text"
	TypeTexts   Type = "array of texts"
	TypeWord    Type = "word"
	TypeBool    Type = "true or false"
	TypeInteger Type = "whole number"
	TypeNumber  Type = "number"
	TypeSize    Type = "size"
	TypeSpan    Type = "duration"
	TypeRate    Type = "rate"
)

// IsTable reports whether other keys are in k.
func (k Key) IsTable() bool { return k.Type == TypeTable || k.Type == TypeTables }

// Name is what k is called in its table: "mode", "bandwidth.inbound".
func (k Key) Name() string { return strings.TrimPrefix(strings.TrimPrefix(k.Path, k.Table), ".") }

// Brief is the beginning of Text, as far as it is one thought.
func (k Key) Brief() string {
	return strings.ReplaceAll(thoughtEnd.Split(k.Text, 2)[0], "\n", " ")
}

// Header is how a table begins: "[boot]", "[[disk]]".
func (k Key) Header() string {
	if k.Type == TypeTables {
		return "[[" + k.Path + "]]"
	}
	return "[" + k.Path + "]"
}

// Values says what a key can be, for people: `"on", "off" or "auto"`,
// "whole number, 1 to 8".
func (k Key) Values() string {
	var words []string
	switch {
	case k.Type == TypeBool && len(k.Words) > 0:
		words = []string{"true", "false"}
	case k.High > 0:
		words = []string{fmt.Sprintf("%s, %d to %d", k.Type, k.Low, k.High)}
	case k.Type != TypeWord && (k.Type != TypeText || k.Words == nil):
		words = []string{string(k.Type)}
	}
	for _, w := range k.Words {
		words = append(words, strconv.Quote(w))
	}
	return list(words, "or")
}

// facts are what the type of a key's field leaves open.
var facts = map[string]struct {
	kind      Type
	must      bool
	words     []string
	low, high int64
}{
	"cpus":             {low: 1, high: maxCPUs},
	"accel":            {words: wordsOf(accels)},
	"disk.path":        {must: true},
	"disk.format":      {words: wordsOf(formats)},
	"disk.base_format": {words: wordsOf(formats)},
	"disk.bus":         {words: wordsOf(buses)},
	"disk.cache":       {words: wordsOf(caches)},
	"disk.boot_index":  {high: maxBootIndex},
	"nic.parent":       {must: true},
	"nic.vlan":         {low: 1, high: maxVLAN},
	"nic.kind":         {words: wordsOf(kinds)},
	"nic.mode":         {words: wordsOf(modes)},
	"nic.mtu":          {low: minMTU, high: maxMTU},
	"nic.multicast":    {words: wordsOf(multicasts)},
	"nic.trust":        {words: wordsOf(trusts)},
	"nic.pin":          {kind: TypeBool, words: []string{string(PinMAC)}},
	"nic.model":        {words: models},
	"nic.queues":       {low: 1, high: maxQueues},
	"nic.vhost":        {words: wordsOf(vhosts)},
	"nic.txqueuelen":   {low: minQueueLen, high: maxQueueLen},
	"nic.bcqueuelen":   {low: minQueueLen, high: maxQueueLen},
	"nic.boot_index":   {high: maxBootIndex},
	"restart.policy":   {words: wordsOf(policies)},
	"restart.limit":    {high: maxRestarts},
	"ready.when":       {kind: TypeText, words: []string{"started", "ip", consolePrefix + "REGEXP"}},
	"limits.memory":    {kind: TypeSize, words: []string{"auto", "none"}},
	"limits.cpus":      {kind: TypeNumber},
	"limits.tasks":     {high: maxTasks}, // and 1 to minTasks-1 is refused
}

func wordsOf[T ~string](list []T) []string {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = string(w)
	}
	return words
}

// Reference returns every key, in the order of examples/complete.toml: first the
// file itself with the path "", and each table before its keys.
func Reference() []Key {
	notes := notesOf(complete)
	file := Key{Type: TypeTable, Text: notes[""].text}
	return append([]Key{file}, documented("", "", reflect.TypeFor[rawGuest](), notes)...)
}

// documented returns the keys of a raw struct, which stands at path. Where nothing
// is said of a table, as of bandwidth, it is a part of its keys' names, and they
// belong to the table around it.
func documented(path, table string, t reflect.Type, notes map[string]note) []Key {
	var keys []Key
	inner := map[string][]Key{} // by table
	for i := range t.NumField() {
		k := Key{Path: joinKey(path, t.Field(i).Tag.Get("toml")), Table: table}
		if isFleetKey(k.Path) {
			continue
		}
		n, said := notes[k.Path]
		fields := k.setType(t.Field(i).Type)
		if fields != nil && !said {
			keys = append(keys, documented(k.Path, table, fields, notes)...)
			continue
		}
		if fields != nil {
			inner[k.Path] = documented(k.Path, k.Path, fields, notes)
		}
		k.Text, k.Example = n.text, n.example
		if m := defaultText.FindStringSubmatch(n.text); m != nil {
			k.Default = strings.Join(strings.Fields(m[1]), " ")
		}
		keys = append(keys, k)
	}
	slices.SortStableFunc(keys, func(a, b Key) int { return notes[a.Path].line - notes[b.Path].line })
	var all []Key
	for _, k := range keys {
		all = append(append(all, k), inner[k.Path]...)
	}
	return all
}

// setType sets what k takes by its field's type and by facts. Of a table it
// returns the struct.
func (k *Key) setType(t reflect.Type) (fields reflect.Type) {
	k.Type, fields = typeOf(t)
	f := facts[k.Path]
	k.Must, k.Words, k.Low, k.High = f.must, f.words, f.low, f.high
	switch {
	case f.kind != "":
		k.Type = f.kind
	case f.words != nil:
		k.Type = TypeWord
	}
	return fields
}

// typeOf returns what a raw struct's field takes, and of a table the struct.
func typeOf(t reflect.Type) (kind Type, fields reflect.Type) {
	switch t {
	case reflect.TypeFor[*sizeText]():
		return TypeSize, nil
	case reflect.TypeFor[*spanText]():
		return TypeSpan, nil
	case reflect.TypeFor[*rateText]():
		return TypeRate, nil
	case reflect.TypeFor[*int64]():
		return TypeInteger, nil
	case reflect.TypeFor[*bool]():
		return TypeBool, nil
	case reflect.TypeFor[[]string]():
		return TypeTexts, nil
	}
	switch {
	case t.Kind() == reflect.Slice:
		return TypeTables, t.Elem()
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct:
		return TypeTable, t.Elem()
	}
	return TypeText, nil
}

var (
	headerLine  = regexp.MustCompile(`^\[+([\w.-]+)\]+`)
	keyLine     = regexp.MustCompile(`^([\w.-]+)\s*=\s*(.*)$`)
	thoughtEnd  = regexp.MustCompile(`[.:;](\s|$)`)
	defaultText = regexp.MustCompile(`(?s)\bDefault: (.*?)\.(\s|$)`)
)

// note is what a file says of a key.
type note struct {
	text    string
	example string // a value
	line    int    // from 0
}

// notesOf reads the comments above the keys and tables of a file. A further
// comment on one, at a later element of an array, is added to its first. The
// comment at the top of the file is about the file.
func notesOf(text string) map[string]note {
	notes := map[string]note{}
	var comment []string
	table := ""
	for i, line := range strings.Split(text, "\n") {
		if about, ok := strings.CutPrefix(line, "#"); ok {
			comment = append(comment, strings.TrimPrefix(about, " "))
			continue
		}
		key, example := "", ""
		if m := headerLine.FindStringSubmatch(line); m != nil {
			table = m[1]
			key = table
		} else if m := keyLine.FindStringSubmatch(line); m != nil {
			key, example = strings.TrimPrefix(table+"."+m[1], "."), m[2]
		} else if len(notes) > 0 {
			continue // an empty line
		}
		n, again := notes[key]
		if !again {
			n = note{example: example, line: i}
		}
		n.text = strings.TrimPrefix(n.text+"\n\n"+strings.Join(comment, "\n"), "\n\n")
		n.text = strings.TrimSuffix(n.text, "\n\n")
		notes[key], comment = n, nil
	}
	return notes
}
