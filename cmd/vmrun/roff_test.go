package main

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// page is a manual page that is being written, in man(7).
type page struct {
	strings.Builder
	begun bool // the section has text already
}

func newPage(name, section, short string) *page {
	p := &page{}
	p.line(`.\" Written by make docs: what it says is changed where it comes from.`)
	p.line(`.TH %s %s "" vmrun "The vmrun manual"`, roff(strings.ToUpper(name)), section)
	p.line(".nr HY 0\n.nh\n.ad l\n.ss 12 0") // words can be copied, and blanks are even
	p.section("NAME")
	if first, rest := short[:1], short[1:]; rest[:1] == strings.ToLower(rest[:1]) {
		short = strings.ToLower(first) + rest
	}
	p.line(`%s \- %s`, roff(name), roff(short))
	return p
}

func (p *page) line(format string, args ...any) {
	fmt.Fprintf(p, format+"\n", args...)
	p.begun = true
}

func (p *page) section(title string) {
	p.line(".SH %s", roff(title))
	p.begun = false
}

// term begins an entry of a list: its tag, and what is said of it.
func (p *page) term(tag, text string) {
	p.line(".TP\n%s", tag)
	p.prose(text, ".IP")
}

func strong(text string) string  { return `\fB` + roff(text) + `\fR` }
func slanted(text string) string { return `\fI` + roff(text) + `\fR` }

// special are the characters that roff has other ideas about. Every hyphen is one
// that can be typed.
var special = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, `"`, `\(dq`)

// roff escapes text that comes on one line, or is a macro's argument.
func roff(text string) string {
	var ascii strings.Builder
	for _, r := range special.Replace(text) {
		if r < utf8.RuneSelf {
			ascii.WriteRune(r)
			continue
		}
		fmt.Fprintf(&ascii, `\[u%04X]`, r)
	}
	if strings.HasPrefix(text, ".") {
		return `\&` + ascii.String()
	}
	return ascii.String()
}

// sentence makes one of the words that help has beside a verb, flag or file.
func sentence(words string) string {
	words = strings.ToUpper(words[:1]) + words[1:]
	if strings.HasSuffix(words, "…") {
		return words
	}
	return words + "."
}

// entryLine is an indented line of help with a word and what it means.
var entryLine = regexp.MustCompile(`^( +)(\S(?:.*?\S)?) {2,}(\S.*)$`)

// prose writes text as verbs and comments have it: paragraphs, lists of words and
// what they mean, and other indented lines, which stay as they are. A paragraph
// but the first begins with the macro next.
func (p *page) prose(text, next string) {
	for i, block := range blocks(text) {
		indented := strings.HasPrefix(block[0], " ") || strings.HasPrefix(block[0], "\t")
		switch {
		case indented && entryLine.MatchString(block[0]):
			p.entries(block)
			continue
		case indented:
			p.verbatim(block)
			continue
		case i > 0:
			p.line("%s", next)
		}
		for _, line := range block {
			p.line("%s", roff(line))
		}
	}
}

// blocks splits text at empty lines, and where indentation begins or ends.
func blocks(text string) [][]string {
	var list [][]string
	fresh := true
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if strings.TrimSpace(line) == "" {
			fresh = true
			continue
		}
		if n := len(list); !fresh {
			last := list[n-1][0]
			fresh = (last[0] == ' ') != (line[0] == ' ')
		}
		if fresh {
			list = append(list, nil)
		}
		list[len(list)-1] = append(list[len(list)-1], line)
		fresh = false
	}
	return list
}

// entries writes a list of words and what they mean.
func (p *page) entries(lines []string) {
	p.line(".RS")
	indent := entryLine.FindStringSubmatch(lines[0])[1]
	for _, line := range lines {
		m := entryLine.FindStringSubmatch(line)
		if m != nil && m[1] == indent {
			p.line(".TP\n%s\n%s", strong(m[2]), roff(m[3]))
			continue
		}
		p.line("%s", roff(strings.TrimSpace(line)))
	}
	p.line(".RE")
}

// verbatim writes lines as they are.
func (p *page) verbatim(lines []string) {
	if p.begun {
		p.line(".PP")
	}
	p.line(".RS 4\n.EX")
	for _, line := range lines {
		p.line("%s", roff(strings.TrimPrefix(line, "  ")))
	}
	p.line(".EE\n.RE")
}
