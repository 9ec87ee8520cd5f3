package configs

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every key there is has its comment in complete.toml, with a default, and an
// example.
func TestReference(t *testing.T) {
	var paths []string
	for _, k := range Reference() {
		paths = append(paths, k.Path)
		if !strings.HasSuffix(k.Text, ".") {
			t.Errorf("%s: %q is no comment: full sentences, please", k.Path, k.Text)
		}
		if !k.IsTable() && (k.Must != (k.Default == "") || k.Example == "") {
			t.Errorf("%s: required %v, default %q, example %q", k.Path, k.Must, k.Default, k.Example)
		}
	}
	for _, path := range slices.DeleteFunc(allKeys("", reflect.TypeFor[rawGuest]()), isFleetKey) {
		path = strings.ReplaceAll(path, "[]", "")
		part := slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(p, path+".") })
		if !part && !slices.Contains(paths, path) {
			t.Errorf("examples/complete.toml does not show %s", path)
		}
	}
}

// The same of what only a fleet's file has.
func TestFleetReference(t *testing.T) {
	var paths []string
	for _, k := range FleetReference() {
		paths = append(paths, k.Path)
		if k.Text == "" || k.Type == "" || !k.IsTable() && k.Example == "" {
			t.Errorf("%+v", k)
		}
		if k.Path == "guest.count" && (k.High != maxGuests || k.Default == "") {
			t.Errorf("%+v", k)
		}
	}
	want := []string{"", "defaults", "template.NAME", "guest", "guest.from", "guest.nic.addresses", "guest.name", "guest.count", "guest.after"}
	if diff := cmp.Diff(want, paths); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	for _, name := range fleetKeys {
		if !slices.Contains(paths, "guest."+name) {
			t.Errorf("examples/complete-fleet.toml does not explain %s", name)
		}
	}
}

// specWith is a spec in which a key has a value.
func specWith(k Key, value string) string {
	tables := map[string][]string{
		"":        {"qemu_args = []"},
		"boot":    {`kernel = "k"`},
		"disk":    {`path = "a.qcow2"`, `base = "b.raw"`},
		"nic":     {`parent = "eth0"`, `addresses = ["192.0.2.1"]`},
		"share":   {`path = "src"`, `tag = "src"`},
		"restart": {`policy = "always"`},

		"credential": {`name = "a"`, `value = "b"`},
	}
	if k.Path == "nic.promisc" {
		tables["nic"] = append(tables["nic"], `mode = "passthru"`)
	}
	var spec strings.Builder
	for _, table := range Reference() {
		if !table.IsTable() {
			continue
		}
		if table.Path != "" {
			fmt.Fprintln(&spec, table.Header())
		}
		lines := tables[table.Path]
		if table.Path == k.Table {
			lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, k.Name()+" ") })
			if value != "" {
				lines = append(lines, k.Name()+" = "+value)
			}
		}
		for _, l := range lines {
			fmt.Fprintln(&spec, l)
		}
	}
	return spec.String()
}

func parseWith(k Key, value string) (*Guest, error) {
	return Parse("/specs/web1.toml", []byte(specWith(k, value)))
}

// What Reference says of a key's values is what Parse goes by.
func TestReferenceIsTrue(t *testing.T) {
	for _, k := range Reference() {
		if k.IsTable() {
			continue
		}
		t.Run(k.Path, func(t *testing.T) {
			refuse := func(value, want string) {
				t.Helper()
				if _, err := parseWith(k, value); (err == nil || !strings.Contains(err.Error(), want)) && want != "" {
					t.Errorf("%s = %s: %v, want %q", k.Name(), value, err, want)
				} else if want == "" && err != nil && k.Words == nil && regexp.MustCompile(`: use \S+ or |: use \S+, `).MatchString(err.Error()) {
					t.Errorf("%s = %s: %v: is it a word?", k.Name(), value, err)
				}
			}
			if k.Must {
				refuse("", k.Name()+": missing")
			}
			switch k.Type {
			case TypeInteger:
				low := k.Low
				if k.Path == "limits.tasks" {
					low = minTasks // or 0
				}
				refuse(fmt.Sprint(k.High+1), fmt.Sprintf("use %d to %d", low, k.High))
			case TypeWord:
				refuse(`"no-such-word"`, "use "+list(k.Words, "or"))
			case TypeText:
				refuse(`"no-such-word"`, "")
			}
			if k.Type != TypeWord {
				for _, w := range k.Words {
					if _, err := parseWith(k, fmt.Sprintf("%q", w)); err != nil {
						t.Error(err)
					}
				}
			}
			trueDefault(t, k)
		})
	}
}

// literal begins a default that is a value, and not words.
var literal = regexp.MustCompile(`^("[^"]*"|-?[0-9.]+|true|false)`)

// trueDefault sets a key to its default, which changes nothing.
func trueDefault(t *testing.T, k Key) {
	t.Helper()
	value := literal.FindString(k.Default)
	if value == "" || k.Path == "qemu" { // "" is the launcher's to fill in
		return
	}
	unset, err := parseWith(k, "")
	if err != nil {
		t.Fatal(err)
	}
	set, err := parseWith(k, value)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(unset, set, cmpGuest); diff != "" {
		t.Errorf("the default is not %s (-unset +set):\n%s", value, diff)
	}
}
