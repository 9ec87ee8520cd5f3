package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
)

// What is printed may hold words of a guest, of its agent, or of a QEMU that a
// guest has broken into. It all goes through the functions in this file, so that
// nobody can steer a terminal or make up a line. The console is the exception:
// it is a terminal's line.

// safe makes a text fit for a terminal and for one line: what would move the
// cursor, or turn the text's direction, is written as Go writes it.
func safe(text string) string { return clean(text, "") }

func clean(text, keep string) string {
	var b strings.Builder
	for _, r := range text {
		if strings.ContainsRune(keep, r) {
			b.WriteRune(r)
			continue
		}
		b.WriteString(visible(r))
	}
	return b.String()
}

// visible is a character as it is, or as Go writes it where it does not print.
func visible(r rune) string {
	if unicode.IsPrint(r) {
		return string(r)
	}
	return strings.Trim(strconv.QuoteRune(r), "'")
}

// say writes one line to standard output.
func say(format string, args ...any) { fmt.Println(safe(fmt.Sprintf(format, args...))) }

// warn prints something worth knowing that stops nothing.
func warn(format string, args ...any) { complain("vmrun: ", safe(fmt.Sprintf(format, args...))) }

// complain writes lines to standard error, each behind prefix but those that
// begin with a tab, which belong to the one before.
func complain(prefix, text string) {
	for line := range strings.Lines(text) {
		line = clean(strings.TrimRight(line, "\n"), "\t")
		if !strings.HasPrefix(line, "\t") {
			line = prefix + line
		}
		fmt.Fprintln(os.Stderr, line)
	}
}

// oneLine is an error that QEMU may have worded.
type oneLine struct{ err error }

func (e oneLine) Error() string { return safe(e.err.Error()) }
func (e oneLine) Unwrap() error { return e.err }

// cells writes a line of a table. No cell can leave its column.
func cells(table io.Writer, list ...any) {
	words := make([]string, len(list))
	for i, cell := range list {
		words[i] = safe(fmt.Sprint(cell))
	}
	fmt.Fprintln(table, strings.Join(words, "\t"))
}

// printJSON writes v to standard output.
func printJSON(v any) error { return writeJSON(os.Stdout, v, "  ") }

// writeJSON writes v, on one line where indent is "". All that does not print is
// escaped, of which JSON demands a part only (RFC 8259, section 7).
func writeJSON(w io.Writer, v any, indent string) error {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	for _, r := range text.String() {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out.WriteRune(r)
		case r > 0xffff:
			high, low := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
			fmt.Fprintf(out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(out, `\u%04x`, r)
		}
	}
	return out.Flush()
}

// maxSequence bounds a control sequence; what is longer is none.
const maxSequence = 64

// writeLog writes a log for a terminal: colours and movements of the cursor
// (ECMA-48, control sequences) are left out, so are carriage returns at the end
// of a line, and whatever else does not print is shown as Go writes it.
func writeLog(w io.Writer, r io.Reader) error {
	in, out := bufio.NewReader(r), bufio.NewWriter(w)
	for {
		c, _, err := in.ReadRune()
		if errors.Is(err, io.EOF) {
			return out.Flush()
		}
		if err != nil {
			return errors.Join(out.Flush(), err)
		}
		switch {
		case c == '\n' || c == '\t':
			out.WriteRune(c)
		case c == '\r' && endsLine(in):
		case c == '\x1b' && skipSequence(in):
		default:
			out.WriteString(visible(c))
		}
	}
}

// endsLine reports whether nothing but further carriage returns comes before the
// end of the line.
func endsLine(in *bufio.Reader) bool {
	next, _ := in.Peek(maxSequence)
	rest := bytes.TrimLeft(next, "\r")
	return len(rest) > 0 && rest[0] == '\n'
}

// skipSequence skips what follows an escape when that is a whole control
// sequence: parameters, intermediate bytes and a final one.
func skipSequence(in *bufio.Reader) bool {
	next, _ := in.Peek(maxSequence)
	if len(next) == 0 || next[0] != '[' {
		return false
	}
	i := 1
	for i < len(next) && next[i] >= 0x30 && next[i] <= 0x3f {
		i++
	}
	for i < len(next) && next[i] >= 0x20 && next[i] <= 0x2f {
		i++
	}
	if i == len(next) || next[i] < 0x40 || next[i] > 0x7e {
		return false
	}
	_, err := in.Discard(i + 1)
	return err == nil
}
