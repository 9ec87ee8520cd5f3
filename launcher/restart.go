package launcher

import (
	"fmt"
	"slices"
	"time"

	"vmrun/configs"
)

// Restarts tells of a guest's restarts by its policy.
type Restarts struct {
	Count int       `json:"count"`          // since somebody started it, those that failed included
	Next  time.Time `json:"next,omitzero"`  // when the next is due, of a guest that waits for it
	Last  *Outcome  `json:"last,omitempty"` // the end after which the latest was, or the next is
}

// restarts is what the record keeps of them.
type restarts struct {
	Restarts
	Row   int         `json:"row,omitempty"`   // of them, since the guest last ran for long
	Times []time.Time `json:"times,omitempty"` // of those that count against the limit, oldest first
}

// after decides what becomes of a guest that ended like o after it had run for
// so long. It returns what is known of its restarts then: with a time for the
// next one, or with none. Then why is not empty where the policy asks for one.
func (r restarts) after(p configs.Restart, o Outcome, ran time.Duration, now time.Time) (_ restarts, why string) {
	r.Next = time.Time{}
	if !wanted(p.Policy, o) {
		return r, ""
	}
	if ran > p.Interval {
		r.Row = 0
	}
	due := now.Add(delay(p, r.Row))
	r.Times = r.recent(p, due)
	if p.Limit > 0 && len(r.Times) >= p.Limit {
		return r, fmt.Sprintf("not restarted again: its limit is %s within %v", plural(p.Limit, "restart"), p.Interval)
	}
	r.Next, r.Last = due, &o
	return r, ""
}

// begun notes that a restart begins.
func (r restarts) begun(p configs.Restart, now time.Time) restarts {
	r.Count++
	r.Row++
	r.Next = time.Time{}
	if p.Limit > 0 {
		r.Times = append(r.recent(p, now), now)
	}
	return r
}

// wanted reports whether a guest is to be restarted after such an end.
func wanted(p configs.RestartPolicy, o Outcome) bool {
	switch p {
	case configs.RestartAlways:
		return o.Reason != ReasonStopped && o.Reason != ReasonSuspended
	case configs.RestartOnFailure:
		return !o.Good()
	}
	return false
}

// delay is how long a restart waits that is not the first in a row.
func delay(p configs.Restart, row int) time.Duration {
	d := p.Delay
	for ; row > 0 && d > 0 && d < p.MaxDelay; row-- {
		if d > p.MaxDelay/2 {
			return p.MaxDelay
		}
		d *= 2
	}
	return d
}

// recent are the restarts that count against the limit at some time, in a list of
// their own.
func (r restarts) recent(p configs.Restart, at time.Time) []time.Time {
	return slices.DeleteFunc(slices.Clone(r.Times), func(t time.Time) bool { return at.Sub(t) >= p.Interval })
}

// inherited are the restarts of a guest that is adopted now. They were noted by
// the wall clock, which may have been set meanwhile: none was later than now, and
// from here on they age by a clock that nobody can set.
func (r restarts) inherited(now time.Time) restarts {
	r.Times = slices.Clone(r.Times)
	for i, t := range r.Times {
		r.Times[i] = now.Add(-max(0, now.Sub(t)))
	}
	return r
}
