package launcher

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/netsetup"
)

// The host's clock can be set at any time, to years ago or ahead. Whatever waits
// here goes by Go's monotonic clock, which nobody sets. A time that is shown or
// written down has only the host's clock, though: it is given as the clock shows
// it now, so that its age is right.

// clock says which time the host's clock showed at a time since boot.
type clock struct {
	Shown time.Time     `json:"shown"`
	Boot  time.Duration `json:"boot"`
}

func readClock() clock { return clock{Shown: time.Now(), Boot: clockTime(unix.CLOCK_BOOTTIME)} }

func clockTime(id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0 // on no Linux that vmrun runs on
	}
	return time.Duration(ts.Nano())
}

// slew is how far a clock is set without anybody noticing.
const slew = time.Second

// present is a time as the clock shows it now. One that the clock has shown since
// is left as it was, so that it is the same whoever asks.
func present(t time.Time) time.Time {
	now := time.Now()
	shown := now.Round(0).Sub(t.Round(0))
	// A monotonic clock stands still while the host sleeps (clock_gettime(2)).
	slept := clockTime(unix.CLOCK_BOOTTIME) - clockTime(unix.CLOCK_MONOTONIC)
	if set := shown - now.Sub(t); t.IsZero() || set > -slew && set < slept+slew {
		return t.Round(0)
	}
	return now.Round(0).Add(-now.Sub(t))
}

// since is a time from a record that was written at c, with a reading of the
// monotonic clock.
func (c clock) since(t time.Time) time.Time {
	now := readClock()
	if set := now.Shown.Round(0).Sub(c.Shown) - (now.Boot - c.Boot); set.Abs() >= slew {
		t = t.Add(set)
	}
	return now.Shown.Add(t.Sub(now.Shown.Round(0)))
}

// withTimes is the record with all times changed that something is counted from.
func (r record) withTimes(change func(time.Time) time.Time) record {
	r.Started = change(r.Started)
	if !r.Restarts.Next.IsZero() {
		r.Restarts.Next = change(r.Restarts.Next)
	}
	r.Restarts.Times = slices.Clone(r.Restarts.Times)
	for i, t := range r.Restarts.Times {
		r.Restarts.Times[i] = change(t)
	}
	addresses := make(map[string][]netsetup.Address, len(r.Addresses))
	for nic, list := range r.Addresses {
		addresses[nic] = changeTimes(list, change)
	}
	if r.Addresses != nil {
		r.Addresses = addresses
	}
	return r
}

func changeTimes(list []netsetup.Address, change func(time.Time) time.Time) []netsetup.Address {
	changed := make([]netsetup.Address, len(list))
	for i, a := range list {
		a.Since, a.Seen = change(a.Since), change(a.Seen)
		if !a.Expires.IsZero() {
			a.Expires = change(a.Expires)
		}
		changed[i] = a
	}
	return changed
}

// present is the status with times as the clock shows them now.
func (s Status) present() Status {
	s.Started = present(s.Started)
	if s.Restarts != nil {
		next := *s.Restarts
		next.Next = present(next.Next)
		s.Restarts = &next
	}
	s.NICs = slices.Clone(s.NICs)
	for i, n := range s.NICs {
		s.NICs[i].Learned = changeTimes(n.Learned, present)
	}
	return s
}
