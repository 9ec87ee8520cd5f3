package configs

import (
	"fmt"
	"strings"
)

// Error is one thing that is wrong with a spec: where it stands, and what to
// do about it.
type Error struct {
	File string // as the user gave it
	Line int    // from 1; 0: not about one line
	Key  string // path of the key, arrays counted from 0: "nic[1].mode"; "" for the whole file
	Msg  string
}

// Error returns "file:line: key: message", without the parts that are unknown.
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		b.WriteByte(':')
		if e.Line > 0 {
			fmt.Fprintf(&b, "%d:", e.Line)
		}
		b.WriteByte(' ')
	}
	if e.Key != "" {
		b.WriteString(e.Key)
		b.WriteString(": ")
	}
	b.WriteString(e.Msg)
	return b.String()
}

// Errors is everything that is wrong with a spec, sorted by line.
type Errors []*Error

// Error returns one line for each error.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives errors.Is and errors.As each error in turn.
func (es Errors) Unwrap() []error {
	errs := make([]error, len(es))
	for i, e := range es {
		errs[i] = e
	}
	return errs
}

// Errorf returns an error about a key of the guest's spec, for rules that only
// the host can check. The key is a path like "nic[0].parent"; when the file
// does not hold it, the line is that of the nearest table around it. For a
// fleet's guest the error shows the key as it stands in the file, which may be
// in a template: "template.web.nic[0].parent".
func (g *Guest) Errorf(key, format string, args ...any) *Error {
	key = g.source.origins.find(key)
	return &Error{File: g.source.file, Line: g.source.line(key), Key: key, Msg: fmt.Sprintf(format, args...)}
}
