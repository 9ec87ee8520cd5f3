package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// chart is a picture of some cases.
type chart struct {
	file, title, unit string
	cases             []string
}

var chartList = []chart{
	{"life.svg", "A guest's life", "ms, logarithmic; less is better", []string{"start to running", "kill to gone", "start to first frame", "power button to gone", "QEMU killed to cleaned up"}},
	{"list.svg", "To tell of guests", "ms, logarithmic; less is better", []string{"list of 1 guests", "list of 10 guests", "list of 100 guests", "status of one of 1", "status of one of 10", "status of one of 100"}},
	{"streams.svg", "Streams", "Mbit/s, logarithmic; more is better", []string{"TCP guest to outside", "TCP guest to outside, IPv6", "TCP outside to guest", "TCP guest to guest"}},
	{"fleet.svg", "The start of a guest, by how many there are", "ms, logarithmic", nil},
}

var colours = map[string]string{"QEMU alone": "#9aa0a6", "by hand": "#5f6368", "control": "#bdc1c6", "libvirt": "#e8710a", "vmrun": "#1a73e8"}

func (r *report) charts() map[string]string {
	files := map[string]string{}
	for _, c := range chartList {
		if c.cases == nil {
			files[c.file] = r.lines(c)
			continue
		}
		files[c.file] = r.bars(c)
	}
	return files
}

// scale maps figures to a length on a logarithmic axis of whole decades.
type scale struct{ low, high, length float64 }

func newScale(figures sample, length float64) scale {
	return scale{math.Floor(math.Log10(figures.quantile(0))), math.Ceil(math.Log10(figures.quantile(1)) + 0.01), length}
}

func (s scale) at(v float64) float64 { return (math.Log10(v) - s.low) / (s.high - s.low) * s.length }

func (s scale) marks() (list []float64) {
	for e := s.low; e <= s.high; e++ {
		list = append(list, math.Pow(10, e))
	}
	return list
}

// picture is an SVG of a size, with a title.
type picture struct{ strings.Builder }

func newPicture(c chart, width, height float64) *picture {
	p := &picture{}
	p.put(`<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%g" viewBox="0 0 %g %g" font-family="sans-serif" font-size="12">`, width, height, width, height)
	p.put(`<rect width="%g" height="%g" fill="#fff"/>`, width, height)
	p.text(10, 20, "start", "#000", c.title+" ("+c.unit+")")
	return p
}

func (p *picture) put(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

func (p *picture) text(x, y float64, anchor, colour, words string) {
	p.put(`<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">%s</text>`, x, y, anchor, colour, html.EscapeString(words))
}

func (p *picture) line(x1, y1, x2, y2 float64, colour string) {
	p.put(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`, x1, y1, x2, y2, colour)
}

func (p *picture) legend(x, y float64, columns []string) {
	for _, c := range columns {
		p.put(`<rect x="%.1f" y="%.1f" width="10" height="10" fill="%s"/>`, x, y-9, colours[c])
		p.text(x+14, y, "start", "#000", c)
		x += 30 + 7*float64(len(c))
	}
}

func (p *picture) String() string { return p.Builder.String() + "</svg>\n" }

// present are the contenders that have a figure in any of the cases.
func (r *report) present(cases []string) (list []string, all sample) {
	for _, c := range columns {
		n := len(all)
		for _, name := range cases {
			if s, ok := r.find(name).Figures[c]; ok && s.First > 0 {
				all = append(all, s.First, s.Third)
			}
		}
		if len(all) > n {
			list = append(list, c)
		}
	}
	return list, all
}

// bars has a bar for each case and contender: the median, and a line from the first
// to the third quartile.
func (r *report) bars(c chart) string {
	const left, right, thick, gap = 190, 70, 12, 14
	present, all := r.present(c.cases)
	height := 60 + float64(len(c.cases))*(float64(len(present))*thick+gap)
	p := newPicture(c, 760, height)
	if len(all) == 0 {
		return p.String()
	}
	s := newScale(all, 760-left-right)
	for _, mark := range s.marks() {
		p.line(left+s.at(mark), 46, left+s.at(mark), height-8, "#dadce0")
		p.text(left+s.at(mark), 42, "middle", "#5f6368", fmt.Sprintf("%g", mark))
	}
	y := 52.0
	for _, name := range c.cases {
		p.text(left-8, y+float64(len(present))*thick/2+4, "end", "#000", name)
		for _, who := range present {
			if f, ok := r.find(name).Figures[who]; ok && f.First > 0 {
				p.put(`<rect x="%d" y="%.1f" width="%.1f" height="%d" fill="%s"/>`, left, y, s.at(f.Median), thick-2, colours[who])
				p.line(left+s.at(f.First), y+thick/2-1, left+s.at(f.Third), y+thick/2-1, "#000")
				p.text(left+s.at(f.Third)+5, y+thick-3, "start", "#000", digits(f.Median))
			}
			y += thick
		}
		y += gap
	}
	p.legend(330, 20, present)
	return p.String()
}

// lines has a line for each contender: what the start of the nth guest took.
func (r *report) lines(c chart) string {
	const left, right, top, bottom, width, height = 60, 20, 40, 40, 760, 340
	var cases []string
	for n := range fleetSize {
		cases = append(cases, each(n+1).name)
	}
	present, all := r.present(cases)
	p := newPicture(c, width, height)
	if len(all) == 0 {
		return p.String()
	}
	s := newScale(all, height-top-bottom)
	y := func(v float64) float64 { return height - bottom - s.at(v) }
	x := func(n int) float64 { return left + float64(n)/fleetSize*(width-left-right) }
	for _, mark := range s.marks() {
		p.line(left, y(mark), width-right, y(mark), "#dadce0")
		p.text(left-6, y(mark)+4, "end", "#5f6368", fmt.Sprintf("%g", mark))
	}
	for n := 10; n <= fleetSize; n += 10 {
		p.text(x(n), height-bottom+16, "middle", "#5f6368", fmt.Sprint(n))
	}
	for _, who := range present {
		var points []string
		for n, name := range cases {
			if f, ok := r.find(name).Figures[who]; ok {
				points = append(points, fmt.Sprintf("%.1f,%.1f", x(n+1), y(f.Median)))
			}
		}
		p.put(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.Join(points, " "), colours[who])
	}
	p.legend(330, height-6, present)
	return p.String()
}
