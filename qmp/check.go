package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"
)

// checkStrict refuses what encoding/json accepts and QEMU's parser does not:
// duplicate keys, invalid UTF-8, lone surrogates and noncharacters. It
// matters because QEMU cannot say which command such a text was: its answer
// carries no id, and the command would wait for its context to end.
func checkStrict(value []byte) error {
	if !utf8.Valid(value) || !json.Valid(value) || !surrogatesPaired(value) {
		return errSyntax
	}
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.UseNumber()
	return checkTokens(dec)
}

// scope is one open object or array.
type scope struct {
	keys    map[string]struct{} // nil in an array
	wantKey bool
}

func checkTokens(dec *json.Decoder) error {
	var open []scope
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errSyntax
		}
		switch d, _ := tok.(json.Delim); d {
		case '{':
			open = append(open, scope{keys: map[string]struct{}{}, wantKey: true})
			continue
		case '[':
			open = append(open, scope{})
			continue
		case '}', ']':
			open = open[:len(open)-1]
		}
		text, isText := tok.(string)
		if isText && hasNoncharacter(text) {
			return errSyntax
		}
		if len(open) == 0 {
			continue
		}
		if !open[len(open)-1].take(text, isText) {
			return errSyntax
		}
	}
}

// take notes one complete token of an object and reports whether it may
// stand there; only a key that has been there before may not.
func (s *scope) take(text string, isText bool) bool {
	if s.keys == nil {
		return true
	}
	if !s.wantKey || !isText {
		s.wantKey = true
		return true
	}
	_, seen := s.keys[text]
	s.keys[text] = struct{}{}
	s.wantKey = false
	return !seen
}

// hasNoncharacter follows is_valid_codepoint in QEMU's util/unicode.c.
func hasNoncharacter(s string) bool {
	for _, r := range s {
		if r >= 0xFDD0 && r <= 0xFDEF || r&0xFFFE == 0xFFFE {
			return true
		}
	}
	return false
}

// surrogatesPaired looks at the raw text, where \ud800 is still to be told
// from the replacement character that encoding/json makes of it.
func surrogatesPaired(value []byte) bool {
	low := false // a low surrogate must come next
	for i := 0; i < len(value); i++ {
		if value[i] != '\\' {
			if low {
				return false
			}
			continue
		}
		hi := byte(0)
		if i+5 < len(value) && value[i+1] == 'u' {
			hi = surrogateKind(value[i+2], value[i+3])
			i += 4
		}
		i++
		if low != (hi == 'l') {
			return false
		}
		low = hi == 'h'
	}
	return !low
}

// surrogateKind tells high ('h') and low ('l') surrogates by the first two
// hex digits of their escape.
func surrogateKind(a, b byte) byte {
	if a != 'd' && a != 'D' {
		return 0
	}
	switch b {
	case '8', '9', 'a', 'b', 'A', 'B':
		return 'h'
	case 'c', 'd', 'e', 'f', 'C', 'D', 'E', 'F':
		return 'l'
	}
	return 0
}
