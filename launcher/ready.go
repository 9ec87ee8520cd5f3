package launcher

import (
	"bytes"
	"regexp"
)

// maxLine is how much of a line of the console is looked at, in bytes.
const maxLine = 4096

// lineWatch finds a line that fits a regular expression in what a console prints.
type lineWatch struct {
	source string // of pattern
	like   *regexp.Regexp
	line   []byte // the last one, as far as it has come
}

// find takes the next piece of the console's output, and returns a line that
// fits. A line need not have ended: a prompt does not.
func (w *lineWatch) find(source string, data []byte) (line string, ok bool) {
	if w.like == nil || w.source != source {
		like, err := regexp.Compile(source)
		if err != nil {
			return "", false // of a spoilt record: the spec was checked
		}
		w.source, w.like = source, like
	}
	for len(data) > 0 {
		end := bytes.IndexAny(data, "\r\n")
		part := data
		if end >= 0 {
			part = data[:end]
		}
		w.line = append(w.line, part[:min(len(part), maxLine-len(w.line))]...)
		if text := escapes.ReplaceAll(w.line, nil); w.like.Match(text) {
			return string(text), true
		}
		if end < 0 {
			return "", false
		}
		w.line, data = w.line[:0], data[end+1:]
	}
	return "", false
}

// escapes are those by which a terminal is coloured and steered (ECMA-48, 5.4),
// as they stand amid what systemd prints.
var escapes = regexp.MustCompile("\x1b\\[[0-?]*[ -/]*[@-~]")
