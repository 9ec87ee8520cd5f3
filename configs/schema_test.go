package configs

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

const schemaFile = "vmrun.schema.json"

// schema is a JSON schema, as far as a spec's needs it (draft 2020-12).
type schema struct {
	Schema      string             `json:"$schema,omitempty"`
	Ref         string             `json:"$ref,omitempty"`
	Title       string             `json:"title,omitempty"`
	Description string             `json:"description,omitempty"`
	Type        string             `json:"type,omitempty"`
	Enum        []any              `json:"enum,omitempty"`
	Pattern     string             `json:"pattern,omitempty"`
	Minimum     *int64             `json:"minimum,omitempty"`
	Maximum     *int64             `json:"maximum,omitempty"`
	Default     any                `json:"default,omitempty"`
	Items       *schema            `json:"items,omitempty"`
	Properties  map[string]*schema `json:"properties,omitempty"`
	Required    []string           `json:"required,omitempty"`
	Additional  any                `json:"additionalProperties,omitempty"`
	AnyOf       []*schema          `json:"anyOf,omitempty"`
	Defs        map[string]*schema `json:"$defs,omitempty"`
}

func tableSchema() *schema {
	return &schema{Type: "object", Properties: map[string]*schema{}, Additional: false}
}

// fileSchema is the schema of a file: of one guest, or of many. That it is not
// both is left to vmrun check, so that an editor knows all that can come.
func fileSchema() *schema {
	file, texts := guestSchema(valueSchema), map[string]string{}
	for _, k := range FleetReference() {
		texts[k.Path] = flow(k.Text)
	}
	file.Schema, file.Title = "https://json-schema.org/draft/2020-12/schema", "vmrun.toml(5)"
	file.Defs = guestSchema(fleetSchema).Properties
	for _, k := range FleetReference() {
		if name, ok := strings.CutPrefix(k.Path, keyGuest+"."); ok && !strings.Contains(name, ".") {
			file.Defs[name] = keySchema(k, fleetSchema)
		}
	}
	layer := func(table string, without ...string) *schema {
		s := tableSchema()
		for name := range file.Defs {
			if !slices.Contains(without, name) {
				s.Properties[name] = &schema{Ref: "#/$defs/" + name}
			}
		}
		s.Description = texts[table]
		return s
	}
	guest := layer(keyGuest)
	guest.Required = []string{"name"}
	file.Properties[keyDefaults] = layer(keyDefaults, "name", "count", "from")
	file.Properties[keyTemplate] = &schema{Type: "object", Additional: layer("template.NAME", "name", "count")}
	file.Properties[keyGuest] = &schema{Type: "array", Items: guest}
	return file
}

// guestSchema is the schema of a guest's keys, with values as valueOf has them.
func guestSchema(valueOf func(Key) *schema) *schema {
	root := tableSchema()
	for _, k := range Reference() {
		if k.Path == "" {
			root.Description = flow(k.Text)
			continue
		}
		names := strings.Split(k.Path, ".")
		table := root
		for _, name := range names[:len(names)-1] {
			if table.Properties[name] == nil {
				table.Properties[name] = tableSchema()
			}
			if table = table.Properties[name]; table.Items != nil {
				table = table.Items
			}
		}
		name := names[len(names)-1]
		table.Properties[name] = keySchema(k, valueOf)
		if k.Must {
			table.Required = append(table.Required, name)
		}
	}
	return root
}

// keySchema is the schema of one key.
func keySchema(k Key, valueOf func(Key) *schema) *schema {
	s := valueOf(k)
	s.Description = flow(k.Text)
	if value := literal.FindString(k.Default); value != "" && !k.IsTable() {
		if err := json.Unmarshal([]byte(value), &s.Default); err != nil {
			panic(err)
		}
	}
	return s
}

// fleetSchema is valueSchema in a fleet, where every text can have placeholders.
func fleetSchema(k Key) *schema {
	s := valueSchema(k)
	if k.IsTable() || s.Pattern == "" && s.Enum == nil {
		return s
	}
	return &schema{AnyOf: []*schema{s, {Type: "string", Pattern: `\$\{`}}}
}

func valueSchema(k Key) *schema {
	switch k.Type {
	case TypeTable:
		return tableSchema()
	case TypeTables:
		return &schema{Type: "array", Items: tableSchema()}
	case TypeText:
		if k.Words == nil {
			return &schema{Type: "string"}
		}
		return &schema{Type: "string", Pattern: "^(" + regexp.MustCompile(`[A-Z]+`).ReplaceAllString(strings.Join(k.Words, "|"), ".+") + ")$"}
	case TypeTexts:
		return &schema{Type: "array", Items: &schema{Type: "string"}}
	case TypeNumber:
		return &schema{Type: "number"}
	case TypeInteger:
		return &schema{Type: "integer", Minimum: &k.Low, Maximum: &k.High}
	case TypeWord:
		return &schema{Enum: anyOf(k.Words)}
	case TypeBool:
		if k.Words == nil {
			return &schema{Type: "boolean"}
		}
		return &schema{Enum: append([]any{true, false}, anyOf(k.Words)...)}
	}
	pattern := map[Type]string{TypeSize: sizePattern(), TypeSpan: spanPattern, TypeRate: ratePattern()}[k.Type]
	return &schema{Type: "string", Pattern: "^(" + strings.Join(append([]string{pattern}, k.Words...), "|") + ")$"}
}

func anyOf(words []string) []any {
	var list []any
	for _, w := range words {
		list = append(list, w)
	}
	return list
}

const (
	decimals    = `([0-9]+\.?[0-9]*|\.[0-9]+)`
	spanPattern = `\+?0|\+?(` + decimals + `(ns|us|µs|μs|ms|s|m|h))+` // time.ParseDuration
)

func sizePattern() string {
	var names []string
	for _, u := range units {
		names = append(names, u.names...)
	}
	return `0+|[0-9]+(` + strings.Join(names, "|") + `)`
}

func ratePattern() string {
	var names []string
	for _, u := range rateUnits {
		names = append(names, regexp.MustCompile(`[a-z]`).ReplaceAllStringFunc(u.name, func(c string) string {
			return "[" + strings.ToUpper(c) + c + "]" // in any case
		}))
	}
	return decimals + `(` + strings.Join(names, "|") + `)`
}

// flow is a comment with one line for each paragraph and each indented line.
func flow(text string) string {
	return regexp.MustCompile(`([^\n])\n([^\n ])`).ReplaceAllString(text, "$1 $2")
}

// The schema that editors get is made of Reference.
func TestSchema(t *testing.T) {
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(fileSchema()); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(schemaFile, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s is not up to date: make docs (-is +should):\n%s", schemaFile, diff)
	}
}

// validate holds a TOML document against the committed schema.
func validate(t *testing.T, text string) error {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if _, err := toml.Decode(text, &doc); err != nil {
		return err
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

func TestSchemaTakesExamples(t *testing.T) {
	files, err := filepath.Glob("examples/*.toml")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %d examples, err %v", len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(t, string(data)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// A schema knows of keys, types and words. What breaks another rule, it takes.
func TestSchemaRefuses(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.toml")
	if err != nil {
		t.Fatal(err)
	}
	wrong := regexp.MustCompile(`: want .*not (the |a table|an array|true|false)|: unknown key|is not (a|an) [^:]*: use \w+, \w+ `)
	refused := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		said, err := os.ReadFile(strings.TrimSuffix(file, ".toml") + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		if !wrong.Match(said) {
			continue
		}
		refused++
		if validate(t, string(data)) == nil {
			t.Errorf("%s is fine for the schema:\n%s", file, said)
		}
	}
	if refused < 30 {
		t.Errorf("only %d specs of this kind", refused)
	}
}

// The patterns take what the parsers take.
func TestSchemaPatterns(t *testing.T) {
	texts := []string{"", "0", "00", "1", "1B", "20G", "4KiB", "4kib", "1.5GiB", "1 GiB", "-1MiB", "+1MiB", "1m", "1m30s", "1.5h", ".5s", "1.s", "s", "1d", "90",
		"+1s", "1µs", "1μs", "1ns1us", "8kbit", "1.5Gbit", "1kiBIT", "1tibit", "100mbps", ".5mbit", "1.mbit", ".mbit", "1..5mbit"}
	for _, tt := range []struct {
		name    string
		pattern string
		parse   func(string) error
	}{
		{"size", sizePattern(), func(s string) error { _, err := ParseSize(s); return err }},
		{"span", spanPattern, func(s string) error { _, err := parseSpan(s); return err }},
		{"rate", ratePattern(), func(s string) error { _, err := ParseRate(s); return err }},
	} {
		re := regexp.MustCompile("^(" + tt.pattern + ")$")
		for _, text := range texts {
			if err := tt.parse(text); re.MatchString(text) != (err == nil) {
				t.Errorf("%s %q: pattern %v, parser %v", tt.name, text, re.MatchString(text), err)
			}
		}
	}
}
