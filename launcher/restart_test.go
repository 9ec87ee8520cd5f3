package launcher

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
)

// policy is one with a limit of three restarts in ten minutes.
func policy(p configs.RestartPolicy) configs.Restart {
	return configs.Restart{Policy: p, Delay: time.Second, MaxDelay: 10 * time.Second, Limit: 3, Interval: 10 * time.Minute}
}

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// minutesAgo are restarts that were so long before noon.
func minutesAgo(minutes ...int) []time.Time {
	var list []time.Time
	for _, m := range minutes {
		list = append(list, noon.Add(-time.Duration(m)*time.Minute))
	}
	return list
}

func TestRestartAfter(t *testing.T) {
	crash := Outcome{Reason: ReasonCrash}
	onFailure, always := configs.RestartOnFailure, configs.RestartAlways
	const never = -1
	for _, tt := range []struct {
		name   string
		policy configs.RestartPolicy
		o      Outcome
		past   restarts
		ran    time.Duration
		wait   time.Duration
		why    string
	}{
		{"no policy", configs.RestartNo, crash, restarts{}, 0, never, ""},
		{"a record without one", "", crash, restarts{}, 0, never, ""},
		{"on-failure, crash", onFailure, crash, restarts{}, 0, time.Second, ""},
		{"on-failure, panic", onFailure, Outcome{Reason: ReasonPanic}, restarts{}, 0, time.Second, ""},
		{"on-failure, signal", onFailure, Outcome{Reason: ReasonSignal}, restarts{}, 0, time.Second, ""},
		{"on-failure, quit by others", onFailure, Outcome{Reason: ReasonQuit}, restarts{}, 0, time.Second, ""},
		{"on-failure, unknown", onFailure, Outcome{Reason: ReasonUnknown}, restarts{}, 0, time.Second, ""},
		{"on-failure, failed restart", onFailure, Outcome{Reason: ReasonStartFailed}, restarts{}, 0, time.Second, ""},
		{"on-failure, power-off", onFailure, Outcome{Reason: ReasonPoweroff}, restarts{}, 0, never, ""},
		{"on-failure, stopped", onFailure, Outcome{Reason: ReasonStopped, Rung: RungKill}, restarts{}, 0, never, ""},
		{"always, power-off", always, Outcome{Reason: ReasonPoweroff}, restarts{}, 0, time.Second, ""},
		{"always, stopped", always, Outcome{Reason: ReasonStopped, Rung: RungQuit}, restarts{}, 0, never, ""},

		{"second in a row", always, crash, restarts{Row: 1}, time.Minute, 2 * time.Second, ""},
		{"fourth in a row", always, crash, restarts{Row: 3}, time.Minute, 8 * time.Second, ""},
		{"fifth in a row", always, crash, restarts{Row: 4}, time.Minute, 10 * time.Second, ""},
		{"millionth in a row", always, crash, restarts{Row: 1_000_000}, time.Minute, 10 * time.Second, ""},
		{"ran just not long enough", always, crash, restarts{Row: 4}, 10 * time.Minute, 10 * time.Second, ""},
		{"ran for long", always, crash, restarts{Row: 4}, 10*time.Minute + 1, time.Second, ""},
		{"ran for less than nothing, by a clock that was set", always, crash, restarts{Row: 1}, -time.Hour, 2 * time.Second, ""},

		{"the last that it may have", always, crash, restarts{Times: minutesAgo(9, 5)}, 0, time.Second, ""},
		{"one too many", always, crash, restarts{Times: minutesAgo(9, 5, 1)}, 0, never, "not restarted again: its limit is 3 restarts within 10m0s"},
		{"the oldest does not count any more", always, crash, restarts{Times: minutesAgo(10, 5, 1)}, 0, time.Second, ""},
		{"the oldest will not when it is due", always, crash, restarts{Row: 3, Times: []time.Time{noon.Add(8*time.Second - 10*time.Minute), noon, noon}}, 0, 8 * time.Second, ""},
		{"stopped at the limit", always, Outcome{Reason: ReasonStopped}, restarts{Times: minutesAgo(9, 5, 1)}, 0, never, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := encode(t, tt.past)
			got, why := tt.past.after(policy(tt.policy), tt.o, tt.ran, noon)
			wait := time.Duration(never)
			if !got.Next.IsZero() {
				wait = got.Next.Sub(noon)
			}
			if wait != tt.wait || why != tt.why {
				t.Errorf("waits %v, %q; want %v, %q", wait, why, tt.wait, tt.why)
			}
			if wait != never && (got.Last == nil || got.Last.Reason != tt.o.Reason) {
				t.Errorf("last end %+v, want %+v", got.Last, tt.o)
			}
			if got.Count != tt.past.Count {
				t.Errorf("counts a restart that has not begun")
			}
			if diff := cmp.Diff(before, encode(t, tt.past)); diff != "" {
				t.Errorf("what was known has changed:\n%s", diff)
			}
		})
	}
}

func TestRestartLimits(t *testing.T) {
	p := policy(configs.RestartAlways)
	p.Limit = 0
	r := restarts{}
	for range 2000 {
		r, _ = r.after(p, Outcome{Reason: ReasonCrash}, 0, noon)
		if r.Next.IsZero() {
			t.Fatal("a guest without a limit stays ended")
		}
		r = r.begun(p, noon)
	}
	if r.Count != 2000 || len(r.Times) != 0 {
		t.Errorf("%d counted, %d remembered; want 2000 and none", r.Count, len(r.Times))
	}
	p.Limit = 1
	r, why := restarts{Times: minutesAgo(1)}.after(p, Outcome{Reason: ReasonCrash}, 0, noon)
	if want := "not restarted again: its limit is 1 restart within 10m0s"; why != want || !r.Next.IsZero() {
		t.Errorf("%q, want %q", why, want)
	}
}

// Whatever fails and however often, the delays and the limit hold: a guest is
// never started in quick succession, and one that may be is not forgotten.
func TestRestartsHold(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		upTo := func(d time.Duration) time.Duration { return time.Duration(rnd.Int64N(int64(d) + 1)) }
		p := configs.Restart{Policy: configs.RestartOnFailure, Delay: 100*time.Millisecond + upTo(time.Minute), Limit: rnd.IntN(6), Interval: time.Second + upTo(time.Hour)}
		p.MaxDelay = p.Delay + upTo(time.Hour)
		var r restarts
		var begun []time.Time
		now, last := noon, time.Duration(0)
		for range 60 {
			ran := upTo(p.Interval * 3 / 2)
			now = now.Add(ran)
			next, why := r.after(p, Outcome{Reason: ReasonCrash}, ran, now)
			if next.Next.IsZero() {
				if why == "" || p.Limit == 0 || len(begun) < p.Limit || now.Sub(begun[len(begun)-p.Limit]) >= p.Interval {
					t.Fatalf("seed %d: stays ended after %v with %q, %+v", seed, begun, why, p)
				}
				now = now.Add(upTo(p.Interval)) // somebody starts it later on
				continue
			}
			wait := next.Next.Sub(now)
			least := p.Delay
			if ran <= p.Interval {
				least = max(least, min(2*last, p.MaxDelay))
			}
			if wait != least {
				t.Fatalf("seed %d: waits %v after %v, want %v: %+v", seed, wait, last, least, p)
			}
			last = wait
			now = next.Next.Add(upTo(time.Second)) // a loaded host is late
			r = next.begun(p, now)
			begun = append(begun, now)
			if n := len(begun); p.Limit > 0 && n > p.Limit && now.Sub(begun[n-1-p.Limit]) < p.Interval {
				t.Fatalf("seed %d: more than %d within %v: %v", seed, p.Limit, p.Interval, begun)
			}
			if len(r.Times) > p.Limit || r.Count != len(begun) {
				t.Fatalf("seed %d: remembers %d, counts %d of %d", seed, len(r.Times), r.Count, len(begun))
			}
		}
	}
}

// An adopting supervisor counts on, whatever became of the clock meanwhile.
func TestRestartsInherited(t *testing.T) {
	p := policy(configs.RestartAlways)
	past := restarts{Restarts: Restarts{Count: 3}, Row: 2, Times: minutesAgo(9, 5, 1)}
	for _, tt := range []struct {
		name        string
		step        time.Duration // of the clock, before the adoption
		again       bool          // at once
		againLater  bool          // within half an interval
		againLatest bool          // after a whole one
	}{
		{"not set", 0, false, true, true},
		{"set back by a year", -365 * 24 * time.Hour, false, false, true},
		{"set forth by a year", 365 * 24 * time.Hour, true, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r restarts
			if err := json.Unmarshal(encode(t, past), &r); err != nil {
				t.Fatal(err)
			}
			now := noon.Add(tt.step)
			r = r.inherited(now)
			for _, at := range []struct {
				after time.Duration
				want  bool
			}{{0, tt.again}, {p.Interval / 2, tt.againLater}, {p.Interval, tt.againLatest}} {
				got, _ := r.after(p, Outcome{Reason: ReasonCrash}, 0, now.Add(at.after))
				if !got.Next.IsZero() != at.want {
					t.Errorf("restarted %v after the adoption: %v, want %v", at.after, !at.want, at.want)
				}
				if at.want && got.Next.Sub(now.Add(at.after)) != 4*time.Second {
					t.Errorf("waits %v, want 4s as the third in a row", got.Next.Sub(now.Add(at.after)))
				}
			}
			if r.Count != 3 {
				t.Errorf("%d counted, want 3", r.Count)
			}
		})
	}
}
