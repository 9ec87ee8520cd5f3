package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"vmrun/launcher"
)

// work is what up and down do to the guests of a file: it carries schedules out,
// shows how it gets on, and keeps count.
type work struct {
	app   *app
	title string // "up lab.toml"
	path  string
	shown *progress
	do    func(ctx context.Context, j launcher.Job) result
	ready func(ctx context.Context, j launcher.Job) error // waits for a guest that others come after

	begun    time.Time
	results  chan result
	ends     map[string]string // how it went, by guest
	deeds    map[launcher.Deed]int
	failures []error
	warnings map[string][]string // the guests, by what there is to say of them
	broken   bool                // by an interrupt, with something left to do
}

// result is what became of a job.
type result struct {
	job      launcher.Job
	end      string // "running"; with an error what an interrupt has made of it, "" for taken back
	words    string // the same at length, "" where nothing was done
	warnings []string
	err      error
	awaited  bool // it is of the wait until the guest is ready
	others   bool // somebody else did it
}

func (a *app) newWork(verb, path string, plain bool, lists ...[]launcher.Job) *work {
	w := &work{app: a, title: verb + " " + path, path: path, begun: time.Now(), results: make(chan result), ends: map[string]string{},
		deeds: map[launcher.Deed]int{}, warnings: map[string][]string{}}
	var names []string
	for _, job := range slices.Concat(lists...) {
		if w.ends[job.Name] = endNotBegun; job.Deed == launcher.DeedNone {
			w.ends[job.Name] = string(job.State)
			continue
		}
		names = append(names, job.Name)
	}
	// Whoever reads of it may go: that must not end it between a stop and a start.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	w.shown = newProgress(w.title, names, plain)
	return w
}

// The ends of those to whom nothing was done.
const (
	endFailed    = "failed"
	endSkipped   = "skipped"
	endTakenBack = "taken back"
	endNotBegun  = "not begun"
	endStopped   = "stopped"
	endStopping  = "still stopping" // which nobody waits for any longer
)

// ends are in the order in which they are counted.
var ends = []string{string(launcher.StateRunning), string(launcher.StatePaused), string(launcher.StateRestarting), string(launcher.StateStarting),
	endStopped, endStopping, endFailed, endSkipped, endTakenBack, endNotBegun}

// run carries a schedule out. Interrupted, it begins nothing more, and waits until
// what is under way has come to an end.
func (w *work) run(ctx context.Context, s *launcher.Schedule) {
	interrupted := ctx.Done()
	for running := 0; ; {
		if ctx.Err() == nil {
			for _, j := range s.Begin() {
				running++
				w.begin(ctx, j)
			}
		}
		if running == 0 {
			break
		}
		select {
		case r := <-w.results:
			if again := w.note(ctx, s, r); !again {
				running--
			}
		case <-interrupted:
			interrupted = nil
			w.shown.interrupt()
		}
	}
	w.broken = w.broken || len(s.Cancel()) > 0
}

func (w *work) begin(ctx context.Context, j launcher.Job) {
	if j.Deed != launcher.DeedNone {
		w.shown.begin(j.Name, doing[j.Deed])
	}
	go func() {
		r := w.do(ctx, j)
		r.job = j
		w.results <- r
	}()
}

// note takes a result down. It reports whether there will be another of this job:
// its guest is to become ready before others begin.
func (w *work) note(ctx context.Context, s *launcher.Schedule, r result) (again bool) {
	name, interrupted := r.job.Name, ctx.Err() != nil
	for _, text := range r.warnings {
		w.warnings[text] = append(w.warnings[text], name)
	}
	switch {
	case r.err != nil && r.awaited && interrupted: // it is there all the same
		s.Done(name)
		w.shown.finish(name, "")
	case r.err != nil && interrupted && r.job.Deed != launcher.DeedNone:
		w.ends[name], w.broken = cmp.Or(r.end, endTakenBack), true
		s.Failed(name)
		w.shown.fail(name, fmt.Errorf("%s: %s", name, w.ends[name]), true)
	case r.err != nil:
		w.fail(name, r.err)
		for _, j := range s.Failed(name) {
			w.skip(j)
		}
	case r.awaited:
		s.Done(name)
		w.shown.finish(name, "")
	default:
		w.did(r)
		if again = w.ready != nil && r.job.Deed != launcher.DeedStop && !interrupted && s.Needed(name); !again {
			s.Done(name)
			break
		}
		s.Settle(name)
		w.shown.begin(name, "becoming ready")
		go func() { w.results <- result{job: r.job, err: w.ready(ctx, r.job), awaited: true} }()
	}
	return again
}

// did counts what was done.
func (w *work) did(r result) {
	if r.job.Deed == launcher.DeedNone {
		return
	}
	w.ends[r.job.Name] = r.end
	if !r.others {
		w.deeds[r.job.Deed]++
	}
	w.shown.finish(r.job.Name, r.words)
}

func (w *work) fail(name string, err error) {
	w.ends[name] = endFailed
	text := strings.TrimSpace(err.Error())
	if !strings.Contains(text, name) {
		text = name + ": " + text
	}
	err = errors.New(text) // of a wrong spec too, which is this guest's alone
	w.failures = append(w.failures, err)
	w.shown.fail(name, err, false)
}

func (w *work) skip(j launcher.Job) {
	err := fmt.Errorf("%s: skipped: it comes after %s", j.Name, abridged(j.After))
	w.failures = append(w.failures, err)
	if j.Deed != launcher.DeedNone {
		w.ends[j.Name] = endSkipped
	}
	w.shown.fail(j.Name, err, true)
}

// end says how it all went.
func (w *work) end() error {
	w.shown.end()
	if w.shown.screen != nil {
		for _, err := range w.failures {
			complainOf(err)
		}
	}
	for _, text := range slices.Sorted(maps.Keys(w.warnings)) {
		warn("%s: %s", abridged(w.warnings[text]), text)
	}
	say("%s: %s", w.path, w.summary())
	if w.broken {
		warn("interrupted: vmrun %s goes on from here", w.title)
	}
	if w.broken || len(w.failures) > 0 {
		return errQuiet
	}
	return nil
}

// done are the words for deeds, in the order in which they are counted.
var done = []struct {
	deed launcher.Deed
	word string
}{{launcher.DeedStart, "started"}, {launcher.DeedAdopt, "adopted"}, {launcher.DeedRecreate, "restarted"}, {launcher.DeedStop, endStopped}}

// summary counts the ends, and what was done for them.
func (w *work) summary() string {
	count := map[string]int{}
	for _, end := range w.ends {
		count[end]++
	}
	var words, deeds []string
	for _, end := range ends {
		if count[end] > 0 {
			words = append(words, fmt.Sprintf("%d %s", count[end], end))
		}
	}
	for _, d := range done {
		if n := w.deeds[d.deed]; n > 0 {
			deeds = append(deeds, fmt.Sprintf("%d %s", n, d.word))
		}
	}
	switch {
	case len(words) == 0:
		return "no guest runs"
	case len(deeds) == 0:
		return strings.Join(words, ", ") + "; nothing was done"
	case len(deeds) == 1 && deeds[0] == words[0]: // of a down
		deeds = nil
	}
	took := " in " + span(time.Since(w.begun))
	if deeds == nil {
		return strings.Join(words, ", ") + took
	}
	return strings.Join(words, ", ") + "; " + strings.Join(deeds, ", ") + took
}
