package configs

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func mustFleet(t *testing.T, text string) *Fleet {
	t.Helper()
	f, err := ParseFleet("/specs/lab.toml", []byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return f
}

// TestFleet compares each guest of a fleet with the spec that one would write for
// it alone.
func TestFleet(t *testing.T) {
	tests := []struct {
		name  string
		fleet string
		want  []string
	}{
		{
			"defaults, which a guest's keys go before", `
[defaults]
cpus = 4
memory = "2GiB"
boot = {kernel = "k", initrd = "i"}
nic = [{parent = "eth0"}, {parent = "eth1"}]
[[guest]]
name = "a"
[[guest]]
name = "b"
memory = "256MiB"
boot.initrd = "other"
boot.cmdline = "x"
nic = [{parent = "eth2", mode = "vepa"}]
[[guest]]
name = "c"
nic = []
`,
			[]string{
				"name = 'a'\ncpus = 4\nmemory = '2GiB'\nboot = {kernel = 'k', initrd = 'i'}\nnic = [{parent = 'eth0'}, {parent = 'eth1'}]\n",
				"name = 'b'\ncpus = 4\nmemory = '256MiB'\nboot = {kernel = 'k', initrd = 'other', cmdline = 'x'}\nnic = [{parent = 'eth2', mode = 'vepa'}]\n",
				"name = 'c'\ncpus = 4\nmemory = '2GiB'\nboot = {kernel = 'k', initrd = 'i'}\n",
			},
		},
		{
			"a chain of templates", `
[defaults]
cpus = 2
group = "all"
[template.base]
cpus = 3
stop.timeout = "9s"
qemu_args = ["a", "b"]
boot.kernel = "k"
[template.web]
from = "base"
cpus = 4
qemu_args = ["c"]
[[guest]]
name = "a"
from = "web"
cpus = 5
[[guest]]
name = "b"
from = "web"
[[guest]]
name = "c"
from = "base"
`,
			[]string{
				"name = 'a'\ngroup = 'all'\ncpus = 5\nstop.timeout = '9s'\nqemu_args = ['c']\nboot.kernel = 'k'\n",
				"name = 'b'\ngroup = 'all'\ncpus = 4\nstop.timeout = '9s'\nqemu_args = ['c']\nboot.kernel = 'k'\n",
				"name = 'c'\ngroup = 'all'\ncpus = 3\nstop.timeout = '9s'\nqemu_args = ['a', 'b']\nboot.kernel = 'k'\n",
			},
		},
		{
			"count, placeholders and ranges", `
[template.node]
qemu_args = ["$${name}", "$$${name}", "$${", "a${index}b${index+254}c"]
[template.node.boot]
kernel = "${name}/k"
cmdline = "ip=${address} name=${name}"
[[template.node.disk]]
path = "${name}.img"
[[template.node.nic]]
parent = "eth${index}"
mac = "52:54:00:00:00:${index+10}"
addresses = ["192.0.2.255-192.0.3.9", "2001:db8::ffff-2001:db8::1:9", "198.51.100.${index}"]
pin = "mac"
[[guest]]
name = "n%03d"
count = 2
from = "node"
[[guest]]
name = "last"
boot.kernel = "${name}"
nic = [{parent = "eth0", addresses = ["192.0.2.1", "192.0.2.2"]}, {parent = "eth1"}]
boot.cmdline = "${address}"
`,
			[]string{
				"name = 'n001'\nqemu_args = ['${name}', '$${name}', '${', 'a1b255c']\nboot = {kernel = 'n001/k', cmdline = 'ip=192.0.2.255 name=n001'}\ndisk = [{path = 'n001.img'}]\n" +
					"nic = [{parent = 'eth1', mac = '52:54:00:00:00:11', pin = 'mac', addresses = ['192.0.2.255', '2001:db8::ffff', '198.51.100.1']}]\n",
				"name = 'n002'\nqemu_args = ['${name}', '$${name}', '${', 'a2b256c']\nboot = {kernel = 'n002/k', cmdline = 'ip=192.0.3.0 name=n002'}\ndisk = [{path = 'n002.img'}]\n" +
					"nic = [{parent = 'eth2', mac = '52:54:00:00:00:12', pin = 'mac', addresses = ['192.0.3.0', '2001:db8::1:0', '198.51.100.2']}]\n",
				"name = 'last'\nboot = {kernel = 'last', cmdline = '192.0.2.1'}\nnic = [{parent = 'eth0', addresses = ['192.0.2.1', '192.0.2.2']}, {parent = 'eth1'}]\n",
			},
		},
		{
			"what guests may share", `
[defaults]
boot.kernel = "k"
disk = [{path = "tools.iso", cdrom = true}, {path = "${name}.qcow2", base = "base.qcow2"}]
[[guest]]
name = "a"
nic = [{parent = "eth0", addresses = ["192.0.2.1"]}]
[[guest]]
name = "b"
nic = [{parent = "eth1", addresses = ["192.0.2.1"]}, {parent = "eth0", vlan = 5, addresses = ["192.0.2.1"]}]
`,
			[]string{
				"name = 'a'\nboot.kernel = 'k'\ndisk = [{path = 'tools.iso', cdrom = true}, {path = 'a.qcow2', base = 'base.qcow2'}]\nnic = [{parent = 'eth0', addresses = ['192.0.2.1']}]\n",
				"name = 'b'\nboot.kernel = 'k'\ndisk = [{path = 'tools.iso', cdrom = true}, {path = 'b.qcow2', base = 'base.qcow2'}]\n" +
					"nic = [{parent = 'eth1', addresses = ['192.0.2.1']}, {parent = 'eth0', vlan = 5, addresses = ['192.0.2.1']}]\n",
			},
		},
		{"the spec of one guest, which has no placeholders", "boot = {kernel = 'k', cmdline = '${name}'}\n", []string{"name = 'lab'\nboot = {kernel = 'k', cmdline = '${name}'}\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := mustFleet(t, tt.fleet)
			var want []*Guest
			for _, spec := range tt.want {
				g, err := Parse("/specs/lab.toml", []byte(spec))
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, g)
			}
			if diff := cmp.Diff(&Fleet{Path: "/specs/lab.toml", Guests: want}, f, cmpGuest); diff != "" {
				t.Errorf("fleet (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAfter(t *testing.T) {
	f := mustFleet(t, `
[defaults]
boot.kernel = "k"
[template.web]
after = ["db", "cache%d"]
[[guest]]
name = "web"
from = "web"
[[guest]]
name = "alone"
from = "web"
after = []
[[guest]]
name = "pair%d"
count = 2
after = ["cache${index}"]
[[guest]]
name = "cache%d"
count = 2
after = ["db"]
[[guest]]
name = "db"
[[guest]]
name = "all"
after = ["cache2", "cache%d", "pair1"]
`)
	want := map[string][]string{
		"web": {"db", "cache1", "cache2"}, "alone": nil, "pair1": {"cache1"}, "pair2": {"cache2"},
		"cache1": {"db"}, "cache2": {"db"}, "db": nil, "all": {"cache2", "cache1", "pair1"},
	}
	got := map[string][]string{}
	for _, g := range f.Guests {
		got[g.Name] = g.After
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("after (-want +got):\n%s", diff)
	}
	without := *f.Guest("db")
	without.After = []string{"alone"}
	if got := Differences(f.Guest("db"), &without); len(got) != 1 || got[0] != (Difference{"after", "", `["alone"]`}) || !got[0].OnlyAtStart() {
		t.Errorf("differences %+v", got)
	}
}

func TestFleetErrorf(t *testing.T) {
	f := mustFleet(t, `[defaults] # 1
boot.kernel = "k" # 2
[template.base] # 3
stop.timeout = "5s" # 4
[[template.base.nic]] # 5
parent = "eth0" # 6
[template.web] # 7
from = "base" # 8
boot.cmdline = "x" # 9
[[guest]] # 10
name = "a%d" # 11
from = "web" # 12
count = 2 # 13
[[guest]] # 14
name = "b" # 15
nic = [ # 16
{parent = "eth1"}] # 17
[guest.boot] # 18
initrd = "i" # 19
`)
	tests := []struct {
		guest, key string
		line       int
		want       string
	}{
		{"a2", "nic[0].parent", 6, "template.base.nic[0].parent"},
		{"a1", "nic[0].mac", 5, "template.base.nic[0].mac"},
		{"a1", "boot.kernel", 2, "defaults.boot.kernel"},
		{"a1", "boot.cmdline", 9, "template.web.boot.cmdline"},
		{"a1", "stop.timeout", 4, "template.base.stop.timeout"},
		{"a1", "stop.quit_timeout", 4, "template.base.stop.quit_timeout"},
		{"a1", "memory", 10, "guest[0].memory"},
		{"a1", "name", 11, "guest[0].name"},
		{"a1", "limits.memory", 10, "guest[0].limits.memory"},
		{"b", "boot.kernel", 2, "defaults.boot.kernel"},
		{"b", "boot.initrd", 19, "guest[1].boot.initrd"},
		{"b", "boot.cmdline", 18, "guest[1].boot.cmdline"},
		{"b", "nic[0].parent", 17, "guest[1].nic[0].parent"},
		{"b", "nic[1].parent", 16, "guest[1].nic[1].parent"},
		{"b", "", 14, "guest[1]"},
	}
	for _, tt := range tests {
		t.Run(tt.guest+" "+tt.key, func(t *testing.T) {
			want := &Error{File: "/specs/lab.toml", Line: tt.line, Key: tt.want, Msg: "gone"}
			if diff := cmp.Diff(want, f.Guest(tt.guest).Errorf(tt.key, "gone")); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

// TestLoadFleet proves that one file is taken for what it is, by both ways in.
func TestLoadFleet(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{
		"one.toml": "boot.kernel = 'k'\n",
		"two.toml": "[defaults]\nboot.kernel = 'k'\n[[guest]]\nname = 'a'\n[[guest]]\nname = 'b'\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	one, err := LoadFleet("one.toml")
	if err != nil || len(one.Guests) != 1 || one.Guest("one") == nil || one.Path != one.Guests[0].Path || one.Guest("two") != nil {
		t.Errorf("one.toml: %+v, %v", one, err)
	}
	two, err := LoadFleet("two.toml")
	if err != nil || len(two.Guests) != 2 || two.Guest("b") != two.Guests[1] || two.Path != two.Guests[0].Path {
		t.Errorf("two.toml: %+v, %v", two, err)
	}
	if _, err := Load("two.toml"); err == nil || err.Error() != "two.toml: a file of many guests, and the spec of one is wanted here: name the guest" {
		t.Errorf("Load of a fleet: %v", err)
	}
	if _, err := LoadFleet("absent.toml"); !os.IsNotExist(err) {
		t.Errorf("LoadFleet of no file: %v", err)
	}
}

// asFleet writes a spec of one guest as the only [[guest]] of a fleet, of which
// each of the keys at its top is in the table at.
func asFleet(spec string) (text string, ok bool) {
	if strings.Contains(spec, "${") || strings.Contains(spec, "'''") || strings.Contains(spec, `"""`) {
		return "", false
	}
	text = "[[guest]]\n"
	for line := range strings.Lines(spec) {
		switch {
		case strings.HasPrefix(line, "[["):
			line = "[[guest." + line[2:]
		case strings.HasPrefix(line, "["):
			line = "[guest." + line[1:]
		}
		text += line
	}
	return text, true
}

// TestFleetOfOne proves that a spec is the same guest in a fleet: each good
// example, and each key.
func TestFleetOfOne(t *testing.T) {
	specs := []string{completeExample(t)}
	for _, k := range eachKey {
		for _, value := range []string{k.before, k.after} {
			if value != "" {
				specs = append(specs, specOf(append(k.needs, k.key+" = "+value)...))
			}
		}
	}
	for _, spec := range specs {
		text, ok := asFleet(spec)
		if !ok {
			t.Fatalf("cannot be a fleet:\n%s", spec)
		}
		f := mustFleet(t, text)
		want, err := Parse("/specs/lab.toml", []byte(spec))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]*Guest{want}, f.Guests, cmpGuest); diff != "" {
			t.Errorf("guest (-want +got):\n%s\nof\n%s", diff, text)
		}
		if d := Differences(want, f.Guests[0]); d != nil {
			t.Errorf("differences %+v", d)
		}
	}
}

// TestLargeFleet proves that small files cannot ask for much.
func TestLargeFleet(t *testing.T) {
	guests := func(n int, keys string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "[[guest]]\nname=\"g%d\"\n%s", i, keys)
		}
		return b.String()
	}
	const counted = "[[guest]]\nname=\"n%03d\"\ncount=1000\n"
	tests := []struct{ name, text, want string }{
		{"all that there can be", "[defaults]\nboot.kernel='k'\n" + counted, ""},
		{"each with all NICs", "[defaults]\nboot.kernel='k'\n" + strings.Repeat("[[defaults.nic]]\nparent='eth0'\n", maxPCI) + counted, ""},
		{"each after all others", "[defaults]\nboot.kernel='k'\n" + guests(500, "") + "[[guest]]\nname='n%d'\ncount=500\nafter=['g1'" + strings.Repeat(",'g1'", 200) + "]\n", "is in the list already"},
		{"a circle of all", "[defaults]\nboot.kernel='k'\nafter=['n%03d']\n" + counted, "would come after itself"},
		{"NICs", strings.Repeat("[[defaults.nic]]\n", 1<<11) + counted, "come to more than 32MiB"},
		{"NICs of guests apart", strings.Repeat("[[defaults.nic]]\n", 1<<11) + guests(1000, ""), "come to more than 32MiB"},
		{"arguments", "[defaults]\nqemu_args=[" + strings.Repeat("'',", 1<<15) + "]\n" + counted, "come to more than 32MiB"},
		{"a text", "[defaults]\nboot.cmdline='${name}" + strings.Repeat("a", 1<<19) + "'\n" + counted, "come to more than 32MiB"},
		{"a long name in a text", "[defaults]\nboot={kernel='k',cmdline='" + strings.Repeat("${name}", 1<<15) + "'}\n[[guest]]\nname='" + strings.Repeat("n", 1<<19) + "'\n", "use at most 48"},
		{"a long address in a text", "[[guest]]\nname='n'\nnic=[{parent='eth0',addresses=['" + strings.Repeat("a", 1<<19) + "']}]\nboot={kernel='k',cmdline='" + strings.Repeat("${address}", 1<<15) + "'}\n", "is not an IP address"},
		{"long names", "[[guest]]\nname='" + strings.Repeat("n", 1<<18) + "'\n[[guest]]\nname='n'\nafter=['" + strings.Repeat("m", 1<<18) + "']\n", "use at most 48"},
		{"addresses of one guest", "[[guest]]\nname='n'\nboot.kernel='k'\nnic=[{parent='eth0',addresses=[" + addresses(1<<15) + "]},{parent='eth0',addresses=[" + addresses(1<<15) + "]}]\n", "is nic[0]'s already"},
		{"guests", guests(1<<12, ""), "more than 1000 guests"},
		{"templates", templates(1<<12) + counted, "more than 16 templates"},
		{"unknown guests before", "[defaults]\nboot.kernel='k'\n" + guests(500, "after=["+strings.Repeat("'x1','y','z',", 30)+"]\n"), "is this a spec?"},
		{"errors", guests(1000, "cpus=0\nmemory='1'\naccel='x'\nnic=[{},{},{mode='x'}]\n"), "is this a spec?"},
		{"errors of one count", "[defaults]\ncpus=0\nmemory='1'\naccel='x'\nnic=[{},{},{mode='x'}]\n" + counted, "out of range"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			f, err := ParseFleet("a.toml", []byte(tt.text))
			switch {
			case tt.want == "" && (err != nil || len(f.Guests) != maxGuests):
				t.Errorf("ParseFleet: %.300v", err)
			case tt.want != "" && (err == nil || len(err.Error()) > 64<<10 || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("ParseFleet: %.300v", err)
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func addresses(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "'1::%x',", i)
	}
	return b.String()
}

func templates(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "[template.t%d]\nfrom='t%d'\n", i, i+1)
	}
	return b.String()
}
