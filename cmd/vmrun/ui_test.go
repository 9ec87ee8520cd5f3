package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
	"vmrun/launcher"
	"vmrun/netsetup"
)

// What vmrun plan prints can be pasted into a shell.
func TestShellQuote(t *testing.T) {
	for _, word := range []string{
		"", "plain", "a b", "it's", `"`, `\`, "$HOME", "`id`", "a;b", "a|b&c", "<>", "(x)", "*?[a]", "{a,b}", "~", "#x", "!x", "a\nb", "a\tb",
		`{"driver":"file"}`, "-x", "a=b", "%s", "äöü", "''", `\'`,
	} {
		out, err := exec.Command("sh", "-c", "printf %s "+shellQuote(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q became %q by way of %s, %v", word, out, shellQuote(word), err)
		}
	}
}

func TestAge(t *testing.T) {
	for _, tt := range []struct {
		ago  time.Duration
		want string
	}{
		{0, "0s"}, {59 * time.Second, "59s"}, {119 * time.Second, "1m59s"}, {2 * time.Minute, "2m"}, {90 * time.Minute, "1h30m"},
		{2 * time.Hour, "2h0m"}, {47*time.Hour + 59*time.Minute, "47h59m"}, {48 * time.Hour, "2d"}, {1000 * time.Hour, "41d"},
	} {
		if got := age(time.Now().Add(-tt.ago)); got != tt.want {
			t.Errorf("%v ago is %q, want %q", tt.ago, got, tt.want)
		}
	}
	if got := age(time.Time{}); got != "-" {
		t.Errorf("never is %q", got)
	}
}

// A terminal's keys go to the guest, up to the escape key.
func TestTypeInto(t *testing.T) {
	for _, tt := range []struct {
		name    string
		keys    []string
		want    string
		escaped bool
	}{
		{"nothing", nil, "", false},
		{"until the end of the file", []string{"root\r", "ls\r"}, "root\rls\r", false},
		{"escape", []string{"root\r", "\x1d"}, "root\r", true},
		{"escape amid", []string{"ab\x1dcd", "ef"}, "ab", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var readers []io.Reader
			for _, k := range tt.keys {
				readers = append(readers, strings.NewReader(k))
			}
			var guest bytes.Buffer
			if escaped := typeInto(&guest, io.MultiReader(readers...)); escaped != tt.escaped || guest.String() != tt.want {
				t.Errorf("typed %q, escaped %t; want %q, %t", guest.String(), escaped, tt.want, tt.escaped)
			}
		})
	}
}

func TestIsSpec(t *testing.T) {
	for arg, want := range map[string]bool{"web1": false, "web1.toml": true, "./web1": true, "/srv/web1": true, "web.1": false} {
		if got := isSpec(arg); got != want {
			t.Errorf("%s: %t", arg, got)
		}
	}
}

// A wrong name is wrong usage, beside whatever else went wrong.
func TestNamesAreUsage(t *testing.T) {
	_, err := (&app{}).guestName("no name")
	var wrong usageError
	if !errors.As(errors.Join(launcher.ErrNotFound, err), &wrong) {
		t.Errorf("%v is not wrong usage", err)
	}
}

// A plan as JSON has the words of ps, and addresses that a person can read.
func TestViewPlan(t *testing.T) {
	p := &launcher.Plan{
		Guest: &configs.Guest{Name: "web1", Path: "/srv/web1.toml"},
		Children: []netsetup.Child{{Name: "net0", Index: 7, NIC: configs.NIC{
			Parent: "eth0", Mode: configs.ModeBridge, Kind: configs.KindMacvtap, MAC: []byte{2, 0, 0, 0, 0, 1}, Queues: 2, MTU: 1500,
			Multicast: configs.MulticastGuest, Trust: configs.TrustNone}}},
		Steps: []launcher.Step{{Name: "record", Text: "write the state file"}},
	}
	data, err := json.Marshal(viewPlan(p, nil))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"nics": []any{map[string]any{"name": "net0", "parent": "eth0", "mode": "bridge", "mac": "02:00:00:00:00:01",
			"ifindex": 7.0, "queues": 2.0, "addresses": []any{}, "mtu": 1500.0, "kind": "macvtap", "multicast": "guest", "trust": "none",
			"all_groups": false, "host_access": false, "vhost": false}},
		"steps":    []any{map[string]any{"name": "record", "text": "write the state file"}},
		"warnings": []any{},
	}
	for key := range want {
		if diff := cmp.Diff(want[key], got[key]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", key, diff)
		}
	}
}
