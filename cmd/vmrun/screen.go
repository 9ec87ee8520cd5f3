package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// screen is the end of what a terminal shows, drawn anew in place: what was there
// before stays above it, and the last drawing stays when the verb ends. Each
// drawing is one write that leaves the cursor below the lines, visible, and the
// terminal as it was: whoever is killed in between has nothing to restore.
//
// Lines have to be fit for a terminal, as safe makes them; they may have colours.
type screen struct {
	Resized <-chan os.Signal // the terminal has another size: draw again

	out     io.Writer
	size    func() (width, height int)
	resized chan os.Signal
	drawn   []string // what the terminal shows
	width   int      // of the terminal when that was drawn
	height  int
}

// newScreen is the one on a terminal, or nil where f is none that can be drawn on.
// The caller closes it.
func newScreen(f *os.File) *screen {
	if !isTerminal(f) {
		return nil
	}
	s := &screen{out: f, resized: make(chan os.Signal, 1)}
	s.Resized = s.resized
	s.size = func() (width, height int) {
		width, height, err := term.GetSize(int(f.Fd()))
		if err != nil || width == 0 || height == 0 { // a serial line does not know its size
			return 80, 24
		}
		return width, height
	}
	signal.Notify(s.resized, unix.SIGWINCH)
	return s
}

// isTerminal reports whether f is a terminal that knows how to move a cursor.
func isTerminal(f *os.File) bool {
	return term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// Draw shows lines in place of those drawn before: what fits into the terminal. Of
// lines that do not the last ones are left out, and counted. Nothing is written
// where nothing has changed.
func (s *screen) Draw(lines []string) error {
	width, height := s.size()
	lines = fit(lines, width, height)
	if width == s.width && height == s.height && equalLines(lines, s.drawn) {
		return nil
	}
	return s.write(nil, lines, width, height)
}

// Print writes lines that stay, above the drawing.
func (s *screen) Print(lines ...string) error {
	width, height := s.size()
	return s.write(lines, fit(s.drawn, width, height), width, height)
}

// Close leaves the drawing where it is. What the terminal has echoed below it, ^C
// for example, is wiped.
func (s *screen) Close() error {
	if s.resized != nil {
		signal.Stop(s.resized)
	}
	_, err := io.WriteString(s.out, "\r\x1b[J")
	return err
}

// The control sequences are of ECMA-48, and of DEC's terminals, as all today's
// terminals know them (console_codes(4)).
func (s *screen) write(above, lines []string, width, height int) error {
	var b strings.Builder
	b.WriteString("\r")
	if up := min(rows(s.drawn, width), height-1); up > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", up)
	}
	for _, line := range above {
		b.WriteString(line + "\x1b[K\n")
	}
	b.WriteString("\x1b[?7l") // no line wraps, however wide its characters are
	for _, line := range lines {
		b.WriteString(line)
		if visibleWidth(line) < width { // or it would wipe the last character
			b.WriteString("\x1b[K")
		}
		b.WriteString("\n")
	}
	b.WriteString("\x1b[?7h\x1b[J")
	s.drawn, s.width, s.height = lines, width, height
	_, err := io.WriteString(s.out, b.String())
	return err
}

// rows is how many rows the lines take: a terminal that has become narrower has
// wrapped them.
func rows(lines []string, width int) (n int) {
	for _, line := range lines {
		n += max(1, (visibleWidth(line)+width-1)/width)
	}
	return n
}

// fit cuts lines to what a terminal has room for, with the cursor below them.
func fit(lines []string, width, height int) []string {
	most := max(1, height-1)
	fitting := make([]string, 0, min(len(lines), most))
	for i, line := range lines {
		if i == most-1 && len(lines) > most {
			line = fmt.Sprintf("… %d more", len(lines)-i)
		}
		if i == most {
			break
		}
		fitting = append(fitting, cut(line, width))
	}
	return fitting
}

// cut shortens a line with colours to a width.
func cut(line string, width int) string {
	if visibleWidth(line) <= width {
		return line
	}
	var b strings.Builder
	room, colored := width-1, false
	for len(line) > 0 {
		if n := sequence(line); n > 0 {
			colored = true
			b.WriteString(line[:n])
			line = line[n:]
			continue
		}
		if room == 0 {
			break
		}
		_, n := utf8.DecodeRuneInString(line)
		b.WriteString(line[:n])
		line = line[n:]
		room--
	}
	if colored {
		b.WriteString("\x1b[0m")
	}
	return b.String() + "…"
}

// visibleWidth is how many columns a line takes, its colours not counted. A
// character that takes two counts as one: that a line does not wrap does not hang
// on it.
func visibleWidth(line string) (n int) {
	for len(line) > 0 {
		if skip := sequence(line); skip > 0 {
			line = line[skip:]
			continue
		}
		_, size := utf8.DecodeRuneInString(line)
		line = line[size:]
		n++
	}
	return n
}

// sequence is the length of the colour that a line begins with, or 0.
func sequence(line string) int {
	if !strings.HasPrefix(line, "\x1b[") {
		return 0
	}
	return strings.IndexByte(line, 'm') + 1
}

func equalLines(a, b []string) bool { return strings.Join(a, "\n") == strings.Join(b, "\n") }
