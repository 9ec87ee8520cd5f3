package configs

import (
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxDepth bounds how deeply a spec may nest. A spec needs 3; the TOML decoder
// takes time that grows with the cube of the depth.
const maxDepth = 16

// source is a spec's text, kept so that errors found later can name a line.
type source struct {
	file    string // as the user gave it
	text    string
	origins origins // where the keys of a fleet's guest stand
}

// line returns the line on which a key of the file stands, or the nearest table
// around it, or 0 where there is neither.
func (s source) line(key string) int {
	return lineOf(scan(s.text).lines, key)
}

func lineOf(lines map[string]int, key string) int {
	for ; key != ""; key = around(key) {
		if n, ok := lines[key]; ok {
			return n
		}
	}
	return 0
}

// around returns the path of the table or array that a key is in.
func around(key string) string {
	return key[:max(strings.LastIndexAny(key, ".["), 0)]
}

// joinKey appends one name to a key's path.
func joinKey(path, name string) string {
	if strings.Trim(name, bareKeyChars) != "" || name == "" {
		name = strconv.Quote(name)
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// indexKey appends an array's index to a key's path.
func indexKey(path string, i int) string {
	return path + "[" + strconv.Itoa(i) + "]"
}

const bareKeyChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"

// scanner finds the line of every key of a TOML document. The decoder's own
// positions are wrong inside arrays of tables, and it has none for values in
// arrays.
//
// It judges nothing. At the first thing that is not TOML it stops, which is
// where the decoder stops as well, so that up to there both read the same.
type scanner struct {
	text  string
	pos   int
	line  int
	lines map[string]int // the line of each key's path, where it first stands
	sizes map[string]int // the elements so far of each array of tables
	deep  int            // the line on which maxDepth is exceeded, or 0
}

func scan(text string) *scanner {
	s := &scanner{line: 1, lines: map[string]int{}, sizes: map[string]int{}}
	for _, bom := range []string{"\xff\xfe", "\xfe\xff", "\xef\xbb\xbf"} {
		if rest, ok := strings.CutPrefix(text, bom); ok {
			text = rest // as the decoder does
			break
		}
	}
	s.text = text
	table, ok := "", true
	for depth := 0; ok; {
		s.space(true)
		switch {
		case s.pos >= len(s.text):
			return s
		case s.peek() == '[':
			table, depth, ok = s.header()
		default:
			ok = s.pair(table, depth)
		}
	}
	return s
}

func (s *scanner) peek() byte {
	if s.pos >= len(s.text) {
		return 0
	}
	return s.text[s.pos]
}

// accept reads over a literal, when that is what comes.
func (s *scanner) accept(lit string) bool {
	if !strings.HasPrefix(s.text[s.pos:], lit) {
		return false
	}
	s.pos += len(lit)
	return true
}

// space reads over blanks, and with newlines over line ends and comments too.
func (s *scanner) space(newlines bool) {
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == ' ' || c == '\t':
		case newlines && c == '\r':
		case newlines && c == '\n':
			s.line++
		case newlines && c == '#':
			end := strings.IndexByte(s.text[s.pos:], '\n')
			if end < 0 {
				end = len(s.text) - s.pos
			}
			s.pos += end
			continue
		default:
			return
		}
		s.pos++
	}
}

// header reads "[a.b]" or "[[a.b]]" and returns the path of the table that it
// opens.
func (s *scanner) header() (path string, depth int, ok bool) {
	line := s.line
	s.accept("[")
	array := s.accept("[")
	names, ok := s.names()
	if !ok || !s.accept("]") || array && !s.accept("]") {
		return "", 0, false
	}
	for i, name := range names {
		path = joinKey(path, name)
		last := i == len(names)-1
		if last && array {
			s.mark(path, line)
			s.sizes[path]++
		}
		if n := s.sizes[path]; n > 0 { // the array's newest table is meant
			path = indexKey(path, n-1)
		}
		s.mark(path, line)
	}
	return path, len(names), true
}

// pair reads "a.b = value" in a table.
func (s *scanner) pair(table string, depth int) bool {
	line := s.line
	names, ok := s.names()
	if !ok || !s.accept("=") {
		return false
	}
	path := table
	for _, name := range names {
		path = joinKey(path, name)
		s.mark(path, line)
	}
	s.space(false)
	return s.value(path, depth+len(names))
}

func (s *scanner) mark(path string, line int) {
	if _, ok := s.lines[path]; !ok {
		s.lines[path] = line
	}
}

// names reads a dotted key, and the blanks around it.
func (s *scanner) names() ([]string, bool) {
	var names []string
	for {
		s.space(false)
		name, ok := s.name()
		if !ok || len(names) >= maxDepth {
			s.tooDeep(len(names))
			return nil, false
		}
		names = append(names, name)
		s.space(false)
		if !s.accept(".") {
			return names, true
		}
	}
}

func (s *scanner) tooDeep(depth int) bool {
	if depth < maxDepth {
		return false
	}
	if s.deep == 0 {
		s.deep = s.line
	}
	return true
}

// name reads one part of a key.
func (s *scanner) name() (string, bool) {
	start := s.pos
	quote := s.peek()
	if quote != '"' && quote != '\'' {
		rest := strings.TrimLeft(s.text[s.pos:], bareKeyChars)
		s.pos = len(s.text) - len(rest)
		return s.text[start:s.pos], s.pos > start
	}
	if !s.short(quote) {
		return "", false
	}
	raw := s.text[start:s.pos]
	if quote == '\'' || !strings.Contains(raw, `\`) {
		return raw[1 : len(raw)-1], true
	}
	var v struct{ K string }
	_, err := toml.Decode("K = "+raw, &v) // it knows the escapes
	return v.K, err == nil
}

// value reads a value and marks the keys and elements in it.
func (s *scanner) value(path string, depth int) bool {
	if s.tooDeep(depth) {
		return false
	}
	switch c := s.peek(); {
	case s.accept(`"""`):
		return s.long('"')
	case s.accept(`'''`):
		return s.long('\'')
	case c == '"' || c == '\'':
		return s.short(c)
	case s.accept("["):
		return s.array(path, depth)
	case s.accept("{"):
		return s.inline(path, depth)
	}
	end := strings.IndexAny(s.text[s.pos:], ",]}#\r\n")
	if end < 0 {
		end = len(s.text) - s.pos
	}
	s.pos += end
	return end > 0
}

// short reads a string on one line.
func (s *scanner) short(quote byte) bool {
	for s.pos++; s.pos < len(s.text); s.pos++ {
		switch c := s.text[s.pos]; {
		case c == quote:
			s.pos++
			return true
		case c == '\n':
			return false
		case c == '\\' && quote == '"':
			s.pos++
		}
	}
	return false
}

// long reads a multi-line string after its opening quotes. Up to two quotes
// right before the closing three belong to the text.
func (s *scanner) long(quote byte) bool {
	end := strings.Repeat(string(quote), 3)
	for ; s.pos < len(s.text); s.pos++ {
		switch c := s.text[s.pos]; {
		case c == '\n':
			s.line++
		case c == '\\' && quote == '"' && !strings.HasPrefix(s.text[s.pos+1:], "\n"):
			s.pos++
		case c == quote && s.accept(end):
			for range 2 {
				s.accept(end[:1])
			}
			return true
		}
	}
	return false
}

func (s *scanner) array(path string, depth int) bool {
	for i := 0; ; i++ {
		s.space(true)
		if s.accept("]") {
			return true
		}
		element := indexKey(path, i)
		s.mark(element, s.line)
		if !s.value(element, depth+1) {
			return false
		}
		s.space(true)
		if !s.accept(",") && s.peek() != ']' {
			return false
		}
	}
}

func (s *scanner) inline(path string, depth int) bool {
	for {
		s.space(true)
		if s.accept("}") {
			return true
		}
		if !s.pair(path, depth) {
			return false
		}
		s.space(true)
		if !s.accept(",") && s.peek() != '}' {
			return false
		}
	}
}
