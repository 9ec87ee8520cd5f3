package configs

import (
	"strconv"
	"strings"
	"unicode"
)

// maxQuoted is how much of a value an error repeats.
const maxQuoted = 60

// quote returns a value of the spec for an error message: in quotes, on one
// line, and not longer than a reader wants.
func quote(s string) string {
	if len(s) <= maxQuoted {
		return strconv.Quote(s)
	}
	cut := maxQuoted
	for cut > 0 && s[cut]&0xc0 == 0x80 { // not inside a UTF-8 sequence
		cut--
	}
	return strconv.Quote(s[:cut]) + "…"
}

// printable escapes what would disturb a terminal or break the line.
func printable(s string) string {
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
