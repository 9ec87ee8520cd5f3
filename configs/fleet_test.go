package configs

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFleetOfTwo(t *testing.T) {
	f, err := ParseFleet("/specs/lab.toml", []byte("[defaults]\nboot.kernel = \"k\"\n[[guest]]\nname = \"a\"\n[[guest]]\nname = \"b\"\nboot.cmdline = \"x\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Guests) != 2 || f.Guest("b").Boot != (Boot{Kernel: "/specs/k", Cmdline: "x"}) || f.Guest("c") != nil {
		t.Errorf("fleet %+v", f)
	}
	want := []Difference{{"name", `"a"`, `"b"`}, {"boot.cmdline", "", `"x"`}}
	if diff := cmp.Diff(want, Differences(f.Guests[0], f.Guests[1])); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
}
