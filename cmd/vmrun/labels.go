package main

import (
	"bufio"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// labels put the names of guests in front of their lines, so that the lines stand
// below each other. On a terminal each guest has its colour, the same every time.
type labels struct {
	out      io.Writer
	terminal bool // words of a guest are made harmless for it
	color    bool

	mu    sync.Mutex
	width int
}

func newLabels(f *os.File, names []string) *labels {
	l := &labels{out: f, terminal: term.IsTerminal(int(f.Fd())), color: penFor(f).color}
	for _, name := range names {
		l.width = max(l.width, len(name))
	}
	return l
}

// say writes a line of vmrun's own about a guest.
func (l *labels) say(name, line string) error { return l.write(name, safe(line)) }

// copy writes what comes from a guest's log, line by line, until that ends.
func (l *labels) copy(name string, log io.Reader) error {
	in := bufio.NewReaderSize(log, 64<<10) // a longer line becomes several
	for {
		line, _, err := in.ReadLine()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		text := string(line)
		if l.terminal {
			var b strings.Builder
			if err := writeLog(&b, strings.NewReader(text+"\n")); err != nil {
				return err
			}
			text = strings.TrimSuffix(b.String(), "\n")
		}
		if err := l.write(name, text); err != nil {
			return err
		}
	}
}

// copyOne writes a log that is alone: to a file or a pipe as it is.
func (l *labels) copyOne(log io.Reader) error {
	if l.terminal {
		return l.copy("", log)
	}
	_, err := io.Copy(l.out, log)
	return err
}

func (l *labels) write(name, line string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if name == "" { // there is but one
		_, err := fmt.Fprintln(l.out, line)
		return err
	}
	l.width = max(l.width, len(name))
	label := fmt.Sprintf("%-*s |", l.width, name)
	if l.color {
		label = "\x1b[" + colorOf(name) + "m" + label + "\x1b[0m"
	}
	_, err := fmt.Fprintln(l.out, label, line)
	return err
}

// nameColors are those of names: no red, which is for what is wrong, and none that
// cannot be seen on black or on white (ECMA-48, SGR; the bright ones are aixterm's).
var nameColors = []string{"36", "33", "32", "35", "34", "96", "92", "95", "94"}

// colorOf is a guest's colour, which follows from its name alone.
func colorOf(name string) string {
	h := fnv.New32a()
	h.Write([]byte(name))
	return nameColors[h.Sum32()%uint32(len(nameColors))]
}
