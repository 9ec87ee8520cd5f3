package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// paper is a terminal that does what a screen asks of it, and fails on anything
// else.
type paper struct {
	t             *testing.T
	width, height int
	rows          []string // from the top of what was ever written
	row, col      int
	wraps         bool
}

func newPaper(t *testing.T, width, height int) *paper {
	return &paper{t: t, width: width, height: height, rows: []string{""}, wraps: true}
}

func (p *paper) screen() *screen {
	return &screen{out: p, size: func() (int, int) { return p.width, p.height }}
}

func (p *paper) Write(text []byte) (int, error) {
	rest := string(text)
	for len(rest) > 0 {
		if end := strings.IndexAny(rest, "ABCDHJKmhl"); strings.HasPrefix(rest, "\x1b[") {
			p.control(rest[2 : end+1])
			rest = rest[end+1:]
			continue
		}
		r := []rune(rest)[0]
		rest = rest[len(string(r)):]
		switch r {
		case '\r':
			p.col = 0
		case '\n':
			p.down()
		default:
			p.put(r)
		}
	}
	return len(text), nil
}

func (p *paper) down() {
	p.row, p.col = p.row+1, 0
	if p.row == len(p.rows) {
		p.rows = append(p.rows, "")
	}
}

func (p *paper) put(r rune) {
	if p.col == p.width && p.wraps {
		p.down()
	}
	line := []rune(p.rows[p.row])
	at := min(p.col, p.width-1)
	for len(line) <= at {
		line = append(line, ' ')
	}
	line[at] = r
	p.rows[p.row], p.col = string(line), at+1
}

func (p *paper) control(code string) {
	var up int
	switch {
	case code == "?7l", code == "?7h":
		p.wraps = code == "?7h"
	case code == "K":
		p.rows[p.row] = string([]rune(p.rows[p.row])[:min(p.col, len([]rune(p.rows[p.row])))])
	case code == "J":
		p.control("K")
		p.rows = p.rows[:p.row+1]
	case strings.HasSuffix(code, "m"):
	default:
		if _, err := fmt.Sscanf(code, "%dA", &up); err != nil || up >= p.height || up > p.row {
			p.t.Errorf("control sequence %q in row %d", code, p.row)
		}
		p.row -= min(up, p.row)
	}
}

// narrow makes the terminal narrower, which wraps what does not fit any more.
func (p *paper) narrow(width int) {
	var rows []string
	for i, row := range p.rows {
		if i == p.row {
			p.row = len(rows)
		}
		for r := []rune(row); ; r = r[width:] {
			rows = append(rows, string(r[:min(width, len(r))]))
			if len(r) <= width {
				break
			}
		}
	}
	p.width, p.rows = width, rows
}

func (p *paper) want(rows ...string) {
	p.t.Helper()
	if diff := cmp.Diff(append(rows, ""), p.rows); diff != "" {
		p.t.Errorf("(-want +got):\n%s", diff)
	}
}

// A drawing takes the place of the one before, whatever its size, and what was
// above it stays.
func TestScreen(t *testing.T) {
	p := newPaper(t, 10, 5)
	fmt.Fprintln(p, "$ vmrun")
	s := p.screen()
	s.Draw([]string{"one", "two", "three"})
	p.want("$ vmrun", "one", "two", "three")
	s.Draw([]string{"1", "\x1b[31mtwo\x1b[0m"})
	p.want("$ vmrun", "1", "two")
	s.Print("a line that stays")
	p.want("$ vmrun", "a line tha", "t stays", "1", "two")
	s.Draw([]string{"0123456789", "0123456789A", "c", "d", "e", "f"})
	p.want("$ vmrun", "a line tha", "t stays", "0123456789", "012345678…", "c", "… 3 more")
	s.Draw([]string{"0123456789", "b", "c", "d"})
	p.want("$ vmrun", "a line tha", "t stays", "0123456789", "b", "c", "d")
	p.height = 10 // what has left it by the top cannot be reached
	p.narrow(6)
	s.Draw([]string{"0123456789", "b"})
	p.want("$ vmru", "n", "a line", " tha", "t stay", "s", "01234…", "b")
	fmt.Fprint(p, "^C")
	s.Close()
	p.want("$ vmru", "n", "a line", " tha", "t stay", "s", "01234…", "b")
	if !p.wraps {
		t.Error("the terminal does not wrap any more")
	}
}

// What is the same is not written again.
func TestScreenIsQuiet(t *testing.T) {
	var out strings.Builder
	width := 80
	s := &screen{out: &out, size: func() (int, int) { return width, 24 }}
	s.Draw([]string{"a", "b"})
	before := out.Len()
	s.Draw(slices.Clone([]string{"a", "b"}))
	if out.Len() != before {
		t.Errorf("wrote %q", out.String()[before:])
	}
	width = 70
	s.Draw([]string{"a", "b"})
	if out.Len() == before {
		t.Error("wrote nothing for a terminal of another size")
	}
}

func TestCut(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"", ""}, {"12345", "12345"}, {"123456", "1234…"}, {"äöüßéè", "äöüß…"},
		{"\x1b[1;31m12345\x1b[0m", "\x1b[1;31m12345\x1b[0m"}, {"\x1b[1;31m123456\x1b[0m", "\x1b[1;31m1234\x1b[0m…"},
	} {
		if got := cut(tt.line, 5); got != tt.want {
			t.Errorf("%q became %q, want %q", tt.line, got, tt.want)
		}
	}
}
