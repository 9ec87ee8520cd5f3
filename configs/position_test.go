package configs

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
)

func TestScan(t *testing.T) {
	tests := []struct {
		name string
		text string
		want map[string]int
	}{
		{"empty", "", nil},
		{"comments", "# a = 1\n\n# b", nil},
		{"pairs", "a = 1\n\n  b=2 # c = 3\n", map[string]int{"a": 1, "b": 3}},
		{"CRLF", "a = 1\r\nb = 2\r\n", map[string]int{"a": 1, "b": 2}},
		{"BOM", "\xef\xbb\xbfa = 1\nb = 2", map[string]int{"a": 1, "b": 2}},
		{"dotted", "a . b.\"c\" = 1\na.d = 2", map[string]int{"a": 1, "a.b": 1, "a.b.c": 1, "a.d": 2}},
		{
			"quoted", "\"a.b\" = 1\n'c d' = 2\n\"\\u0065\" = 3\n\"\" = 4",
			map[string]int{`"a.b"`: 1, `"c d"`: 2, "e": 3, `""`: 4},
		},
		{"tables", "[a]\nb = 1\n[c . 'd']\ne = 2", map[string]int{"a": 1, "a.b": 2, "c": 3, "c.d": 3, "c.d.e": 4}},
		{
			"arrays of tables", "[[a]]\nb = 1\n[[a]]\n[a.c]\nd = 1\n[[a.e]]\n[[a.e]]\nf = 1",
			map[string]int{
				"a": 1, "a[0]": 1, "a[0].b": 2, "a[1]": 3, "a[1].c": 4, "a[1].c.d": 5,
				"a[1].e": 6, "a[1].e[0]": 6, "a[1].e[1]": 7, "a[1].e[1].f": 8,
			},
		},
		{
			"inline", "a = [{b = 1, c.d = [2,\n3]},\n# x\n{ e = 4,\nf = 5\n}]\ng = 1",
			map[string]int{
				"a": 1, "a[0]": 1, "a[0].b": 1, "a[0].c": 1, "a[0].c.d": 1, "a[0].c.d[0]": 1, "a[0].c.d[1]": 2,
				"a[1]": 4, "a[1].e": 4, "a[1].f": 5, "g": 7,
			},
		},
		{
			"strings", "a = \"# \\\" b = 1\"\nb = '\\'\nc = \"\"\"\nd = 1\n\\\"\"\"\\\n\"\"\"\"\"\ne = '''\n'' \\'''''\nf = \"\"\ng = 1",
			map[string]int{"a": 1, "b": 2, "c": 3, "e": 7, "f": 9, "g": 10},
		},
		{"dates", "a = 1979-05-27 07:32:00 # x\nb = [1979-05-27, 1.5]", map[string]int{"a": 1, "b": 2, "b[0]": 2, "b[1]": 2}},
		{"until the mistake", "a = 1\nb 2\nc = 3", map[string]int{"a": 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := scan(tt.text)
			if tt.want == nil {
				tt.want = map[string]int{}
			}
			if diff := cmp.Diff(tt.want, got.lines); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDeep holds the bound against the decoder's worst cases.
func TestDeep(t *testing.T) {
	tests := []struct{ name, text string }{
		{"keys", strings.Repeat("a.", 1<<18) + "a = 1"},
		{"header", "[" + strings.Repeat("a.", 1<<18) + "a]"},
		{"arrays", "a = " + strings.Repeat("[", 1<<20-10)},
		{"tables", "a = " + strings.Repeat("{a=", 1<<18)},
		{"mixed", "[a.b.c]\nd.e = " + strings.Repeat("[{x.y=", 1<<17)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("a.toml", []byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), "nested too deeply") {
				t.Errorf("Parse: %.100v", err)
			}
		})
	}
}

// TestLarge proves that a file which is no spec is told so in few words, and in
// time.
func TestLarge(t *testing.T) {
	var keys strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&keys, "k%d = 1\n", i)
	}
	tests := []struct{ name, text, want string }{
		{"keys", keys.String(), "9900 more"},
		{"tables", strings.Repeat("[[nic]]\n", 1<<14), "more: is this a spec?"},
		{"a text", "name = '" + strings.Repeat("a", 1<<20-20) + "'", "1048556 characters"},
		{"a number", "cpus = " + strings.Repeat("9", 1<<20-10), "out of range"},
		{"a key", strings.Repeat("a", 1<<20-10) + " = 1", "unknown key"},
		{"a date", "cpus = " + strings.Repeat("1979-05-27T07:32:00Z", 1<<15), "invalid datetime"},
		{"arguments", "qemu_args = [" + strings.Repeat("1,", 1<<15) + "]", "more: is this a spec?"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			_, err := Parse("a.toml", []byte(tt.text))
			if err == nil || len(err.Error()) > 64<<10 || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse: %.300v", err)
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// keysIn returns the path of every key and element of a decoded document.
func keysIn(path string, v any, keys map[string]bool) {
	if path != "" {
		keys[path] = true
	}
	if table, ok := v.(map[string]any); ok {
		for name, v := range table {
			keysIn(joinKey(path, name), v, keys)
		}
	}
	items, _ := elements(v)
	for i, v := range items {
		keysIn(indexKey(path, i), v, keys)
	}
}

// checkKeys compares the scanner's keys with the decoder's.
func checkKeys(t *testing.T, text string) {
	t.Helper()
	s := scan(text)
	var table map[string]any
	if _, err := toml.Decode(text, &table); s.deep > 0 || err != nil {
		return
	}
	want := map[string]bool{}
	keysIn("", table, want)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(s.lines))); diff != "" {
		t.Errorf("keys of %q (-decoder +scanner):\n%s", text, diff)
	}
	last := strings.Count(text, "\n") + 1
	for key, line := range s.lines {
		if line < 1 || line > last {
			t.Errorf("%s is on line %d of %d", key, line, last)
		}
	}
}

func seeds(f *testing.F) {
	for _, glob := range []string{"examples/*.toml", "testdata/bad/*.toml"} {
		files, err := filepath.Glob(glob)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
}

// FuzzParse looks for panics, for errors without a place in the file, and for
// keys of which the scanner and the decoder think differently.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		text := string(data)
		g, err := Parse("/specs/web1.toml", data)
		if err == nil {
			checkKeys(t, text)
			checkGuest(t, g)
			return
		}
		checkErrors(t, text, err)
	})
}

// checkErrors holds the errors of a document against what Errors promises.
func checkErrors(t *testing.T, text string, err error) {
	t.Helper()
	var errs Errors
	if !errors.As(err, &errs) || len(errs) == 0 || len(errs) > maxErrors+1 {
		t.Fatalf("Parse: %v, want Errors", err)
	}
	if strings.Contains(errs[0].Msg, "BUG") {
		return // the decoder is at a loss, and so may the scanner be
	}
	checkKeys(t, text)
	last, before := strings.Count(text, "\n")+1, 0
	for _, e := range errs {
		if len(e.Error()) > 3000 {
			t.Errorf("an error of %d bytes: %.300v", len(e.Error()), e)
		}
		if e.Line < 0 || e.Line > last || e.Msg == "" || strings.Contains(e.Error(), "\n") {
			t.Errorf("error out of place in %d lines: %+v", last, e)
		}
		if e.Line != 0 && e.Line < before {
			t.Errorf("errors are not in order: %v", errs)
		}
		before = e.Line
	}
}

// FuzzParseFleet looks for the same in files of many guests, for guests that
// cannot be beside each other, and for specs of one guest that are not the same
// as in Parse.
func FuzzParseFleet(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		fleet, err := ParseFleet("/specs/web1.toml", data)
		one, oneErr := Parse("/specs/web1.toml", data)
		if doc, docErr := newDocument("/specs/web1.toml", data); docErr != nil || !doc.isFleet() {
			if fmt.Sprint(err) != fmt.Sprint(oneErr) || err == nil && !cmp.Equal(fleet.Guests, []*Guest{one}, cmpGuest) {
				t.Errorf("ParseFleet: %v, and Parse: %v", err, oneErr)
			}
			return
		}
		if err != nil {
			checkErrors(t, string(data), err)
			return
		}
		checkFleet(t, fleet)
	})
}

// checkFleet holds a fleet against what its type promises.
func checkFleet(t *testing.T, f *Fleet) {
	t.Helper()
	if len(f.Guests) == 0 || len(f.Guests) > maxGuests {
		t.Errorf("%d guests", len(f.Guests))
	}
	depth := map[string]int{}
	var waits func(g *Guest) int
	waits = func(g *Guest) int {
		if depth[g.Name] == 0 {
			depth[g.Name] = -1
			longest := 0
			for _, name := range g.After {
				longest = max(longest, waits(f.Guest(name)))
			}
			depth[g.Name] = longest + 1
		}
		if depth[g.Name] < 0 {
			t.Fatalf("%s comes after itself", g.Name)
		}
		return depth[g.Name]
	}
	writers := map[string]string{}
	for _, g := range f.Guests {
		checkGuest(t, g)
		waits(g)
		if f.Guest(g.Name) != g {
			t.Errorf("two guests have the name %s", g.Name)
		}
		for _, d := range g.Disks {
			if other, ok := writers[d.Path]; ok && !d.Readonly {
				t.Errorf("%s and %s write %s", other, g.Name, d.Path)
			}
			if !d.Readonly {
				writers[d.Path] = g.Name
			}
		}
		if e := g.Errorf("nic[0].parent", "gone"); !strings.Contains(e.Error(), "gone") || e.Line == 0 {
			t.Errorf("an error of the host's: %v", e)
		}
		if d := Differences(g, g); d != nil {
			t.Errorf("a guest differs from itself: %+v", d)
		}
	}
}

// checkGuest holds a guest against what its type promises.
func checkGuest(t *testing.T, g *Guest) {
	t.Helper()
	if CheckName(g.Name) != nil || g.CPUs < 1 || g.Memory == 0 || g.Memory%mib != 0 || g.Accel == "" {
		t.Errorf("guest %+v", g)
	}
	if l := g.Limits; l.Memory != 0 && (l.Memory < g.Memory || l.MemoryAuto) || l.CPUs < 0 || l.CPUs > maxCPULimit || l.Tasks != 0 && l.Tasks < minTasks {
		t.Errorf("limits %+v", l)
	}
	if r := g.Restart; r.Policy == "" || r.Delay < minDelay || r.Delay > r.MaxDelay || r.Limit < 0 || r.Interval < minInterval {
		t.Errorf("restart %+v", r)
	}
	for _, d := range g.Disks {
		empty := d.CDROM && d.Path == "" && d.Format == ""
		if !empty && (!filepath.IsAbs(d.Path) || d.Format == "") || d.IO == "" || d.Bus == "" || d.Cache == "" || (d.Base != "") != (d.BaseFormat != "") {
			t.Errorf("disk %+v", d)
		}
	}
	for _, n := range g.NICs {
		checkNIC(t, n)
	}
}

// checkNIC holds a NIC against what its type promises, and takes it there and
// back as words and as JSON.
func checkNIC(t *testing.T, n NIC) {
	t.Helper()
	if CheckInterface(n.Parent) != nil || len(n.Lower()) > maxInterface || (n.Kind == KindMacvtap) != (n.Mode != "") {
		t.Errorf("nic %+v", n)
	}
	if n.MAC != nil && CheckMAC(n.MAC) != nil || (n.Mode == ModeSource) != (len(n.Sources) > 0) {
		t.Errorf("nic %+v", n)
	}
	if n.Queues < 1 || n.Queues > 1 && !isVirtio(n.Model) || n.HostAccess && n.Mode != ModeBridge {
		t.Errorf("nic %+v", n)
	}
	if (n.Pin == PinAll || n.Kind == KindIPvtap) && len(n.Addresses) == 0 || n.Pin != PinNone && n.Trust != TrustNone {
		t.Errorf("nic %+v", n)
	}
	if again, err := ChangeNIC(n, nil); err != nil || !cmp.Equal(n, again, cmpGuest) {
		t.Errorf("unchanged NIC: %v (-want +got):\n%s", err, cmp.Diff(n, again, cmpGuest))
	}
	data, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	var again NIC
	if err := json.Unmarshal(data, &again); err != nil || !cmp.Equal(n, again, cmpGuest) {
		t.Errorf("NIC of JSON: %v (-want +got):\n%s", err, cmp.Diff(n, again, cmpGuest))
	}
}

func BenchmarkParse(b *testing.B) {
	data, err := os.ReadFile("examples/complete.toml")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("complete.toml", data); err != nil {
			b.Fatal(err)
		}
	}
}
