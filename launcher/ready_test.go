package launcher

import (
	"strings"
	"testing"
)

func TestLineWatch(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, tt := range []struct {
		name, pattern string
		pieces        []string
		want          string // "" for none
	}{
		{"a line", "^ready$", []string{"boot\r\nready\r\nmore"}, "ready"},
		{"a prompt", "login: $", []string{"web1 ", "log", "in: "}, "web1 login: "},
		{"in pieces", "^ready", []string{"\nre", "ady to go"}, "ready to go"},
		{"not over lines", "a.*b", []string{"a\nb"}, ""},
		{"a line that was written over", "^b", []string{"aaa\rb"}, "b"},
		{"in colours", `^\[  OK  \] Reached target Multi-User`, []string{"[\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mMulti-User"}, "[  OK  ] Reached target Multi-User"},
		{"beyond the bound", "ready", []string{long, "ready\n"}, ""},
		{"after one beyond it", "ready", []string{long + long, "\nready"}, "ready"},
		{"another pattern", "(", []string{"ready"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var w lineWatch
			got := ""
			for _, piece := range tt.pieces {
				if line, ok := w.find(tt.pattern, []byte(piece)); ok {
					got = line
				}
			}
			if got != tt.want {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
}
