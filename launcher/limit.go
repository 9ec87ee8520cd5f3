package launcher

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// hourly is how much of a kind is logged: a guest, a QEMU or a client can make
// news for ever.
const hourly = 20

// limiter passes on so much of each kind of line within an hour, and no more. A
// kind is a NIC's changes of one sort, or else a message, whatever it is about.
type limiter struct {
	slog.Handler
	seen *seen
}

// seen is what all handlers count that come of one.
type seen struct {
	mu    sync.Mutex
	kinds map[string]*hour
}

// hour counts what was logged in one.
type hour struct {
	began time.Time
	lines int
}

func newLimiter(h slog.Handler) limiter {
	return limiter{h, &seen{kinds: map[string]*hour{}}}
}

// Handle passes on a line, unless there was much of its kind lately.
func (l limiter) Handle(ctx context.Context, r slog.Record) error {
	switch lines := l.seen.count(kindOfLine(r), r.Time); {
	case lines > hourly:
		return nil
	case lines == hourly:
		r = r.Clone()
		r.Add("then", "no more of this kind within the hour")
	}
	return l.Handler.Handle(ctx, r)
}

// count counts a line of a kind, and returns how many there are by now.
func (s *seen) count(kind string, now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.kinds[kind]
	if h == nil || now.Sub(h.began) >= time.Hour {
		h = &hour{began: now}
		s.kinds[kind] = h
	}
	h.lines++
	return h.lines
}

// kindOfLine is what lines have in common that say the same.
func kindOfLine(r slog.Record) string {
	var nic, change string
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "nic":
			nic = a.Value.String()
		case "change":
			change = a.Value.String()
		}
		return true
	})
	if change != "" {
		return nic + " " + change
	}
	return r.Message
}

// WithAttrs and WithGroup keep the count.

func (l limiter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return limiter{l.Handler.WithAttrs(attrs), l.seen}
}

func (l limiter) WithGroup(name string) slog.Handler {
	return limiter{l.Handler.WithGroup(name), l.seen}
}
