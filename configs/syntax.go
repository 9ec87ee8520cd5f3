package configs

import (
	"strings"

	"github.com/BurntSushi/toml"
)

// syntaxHints says what to do about the decoder's commonest complaints, found
// by a part of their text.
var syntaxHints = []struct{ part, hint string }{
	{"'guest' was already created and", "each guest begins with [[guest]], and its other tables stand below"},
	{"was already created and cannot be used as an array", "a table is either [name] or [[name]] throughout: disks and NICs are [[disk]] and [[nic]]"},
	{"has already been defined", "each key stands once in its table: remove one (a further disk or NIC starts with [[disk]] or [[nic]])"},
	{"expected value but found '\\n'", "write a value after the '='"},
	{"expected value but found", "text is written in quotes, truth as true or false"},
	{"expected a top-level item to end with a newline", "one key to a line, and a number with a unit in quotes, as \"1GiB\""},
	{"strings cannot contain newlines", "close the quotes on the same line"},
	{"unexpected EOF; expected '\"'", "close the quotes"},
	{"unexpected EOF; expected \"'\"", "close the quotes"},
	{"unexpected EOF; expected '\"\"\"'", "close the text with three quotes"},
	{"unexpected EOF; expected key separator", "write key = value"},
	{"expected '.' or '='", "write key = value"},
	{"to end table name", "a table is opened with [name] or [[name]]"},
	{"end of table array name", "an array's table is opened with [[name]]"},
	{"invalid escape", "write \\\\ for a backslash, or put the text in single quotes"},
	{"invalid datetime", "text such as a MAC address is written in quotes"},
	{"invalid UTF-8", "save the file as UTF-8"},
	{"NULL bytes", "save the file as UTF-8"},
	{"array terminator", "separate the values with commas, and close the array with ]"},
	{"inline table terminator", "separate the pairs with commas, and close the table with }"},
	{"out of range", "use a smaller number"},
}

// syntaxMessage returns the decoder's complaint in this package's manner, with
// a hint where there is one.
func syntaxMessage(pe toml.ParseError) string {
	msg := "not valid TOML: " + strings.Replace(printable(strings.TrimSuffix(pe.Message, ".")), "Key ", "key ", 1)
	for _, h := range syntaxHints {
		if strings.Contains(pe.Message, h.part) {
			return msg + ": " + h.hint
		}
	}
	return msg
}
