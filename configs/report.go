package configs

import (
	"cmp"
	"fmt"
	"slices"
)

// maxErrors is how many errors are told of one spec. A file that is no spec at
// all can have one on each line.
const maxErrors = 100

// report collects what is wrong with one spec. A key is complained about once:
// the first complaint is the cause, and a later one its consequence.
type report struct {
	src    source
	base   *report // of the whole file, where this one is of one guest of a fleet
	errs   Errors
	more   int             // errors beyond maxErrors
	known  map[string]bool // keys with a complaint
	broken map[string]bool // keys whose value has the wrong type
	lines  map[string]int  // filled by the first complaint
}

// addf complains about a key.
func (r *report) addf(key, format string, args ...any) {
	if r.isKnown(key) {
		return
	}
	r.mark(key)
	r.place(key, key, fmt.Sprintf(format, args...))
}

// place adds an error whose line is that of one key and which shows another.
func (r *report) place(at, key, msg string) {
	if r.isFull() {
		r.more++
		return
	}
	at, key = r.src.origins.find(at), r.src.origins.find(key)
	r.errs = append(r.errs, &Error{File: r.src.file, Line: lineOf(r.positions(), at), Key: key, Msg: msg})
}

// isFull tells whether a further error is only counted.
func (r *report) isFull() bool { return len(r.errs) >= maxErrors }

// positions returns the line of each key in the file.
func (r *report) positions() map[string]int {
	if r.base != nil {
		return r.base.positions()
	}
	if r.lines == nil {
		r.lines = scan(r.src.text).lines
	}
	return r.lines
}

// mark notes that a key has had its complaint, or that nothing can be said
// about it.
func (r *report) mark(key string) {
	if r.known == nil {
		r.known = map[string]bool{}
	}
	r.known[key] = true
}

// breakf complains about a value of the wrong type, after which nothing more
// is said about what is in it.
func (r *report) breakf(key, format string, args ...any) {
	r.addf(key, format, args...)
	if r.broken == nil {
		r.broken = map[string]bool{}
	}
	r.broken[key] = true
}

func (r *report) isKnown(key string) bool {
	if r.base != nil && r.base.isKnown(r.src.origins.find(key)) || r.known[key] {
		return true
	}
	for ; len(r.broken) > 0 && key != ""; key = around(key) {
		if r.broken[key] {
			return true
		}
	}
	return false
}

// isClean tells whether nothing was complained about so far.
func (r *report) isClean() bool {
	return len(r.errs) == 0 && (r.base == nil || r.base.isClean())
}

// err returns the errors by line, those without one last, or nil.
func (r *report) err() error {
	if len(r.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(r.errs, func(a, b *Error) int {
		if (a.Line == 0) != (b.Line == 0) {
			return cmp.Compare(b.Line, a.Line)
		}
		return cmp.Compare(a.Line, b.Line)
	})
	if r.more > 0 {
		return append(r.errs, &Error{File: r.src.file, Msg: fmt.Sprintf("and %d more: is this a spec?", r.more)})
	}
	return r.errs
}
