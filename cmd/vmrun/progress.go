package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// progress shows how a verb gets on with many guests. On a terminal it is a few
// lines that are drawn anew in their place, elsewhere one line for each guest.
type progress struct {
	title  string
	pen    pen
	screen *screen // nil for plain lines

	mu      sync.Mutex
	items   []*item
	begun   time.Time
	halted  bool // no new ones will begin
	stopped chan struct{}
	done    chan struct{}
}

// item is one guest's part.
type item struct {
	name   string
	doing  string // "starting"
	since  time.Time
	state  itemState
	failed string // why
}

type itemState int

const (
	itemWaits itemState = iota
	itemActive
	itemDone
	itemFailed
	itemSkipped
)

// newProgress shows the guests of the given names. The caller ends it.
func newProgress(title string, names []string, plain bool) *progress {
	p := &progress{title: safe(title), pen: penFor(os.Stdout), begun: time.Now(), stopped: make(chan struct{}), done: make(chan struct{})}
	for _, name := range names {
		p.items = append(p.items, &item{name: name})
	}
	if !plain && len(names) > 0 {
		p.screen = newScreen(os.Stdout)
	}
	if p.screen == nil {
		close(p.done)
		return p
	}
	go p.keepDrawing()
	return p
}

// frameTime is how often a terminal is drawn on.
const frameTime = 100 * time.Millisecond

func (p *progress) keepDrawing() {
	defer close(p.done)
	tick := time.NewTicker(frameTime)
	defer tick.Stop()
	for {
		p.draw()
		select {
		case <-tick.C:
		case <-p.screen.Resized:
		case <-p.stopped:
			return
		}
	}
}

// end clears the terminal of everything that is not to stay.
func (p *progress) end() {
	close(p.stopped)
	<-p.done
	if p.screen != nil {
		_ = p.screen.Draw(nil)
		_ = p.screen.Close()
	}
}

func (p *progress) set(name string, change func(*item)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.items, func(it *item) bool { return it.name == name })
	if i < 0 { // it is only waited for
		i = len(p.items)
		p.items = append(p.items, &item{name: name})
	}
	change(p.items[i])
}

// begin says that something is being done to a guest.
func (p *progress) begin(name, doing string) {
	p.set(name, func(it *item) { it.state, it.doing, it.since = itemActive, doing, time.Now() })
}

// finish says that it has been done; without words, that there was nothing to do.
func (p *progress) finish(name, words string) {
	p.set(name, func(it *item) { it.state = itemDone })
	if p.screen == nil && words != "" {
		say("%s: %s", name, words)
	}
}

// fail says why it could not be done, or was not tried.
func (p *progress) fail(name string, err error, skipped bool) {
	p.set(name, func(it *item) {
		it.state, it.failed = itemFailed, err.Error()
		if skipped {
			it.state = itemSkipped
		}
	})
	if p.screen == nil {
		complainOf(err)
	}
}

// interrupt says that nothing more will begin.
func (p *progress) interrupt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.halted = true
	if p.screen == nil {
		warn("interrupted: what is under way comes to an end")
	}
}

func (p *progress) draw() {
	width, height := p.screen.size()
	_ = p.screen.Draw(p.frame(width, height, time.Now())) // a terminal that has gone shows nothing
}

// frame is what is to be seen now: a line for the whole, a bar, what is under way,
// and what has failed, with the last line of the terminal left for the cursor.
func (p *progress) frame(width, height int, now time.Time) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	count := map[itemState]int{}
	var active, failed []string
	for _, it := range p.items {
		count[it.state]++
		switch it.state {
		case itemActive:
			active = append(active, fmt.Sprintf("  %s  %s  %s", it.name, it.doing, span(now.Sub(it.since))))
		case itemFailed:
			failed = append(failed, p.pen.paint(cell{"! " + safe(it.failed), bad}))
		}
	}
	words := []string{fmt.Sprintf("%s: %d of %d", p.title, count[itemDone], len(p.items))}
	for _, c := range []struct {
		state itemState
		word  string
	}{{itemActive, "under way"}, {itemFailed, "failed"}, {itemSkipped, "skipped"}} {
		if count[c.state] > 0 {
			words = append(words, fmt.Sprintf("%d %s", count[c.state], c.word))
		}
	}
	head := strings.Join(words, ", ") + "  " + span(now.Sub(p.begun))
	if p.halted {
		head += "  interrupted: these come to an end"
	}
	lines := []string{p.pen.paint(cell{head, bold}), p.bar(count, width)}
	return append(lines, both(active, failed, height-1-len(lines))...)
}

// both are two lists in room lines: all of each, or as many as there is room for,
// and how many more there are.
func both(first, second []string, room int) []string {
	if len(first)+len(second) <= room {
		return append(first, second...)
	}
	share := max(room/2, room-len(second))
	first = some(first, share)
	return append(first, some(second, room-len(first))...)
}

func some(list []string, room int) []string {
	if len(list) <= room {
		return list
	}
	room = max(room, 1)
	return append(list[:room-1:room-1], fmt.Sprintf("  and %d more", len(list)-room+1))
}

// bar shows how much is done, and in another colour how much never will be.
func (p *progress) bar(count map[itemState]int, width int) string {
	width = max(0, width-2)
	full, empty := "#", "."
	if p.pen.branch == unicodePen.branch {
		full, empty = "█", "░"
	}
	lost := count[itemFailed] + count[itemSkipped]
	total := max(1, len(p.items))
	done := width * count[itemDone] / total
	gone := width*(count[itemDone]+lost)/total - done
	return "  " + p.pen.paint(cell{strings.Repeat(full, done), good}) + p.pen.paint(cell{strings.Repeat(full, gone), bad}) +
		p.pen.paint(cell{strings.Repeat(empty, width-done-gone), faint})
}
