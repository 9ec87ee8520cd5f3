package qmp

import (
	"slices"
	"sync"
	"sync/atomic"
)

// queue holds the newest values only: push never blocks. One goroutine at a
// time may push.
type queue[T any] struct {
	ch      chan T
	dropped atomic.Uint64
}

func newQueue[T any](size int) *queue[T] {
	return &queue[T]{ch: make(chan T, size)}
}

// push drops the oldest value when the queue is full, and counts it.
func (q *queue[T]) push(v T) {
	for {
		select {
		case q.ch <- v:
			return
		default:
		}
		select {
		case <-q.ch:
			q.dropped.Add(1)
		default: // the reader was faster
		}
	}
}

// Subscription receives events from a Client, from the moment of Subscribe.
type Subscription struct {
	q     *queue[Event]
	names []string // empty: all
	hub   *hub
}

// Events is closed by Close and, after the last event, when the connection
// ends.
func (s *Subscription) Events() <-chan Event { return s.q.ch }

// Dropped counts the events lost because the queue was full, the oldest
// first, or because one was over 16 KiB. When it grows, ask again for what
// the events would have told.
func (s *Subscription) Dropped() uint64 { return s.q.dropped.Load() }

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() { s.hub.remove(s) }

// hub is the set of a client's subscriptions. Its lock is held only for work
// that cannot block.
type hub struct {
	mu     sync.Mutex
	subs   map[*Subscription]struct{}
	closed bool
}

func (h *hub) add(size int, names []string) *Subscription {
	s := &Subscription{q: newQueue[Event](size), names: names, hub: h}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(s.q.ch)
		return s
	}
	if h.subs == nil {
		h.subs = make(map[*Subscription]struct{})
	}
	h.subs[s] = struct{}{}
	return s
}

func (h *hub) remove(s *Subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.subs[s]; !ok {
		return
	}
	delete(h.subs, s)
	close(s.q.ch)
}

func (h *hub) publish(ev Event) {
	h.each(ev.Event, func(q *queue[Event]) { q.push(ev) })
}

// lost counts an event that nobody gets.
func (h *hub) lost(name string) {
	h.each(name, func(q *queue[Event]) { q.dropped.Add(1) })
}

func (h *hub) each(name string, do func(*queue[Event])) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		if len(s.names) == 0 || slices.Contains(s.names, name) {
			do(s.q)
		}
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.subs {
		close(s.q.ch)
	}
	h.subs = nil
}
