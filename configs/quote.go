package configs

import (
	"strconv"
	"strings"
	"unicode"
)

// maxQuoted is how much of a value an error repeats.
const maxQuoted = 60

// maxRepeated is how much an error repeats of either end of the decoder's words,
// which can hold a value too.
const maxRepeated = 150

// quote returns a value of the spec for an error message: in quotes, on one
// line, and not longer than a reader wants.
func quote(s string) string {
	if len(s) <= maxQuoted {
		return strconv.Quote(s)
	}
	return strconv.Quote(begin(s, maxQuoted)) + "…"
}

// begin cuts a text to n bytes at most, and not inside a UTF-8 sequence.
func begin(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}

// printable escapes what would disturb a terminal or break the line, and leaves
// out the middle of what is too long for one.
func printable(s string) string {
	if len(s) > 2*maxRepeated {
		end := strings.ToValidUTF8(s[len(s)-maxRepeated:], "")
		return printable(begin(s, maxRepeated)) + "…" + printable(end)
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
	}
	return b.String()
}
