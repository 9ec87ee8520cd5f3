package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"vmrun/launcher"
)

// watchEvery is how often all guests are looked at whom nobody has told anything
// of: one without a supervisor, and one that does not answer, send no events.
const watchEvery = 5 * time.Second

// settle is how long one waits for further events after the first.
const settle = 100 * time.Millisecond

// psWatch shows guests for as long as somebody looks on.
type psWatch struct {
	a      *app
	all    bool // those that have ended too
	screen *screen
	full   columns // with all words
	few    columns // for a narrow terminal
	guests map[string]launcher.Status
	shown  map[string]string // by name, what a pipe has been told last
	told   bool              // of the guests that were there at first
}

func (a *app) watchGuests(ctx context.Context, all bool) error {
	w := &psWatch{a: a, all: all, shown: map[string]string{}}
	list, err := launcher.List(ctx, a.runDir)
	if len(list) == 0 && err != nil {
		return err
	}
	w.take(list)
	ctx, stop := context.WithCancel(ctx)
	clock, resized := (<-chan time.Time)(nil), (<-chan os.Signal)(nil)
	if !a.json {
		w.screen = newScreen(os.Stdout)
	}
	if w.screen != nil {
		defer w.screen.Close()
		resized = w.screen.Resized
		ticker := time.NewTicker(time.Second) // ages grow; nobody is asked for that
		defer ticker.Stop()
		clock = ticker.C
	}
	touched, done := make(chan string, 64), make(chan struct{})
	go func() {
		defer close(done)
		followAll(ctx, a.supervisedNames, func(ctx context.Context, name string) { a.tellChanges(ctx, name, touched) })
	}()
	defer func() { stop(); <-done }()
	look := time.NewTicker(watchEvery)
	defer look.Stop()
	for {
		if err := w.show(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case name := <-touched:
			w.observe(ctx, append(gather(touched), name))
		case <-look.C:
			list, _ := launcher.List(ctx, a.runDir) // some may be for others
			w.take(list)
		case <-clock:
		case <-resized:
		}
		if ctx.Err() != nil { // whoever was asked then did not answer
			return nil
		}
	}
}

// tellChanges names a guest whenever something about it may have changed, until its
// supervisor is gone.
func (a *app) tellChanges(ctx context.Context, name string, touched chan<- string) {
	tell := func() {
		select {
		case touched <- name:
		case <-ctx.Done():
		}
	}
	client, err := launcher.Control(ctx, a.runDir, name)
	if err != nil {
		return
	}
	defer client.Close()
	events := client.Subscribe(launcher.EventState, launcher.EventEnded, launcher.EventAddresses, launcher.EventNIC)
	defer events.Close()
	tell() // it may just have come
	defer tell()
	for {
		select {
		case _, ok := <-events.Events():
			if !ok {
				return
			}
			tell()
		case <-ctx.Done():
			return
		}
	}
}

// gather takes what comes in a short while.
func gather(touched <-chan string) (names []string) {
	for end := time.After(settle); ; {
		select {
		case name := <-touched:
			names = append(names, name)
		case <-end:
			return names
		}
	}
}

// observe looks at guests of which something may have changed.
func (w *psWatch) observe(ctx context.Context, names []string) {
	slices.Sort(names)
	var mu sync.Mutex
	_ = follow(ctx, slices.Compact(names), func(ctx context.Context, name string) error {
		s, err := launcher.Observe(ctx, w.a.runDir, name)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			w.guests[name] = s
		case errors.Is(err, launcher.ErrNotFound):
			delete(w.guests, name)
		}
		return nil
	})
}

func (w *psWatch) take(list []launcher.Status) {
	w.guests = map[string]launcher.Status{}
	for _, s := range list {
		w.guests[s.Name] = s
	}
}

// list is what is to be shown, by name.
func (w *psWatch) list() []launcher.Status {
	list := []launcher.Status{}
	for _, name := range slices.Sorted(maps.Keys(w.guests)) {
		if s := w.guests[name]; w.all || !s.State.Rests() {
			list = append(list, s)
		}
	}
	return list
}

func (w *psWatch) show() error {
	switch {
	case w.a.json:
		return w.showJSON()
	case w.screen != nil:
		return w.draw()
	}
	return w.tell()
}

// draw shows the table; without MACs where the terminal is narrow.
func (w *psWatch) draw() error {
	width, _ := w.screen.size()
	lines := w.full.lines(psRows(w.list(), nicWords), 0)
	if slices.ContainsFunc(lines, func(line string) bool { return visibleWidth(line) > width }) {
		lines = w.few.lines(psRows(w.list(), fewNICWords), 0)
	}
	return w.screen.Draw(lines)
}

// fewNICWords names a guest's NICs by what they are on.
func fewNICWords(nics []launcher.NICStatus) string {
	var words []string
	for _, n := range nics {
		words = append(words, n.Lower()+" "+manner(n))
	}
	return strings.Join(words, ", ")
}

// showJSON writes all guests when there is something new about one.
func (w *psWatch) showJSON() error {
	list, now := w.list(), map[string]string{}
	for _, s := range list {
		now[s.Name] = mark(s)
	}
	if w.told && maps.Equal(now, w.shown) {
		return nil
	}
	w.shown, w.told = now, true
	return writeJSON(os.Stdout, list, "")
}

// tell writes a line for each guest that has changed, with the time, so that each
// line stands for itself.
func (w *psWatch) tell() error {
	now := time.Now().Format(time.TimeOnly)
	var rows [][]string
	if !w.told {
		rows = append(rows, append([]string{"TIME"}, psHeader...))
	}
	for _, name := range slices.Sorted(maps.Keys(w.guests)) {
		s := w.guests[name]
		last, known := w.shown[name]
		if last == mark(s) || !known && !w.all && s.State.Rests() {
			continue
		}
		w.shown[name] = mark(s)
		rows = append(rows, append([]string{now}, psRow(s, nicWords)...))
	}
	for _, name := range slices.Sorted(maps.Keys(w.shown)) {
		if _, there := w.guests[name]; !there {
			delete(w.shown, name)
			rows = append(rows, []string{now, name, "cleaned up"})
		}
	}
	w.told = true
	for _, line := range w.full.lines(rows, 0) {
		if _, err := fmt.Println(line); err != nil {
			return err
		}
	}
	return nil
}

// mark is what of a guest is new when it changes: not how old it is, nor how lately
// it has used an address.
func mark(s launcher.Status) string {
	row := psRow(s, nicWords)
	row[psUp] = s.Started.String()
	if s.State == launcher.StateRestarting {
		row[psState] = string(s.State) + s.Restarts.Next.String()
	}
	return fmt.Sprint(row, s.Supervisor, s.Rung, s.Ended)
}
