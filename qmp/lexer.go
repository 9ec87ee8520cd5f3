package qmp

// A lexer finds where a JSON value ends in a stream of bytes. It follows
// QEMU's json-lexer.c and json-streamer.c, so that a client gets the same
// answers from a Server as from QEMU: values need no line ends between them,
// 'single quotes' are strings, a control character or 0xFF inside a value
// forces the parser back into a known state, braces and brackets are counted
// apart. Whether the value is well formed is for the decoder to say; it
// refuses a stray @ once, where QEMU goes on to refuse what follows as well.
type lexer struct {
	state           lexState
	quote           byte
	braces, bracket int
}

type lexState uint8

const (
	lexIdle    lexState = iota // between values
	lexScalar                  // a bare word or number outside of any object
	lexNested                  // inside an object or array
	lexString                  // inside a string
	lexEscape                  // after a backslash in a string
	lexRecover                 // after an error, looking for firm ground
)

type verdict uint8

const (
	lexMore verdict = iota // the value goes on
	lexDone                // the value is complete
	lexBad                 // this can be no JSON
	lexDeep                // nested deeper than maxDepth
)

// maxDepth is MAX_NESTING of QEMU's json-streamer.c.
const maxDepth = 1024

// scan consumes b up to the end of a value, at most, and returns how many
// bytes it took. When idle, skip goes first.
func (l *lexer) scan(b []byte) (int, verdict) {
	for i := 0; i < len(b); i++ {
		if l.state == lexScalar && endsScalar(b[i]) {
			l.state = lexIdle
			return i, lexDone
		}
		if v := l.step(b[i]); v != lexMore {
			return i + 1, v
		}
	}
	return len(b), lexMore
}

// skip returns how many bytes at the start of b belong to no value: white
// space and, after an error, all up to the next promising byte.
func (l *lexer) skip(b []byte) int {
	for i, c := range b {
		if l.state == lexRecover && promising(c) {
			l.state = lexIdle
		}
		if l.state == lexRecover || l.state == lexIdle && isSpace(c) {
			continue
		}
		return i
	}
	return len(b)
}

// idle reports that no value has begun.
func (l *lexer) idle() bool { return l.state == lexIdle || l.state == lexRecover }

func (l *lexer) step(c byte) verdict {
	switch l.state {
	case lexString:
		return l.inString(c)
	case lexEscape:
		if isBreak(c) {
			return l.bad()
		}
		l.state = lexString
		return lexMore
	case lexScalar:
		return lexMore
	}
	return l.between(c)
}

func (l *lexer) inString(c byte) verdict {
	switch {
	case isBreak(c):
		return l.bad()
	case c == '\\':
		l.state = lexEscape
	case c == l.quote:
		return l.endToken()
	}
	return lexMore
}

// between handles a byte outside of strings.
func (l *lexer) between(c byte) verdict {
	switch c {
	case ' ', '\t', '\r', '\n':
		return lexMore
	case '"', '\'':
		l.state, l.quote = lexString, c
		return lexMore
	case '{':
		l.braces++
	case '[':
		l.bracket++
	case '}':
		l.braces--
	case ']':
		l.bracket--
	case ',', ':':
	default:
		if isBreak(c) {
			return l.bad()
		}
		if l.state == lexIdle {
			l.state = lexScalar
		}
		return lexMore
	}
	return l.endToken()
}

// endToken decides, as json_message_process_token does, whether the value is
// complete after a structural character or a string.
func (l *lexer) endToken() verdict {
	if l.braces+l.bracket > maxDepth {
		*l = lexer{}
		return lexDeep
	}
	if l.braces < 0 || l.bracket < 0 || l.braces == 0 && l.bracket == 0 {
		*l = lexer{}
		return lexDone
	}
	l.state = lexNested
	return lexMore
}

func (l *lexer) bad() verdict {
	*l = lexer{state: lexRecover}
	return lexBad
}

// promising bytes are where the state IN_RECOVERY of json-lexer.c ends.
func promising(c byte) bool {
	switch c {
	case '{', '}', '[', ']', ',', ':':
		return true
	}
	return isBreak(c) && c != '\t'
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// isBreak reports bytes that no JSON text holds: control characters, and
// 0xFE and 0xFF, which clients send to make the parser start afresh.
func isBreak(c byte) bool { return c < 0x20 || c >= 0xFE }

func endsScalar(c byte) bool {
	switch c {
	case ' ', '{', '}', '[', ']', ',', ':', '"', '\'':
		return true
	}
	return isBreak(c)
}
