package configs

import (
	_ "embed"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// The complete examples explain every key, in the comment above it. All that is
// said about keys elsewhere (vmrun help KEY, vmrun.toml(5), the schema,
// completions) is made of them and of the raw structs.
var (
	//go:embed examples/complete.toml
	complete string
	//go:embed examples/complete-fleet.toml
	completeFleet string
)

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
	return strings.ReplaceAll(thoughtEnd().Split(k.Text, 2)[0], "\n", " ")
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
	"count":            {low: 1, high: maxGuests},
	"cpus":             {low: 1, high: maxCPUs},
	"arch":             {words: wordsOf(arches)},
	"firmware":         {words: wordsOf(firmwares)},
	"display":          {words: wordsOf(displays)},
	"topology.sockets": {low: 1, high: maxCPUs},
	"topology.cores":   {low: 1, high: maxCPUs},
	"topology.threads": {low: 1, high: maxCPUs},
	"hugepages":        {kind: TypeBool, words: sizeWords(hugepages)},
	"accel":            {words: wordsOf(accels)},
	"disk.format":      {words: wordsOf(formats)},
	"disk.base_format": {words: wordsOf(formats)},
	"disk.bus":         {words: wordsOf(buses)},
	"disk.cache":       {words: wordsOf(caches)},
	"disk.io":          {words: wordsOf(ios)},

	"disk.throttle.iops_total": {low: 1, high: maxIOPS},
	"disk.throttle.iops_read":  {low: 1, high: maxIOPS},
	"disk.throttle.iops_write": {low: 1, high: maxIOPS},

	"disk.boot_index": {high: maxBootIndex},
	"nic.parent":      {must: true},
	"nic.vlan":        {low: 1, high: maxVLAN},
	"nic.kind":        {words: wordsOf(kinds)},
	"nic.mode":        {words: wordsOf(modes)},
	"nic.mtu":         {low: minMTU, high: maxMTU},
	"nic.multicast":   {words: wordsOf(multicasts)},
	"nic.trust":       {words: wordsOf(trusts)},
	"nic.pin":         {kind: TypeBool, words: []string{string(PinMAC)}},
	"nic.model":       {words: models},
	"nic.queues":      {low: 1, high: maxQueues},
	"nic.vhost":       {words: wordsOf(vhosts)},
	"nic.txqueuelen":  {low: minQueueLen, high: maxQueueLen},
	"nic.bcqueuelen":  {low: minQueueLen, high: maxQueueLen},
	"nic.boot_index":  {high: maxBootIndex},
	"credential.name": {must: true},
	"share.path":      {must: true},
	"share.tag":       {must: true},
	"watchdog.action": {words: wordsOf(watchdogActions)},
	"restart.policy":  {words: wordsOf(policies)},
	"restart.limit":   {high: maxRestarts},
	"ready.when":      {kind: TypeText, words: []string{"started", "ip", consolePrefix + "REGEXP"}},
	"limits.memory":   {kind: TypeSize, words: []string{"auto", "none"}},
	"limits.cpus":     {kind: TypeNumber},
	"limits.tasks":    {high: maxTasks}, // and 1 to minTasks-1 is refused
}

func wordsOf[T ~string](list []T) []string {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = string(w)
	}
	return words
}

func sizeWords(list []Size) []string {
	words := make([]string, len(list))
	for i, s := range list {
		words[i] = s.String()
	}
	return words
}

// Reference returns every key of a spec, in the order of examples/complete.toml:
// first the file itself with the path "", and each table before its keys.
func Reference() []Key {
	notes := notesOf(complete)
	file := Key{Type: TypeTable, Text: notes[""].text}
	keys := documented("", "", reflect.TypeFor[rawGuest](), notes)
	return append([]Key{file}, slices.DeleteFunc(keys, func(k Key) bool { return isFleetKey(k.Path) })...)
}

// FleetReference returns what a file of many guests has beside those, from
// examples/complete-fleet.toml: the file itself, its tables ("template.NAME"),
// and the keys that are a fleet's only or more than a spec's, all of them in
// table "guest".
func FleetReference() []Key {
	keys := map[string]Key{"defaults": {Type: TypeTable}, "template.NAME": {Type: TypeTable}, keyGuest: {Type: TypeTables}, "": {Type: TypeTable}}
	for _, k := range documented("", "", reflect.TypeFor[rawGuest](), nil) {
		k.Table, k.Must = keyGuest, k.Path == "name"
		keys[keyGuest+"."+k.Path] = k
	}
	notes := notesOf(completeFleet)
	paths := slices.SortedFunc(maps.Keys(notes), func(a, b string) int { return notes[a].line - notes[b].line })
	var list []Key
	for _, path := range paths {
		n := notes[path]
		if n.text == "" {
			continue
		}
		path = inTemplate().ReplaceAllString(inTemplateTable().ReplaceAllString(path, "template.NAME"), keyGuest+".")
		k := keys[path]
		k.Path = path
		list = append(list, k.explained(n))
	}
	slices.SortStableFunc(list, func(a, b Key) int { return len(a.Table) - len(b.Table) })
	return list
}

// documented returns the keys of a raw struct, which stands at path. Where nothing
// is said of a table, as of bandwidth, it is a part of its keys' names, and they
// belong to the table around it.
func documented(path, table string, t reflect.Type, notes map[string]note) []Key {
	var keys []Key
	inner := map[string][]Key{} // by table
	for i := range t.NumField() {
		k := Key{Path: joinKey(path, t.Field(i).Tag.Get("toml")), Table: table}
		n, said := notes[k.Path]
		fields := k.setType(t.Field(i).Type)
		if fields != nil && !said {
			keys = append(keys, documented(k.Path, table, fields, notes)...)
			continue
		}
		if fields != nil {
			inner[k.Path] = documented(k.Path, k.Path, fields, notes)
		}
		keys = append(keys, k.explained(n))
	}
	slices.SortStableFunc(keys, func(a, b Key) int { return notes[a.Path].line - notes[b.Path].line })
	var all []Key
	for _, k := range keys {
		all = append(append(all, k), inner[k.Path]...)
	}
	return all
}

// explained returns k with what a file says of it.
func (k Key) explained(n note) Key {
	k.Text, k.Example = n.text, n.example
	if m := defaultText().FindStringSubmatch(n.text); m != nil {
		k.Default = strings.Join(strings.Fields(m[1]), " ")
	}
	return k
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
	headerLine      = lazyPattern(`^\[+([\w.-]+)\]+`)
	keyLine         = lazyPattern(`^([\w.-]+)\s*=\s*(.*)$`)
	inTemplateTable = lazyPattern(`^template\.[\w-]+$`)
	inTemplate      = lazyPattern(`^template\.[\w-]+\.`)
	thoughtEnd      = lazyPattern(`[.:;](\s|$)`)
	defaultText     = lazyPattern(`(?s)\bDefault: (.*?)\.(\s|$)`)
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
		if m := headerLine().FindStringSubmatch(line); m != nil {
			table = m[1]
			key = table
		} else if m := keyLine().FindStringSubmatch(line); m != nil {
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
