package main

import (
	"strings"
	"unicode/utf8"
)

// columns lays out rows of a table that is shown again and again: a column that
// was wide stays so, and what is below does not move about.
type columns struct {
	widths  []int
	numbers bool // all but the first are aligned to the right
}

// minName is how much of a guest's name is shown however narrow the terminal is.
const minName = 8

// lines are the rows as lines, two spaces between their cells. Where they are wider
// than limit, if that is not 0, the first cells are cut as far as that helps.
func (c *columns) lines(rows [][]string, limit int) []string {
	total := 0
	for _, row := range rows {
		for i := range row {
			row[i] = safe(row[i])
			if i == len(c.widths) {
				c.widths = append(c.widths, 0)
			}
			c.widths[i] = max(c.widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for _, w := range c.widths {
		total += w + 2
	}
	first := 0
	if len(c.widths) > 0 {
		first = c.widths[0]
	}
	if over := total - 2 - limit; c.numbers && limit > 0 && over > 0 {
		first = max(min(first, minName), first-over)
	}
	lines := make([]string, len(rows))
	for i, row := range rows {
		lines[i] = c.line(row, first)
	}
	return lines
}

func (c *columns) line(row []string, first int) string {
	var b strings.Builder
	for i, cell := range row {
		width := c.widths[i]
		if i == 0 {
			cell, width = cut(cell, first), first
		} else {
			b.WriteString("  ")
		}
		gap := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(cell)))
		if c.numbers && i > 0 {
			b.WriteString(gap + cell)
			continue
		}
		b.WriteString(cell + gap)
	}
	return strings.TrimRight(b.String(), " ")
}
