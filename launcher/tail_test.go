package launcher

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTail(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	for _, tt := range []struct {
		name, text string
		n          int
		want       []string
	}{
		{"empty", "", 3, nil},
		{"blank", "\n \n\n", 3, nil},
		{"fewer than asked for", "a\nb\n", 3, []string{"a", "b"}},
		{"as many", "a\nb\nc\n", 3, []string{"a", "b", "c"}},
		{"more", "a\nb\nc\nd\n", 3, []string{"b", "c", "d"}},
		{"no line end", "a\nb", 1, []string{"b"}},
		{"one line too long", long, 3, []string{long[:4096]}},
		{"a long line before", long + "\nend\n", 2, []string{long[:4091], "end"}},
		{"none asked for", "a\nb\n", 0, []string{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, tail(path, tt.n)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	rotated := filepath.Join(t.TempDir(), "log")
	for path, text := range map[string]string{rotated: "d\n", rotated + olderPart: "a\nb\nc\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"c", "d"}, tail(rotated, 2)); diff != "" {
		t.Errorf("of a log that was just rotated (-want +got):\n%s", diff)
	}
	if got := tail(filepath.Join(t.TempDir(), "missing"), 3); got != nil {
		t.Errorf("of a missing file: %q", got)
	}
	if got := tail(t.TempDir(), 3); got != nil {
		t.Errorf("of a directory: %q", got)
	}
}
