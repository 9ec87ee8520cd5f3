package main

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"vmrun/configs"
	"vmrun/launcher"
)

// forest is what tree may have to draw.
func forest() []launcher.Parent {
	s := web1()
	quiet := launcher.NICStatus{Name: "net0", Mode: configs.ModeBridge, MAC: "52:54:00:00:00:03", Link: launcher.LinkUp, Addresses: []string{"192.0.2.30"}}
	private := quiet
	private.Mode = configs.ModePrivate
	return []launcher.Parent{
		{Name: "eth0", MTU: 1500, Up: true, Carrier: true, Addresses: []string{"192.0.2.2/24"},
			Links: []launcher.HostLink{{Name: "vmrun2", Mode: configs.ModeBridge, MAC: "02:00:00:00:00:02"}},
			NICs: []launcher.PlacedNIC{
				{Guest: "web1", State: launcher.StateRunning, NICStatus: s.NICs[0], Rate: &launcher.Rate{Inbound: 1_234_000, Outbound: 80_000}},
				{Guest: "db", State: launcher.StateRunning, NICStatus: quiet, Rate: &launcher.Rate{}},
				{Guest: "cache-server", State: launcher.StatePaused, NICStatus: private},
			},
			VLANs: []launcher.Parent{{Name: "eth0.100", VLAN: 100, MTU: 1500, Up: true,
				NICs: []launcher.PlacedNIC{{Guest: "web1", State: launcher.StateRunning, NICStatus: s.NICs[1]}}}}},
		{Name: "eth9", Gone: true, NICs: []launcher.PlacedNIC{{Guest: "db", State: launcher.StateRunning, NICStatus: quiet}}},
	}
}

func TestPrintTree(t *testing.T) {
	want := `eth0  MTU 1500  up  3 guests  host 192.0.2.2/24
├─ vmrun2 02:00:00:00:00:02      (host)                 bridge
├─ bridge
│  ├─ net0 52:54:00:00:00:01     web1                   192.0.2.11, 2001:db8::11, +1  ↓ 1.2 Mbit/s  ↑ 80 kbit/s  ! refused something, has a note, 192.0.2.12 is claimed twice, not reached by the host: 2001:db8::11
│  └─ net0 52:54:00:00:00:03     db                     192.0.2.30                    ↓ 0 bit/s     ↑ 0 bit/s
├─ private
│  └─ net0 52:54:00:00:00:03     cache-server (paused)  192.0.2.30
└─ VLAN 100 (eth0.100)  MTU 1500  no carrier
   └─ ipvtap
      └─ net1 52:54:00:00:00:02  web1                   198.51.100.1                                             ! link: no carrier

eth9  gone  1 guest
└─ bridge
   └─ net0 52:54:00:00:00:03     db                     192.0.2.30`
	got := lines(t, func(b *bytes.Buffer) error { return printTree(b, forest(), unicodePen) })
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	ascii := lines(t, func(b *bytes.Buffer) error { return printTree(b, forest(), asciiPen) })
	if strings.ContainsFunc(ascii, func(r rune) bool { return r > '~' }) || !strings.Contains(ascii, "|  `- net0") {
		t.Errorf("not drawn in ASCII:\n%s", ascii)
	}
	colored := unicodePen
	colored.color = true
	escapes := lines(t, func(b *bytes.Buffer) error { return printTree(b, forest(), colored) })
	for _, sequence := range []string{"\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[1;31m", "\x1b[0m"} {
		escapes = strings.ReplaceAll(escapes, sequence, "")
	}
	if escapes != got {
		t.Errorf("colours change more than the colour:\n%q", escapes)
	}
}

func TestIsUTF8(t *testing.T) {
	for _, tt := range []struct {
		all, ctype, lang string
		want             bool
	}{
		{"", "", "", false}, {"", "", "de_DE.UTF-8", true}, {"", "", "C.utf8", true}, {"C", "", "C.UTF-8", false}, {"", "C.UTF-8", "C", true},
	} {
		t.Setenv("LC_ALL", tt.all)
		t.Setenv("LC_CTYPE", tt.ctype)
		t.Setenv("LANG", tt.lang)
		if got := isUTF8(); got != tt.want {
			t.Errorf("%+v: %t", tt, got)
		}
	}
}

func TestDotQuote(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"web1", `"web1"`}, {`a"b`, `"a\"b"`}, {`a\`, `"a\\"`}, {`\N`, `"\\N"`}, {"&lt;", `"&amp;lt;"`}, {"a\nb", `"a\\nb"`},
	} {
		if got := dotQuote(tt.in); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.in, got, tt.want)
		}
	}
	if got := dotQuote("a", "b"); got != `"a\nb"` {
		t.Errorf("two lines: %s", got)
	}
}

// Graphviz itself finds each node and each edge once.
func TestPrintDot(t *testing.T) {
	parents := forest()
	parents[0].NICs[0].Note = `a "quoted" \N note`
	var out bytes.Buffer
	if err := printDot(&out, parents); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if strings.Count(strings.ReplaceAll(strings.ReplaceAll(line, `\\`, ""), `\"`, ""), `"`)%2 != 0 {
			t.Errorf("quotes are not balanced: %s", line)
		}
	}
	dot, err := exec.LookPath("dot")
	if err != nil {
		t.Log("not read by Graphviz itself, for want of it: apt-get install graphviz")
		return
	}
	cmd := exec.Command(dot, "-Tplain")
	cmd.Stdin = &out
	plain, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, plain)
	}
	nodes, edges := 0, 0
	for line := range strings.Lines(string(plain)) {
		switch {
		case strings.HasPrefix(line, "node "):
			nodes++
		case strings.HasPrefix(line, "edge "):
			edges++
		}
	}
	if nodes != 6 || edges != 6 { // three NICs, three guests; five children and a VLAN
		t.Errorf("%d nodes and %d edges:\n%s", nodes, edges, plain)
	}
}
