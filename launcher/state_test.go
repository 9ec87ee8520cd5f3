package launcher

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// cmpInternal lets go-cmp look into this package's types.
var cmpInternal = cmp.AllowUnexported(event{}, action{}, exit{})

// times are long enough for three presses: at 0 s, 5 s and 10 s.
var times = ladder{powerdown: 12 * time.Second, quit: 3 * time.Second}

var (
	powerdownFor = func(d time.Duration) []action { return []action{{kind: actPowerdown}, {kind: actArm, after: d}} }
	quitFor      = func(d time.Duration) []action { return []action{{kind: actQuit}, {kind: actArm, after: d}} }
	killNow      = []action{{kind: actDisarm}, {kind: actKill}}
)

func TestNext(t *testing.T) {
	running := situation{Ran: true}
	pressed := situation{Ran: true, Asked: true, Rung: RungPowerdown, Presses: 1}
	quitting := situation{Ran: true, Asked: true, Rung: RungQuit, Presses: 3}
	killed := situation{Ran: true, Asked: true, Rung: RungKill, Presses: 3}
	ended := situation{Ran: true, Ended: true}
	stalled := situation{Ran: true, Paused: true, Stalled: "/a"}
	held := situation{Ran: true, Paused: true, Stalled: "/a", Held: true}
	stalledPressed := situation{Ran: true, Paused: true, Stalled: "/a", Asked: true, Rung: RungPowerdown, Presses: 1}
	stalledQuitting := situation{Ran: true, Paused: true, Stalled: "/a", Asked: true, Rung: RungQuit, Presses: 1}
	resume := []action{{kind: actResume}}
	saving := situation{Ran: true, Suspend: suspendSaving}
	halted := situation{Ran: true, Paused: true, Suspend: suspendSaving}
	stopSaving := situation{Ran: true, Paused: true, Asked: true, Suspend: suspendSaving}
	kept := situation{Ran: true, Paused: true, Suspend: suspendKept}
	over := situation{Ran: true, Paused: true, Suspend: suspendOver}
	shot := situation{Ran: true, Paused: true, Suspend: suspendShot}
	stopShot := situation{Ran: true, Paused: true, Asked: true, Suspend: suspendShot}
	armed := []action{{kind: actArm, after: times.quit}}
	told := situation{Ran: true, Asked: true, Rung: RungAgent}
	taken := situation{Ran: true, Asked: true, Rung: RungAgent, Agent: true}
	takenPressed := situation{Ran: true, Asked: true, Rung: RungAgent, Agent: true, Presses: 1}
	tellAgent := []action{{kind: actAgent}, {kind: actArm, after: agentPatience}}

	for _, tt := range []struct {
		name    string
		from    situation
		ev      event
		want    situation
		actions []action
	}{
		{"running, stop", running, event{kind: evStop}, pressed, powerdownFor(pressEvery)},
		{"running, kill", running, event{kind: evKill}, situation{Ran: true, Asked: true, Rung: RungKill}, killNow},
		{"running, timer of nobody", running, event{kind: evTimer}, running, nil},
		{"running, halted", running, event{kind: evHalted}, situation{Ran: true, Paused: true}, nil},
		{"running, resumed", running, event{kind: evResumed}, running, nil},
		{"running, shutdown", running, event{kind: evShutdown, reason: "guest-shutdown"}, situation{Ran: true, Shutdown: "guest-shutdown"}, nil},
		{"running, exit", running, event{kind: evExit}, ended, []action{{kind: actDisarm}}},

		{"paused, resumed", situation{Paused: true}, event{kind: evResumed}, running, nil},
		{"paused and never ran, stop", situation{Paused: true}, event{kind: evStop},
			situation{Paused: true, Asked: true, Rung: RungQuit}, quitFor(times.quit)},
		{"paused after it ran, stop", situation{Paused: true, Ran: true}, event{kind: evStop},
			situation{Paused: true, Ran: true, Asked: true, Rung: RungPowerdown, Presses: 1},
			append([]action{{kind: actResume}}, powerdownFor(pressEvery)...)},
		{"paused, kill", situation{Paused: true}, event{kind: evKill}, situation{Paused: true, Asked: true, Rung: RungKill}, killNow},

		{"running, suspend", running, event{kind: evSave}, situation{Ran: true, Suspend: suspendSaving}, nil},
		{"stopping, suspend", pressed, event{kind: evSave}, pressed, nil},
		{"suspending, but running, keep", saving, event{kind: evKeep}, saving, nil},
		{"suspending, keep", halted, event{kind: evKeep}, kept, nil},
		{"suspending, stop", halted, event{kind: evStop}, stopSaving, armed},
		{"suspending and to be stopped, keep", stopSaving, event{kind: evKeep}, stopSaving, nil},
		{"suspending and to be stopped, given up", stopSaving, event{kind: evUnsave},
			situation{Ran: true, Paused: true, Asked: true, Rung: RungPowerdown, Presses: 1}, append(resume, powerdownFor(pressEvery)...)},
		{"suspending, given up", halted, event{kind: evUnsave}, over, resume},
		{"given up, runs", over, event{kind: evResumed}, running, nil},
		{"given up, stop", over, event{kind: evStop},
			situation{Ran: true, Paused: true, Asked: true, Rung: RungPowerdown, Presses: 1}, append(resume, powerdownFor(pressEvery)...)},
		{"suspending by its owner's pause, given up", situation{Ran: true, Paused: true, Held: true, Suspend: suspendSaving}, event{kind: evUnsave},
			situation{Ran: true, Paused: true, Held: true}, nil},
		{"running, snapshot", running, event{kind: evSave, reason: string(suspendShot)}, situation{Ran: true, Suspend: suspendShot}, nil},
		{"a snapshot, keep", shot, event{kind: evKeep}, shot, nil},
		{"a snapshot, stop", shot, event{kind: evStop}, stopShot, armed},
		{"a snapshot, stop, and it takes long", stopShot, event{kind: evTimer}, stopShot, armed},
		{"a snapshot that failed half way, over", shot, event{kind: evUnsave, reason: halfDone}, situation{Ran: true, Paused: true, Held: true}, nil},
		{"kept, stop", kept, event{kind: evStop}, situation{Ran: true, Paused: true, Asked: true, Suspend: suspendKept}, armed},
		{"kept, has its name", kept, event{kind: evSaved},
			situation{Ran: true, Paused: true, Asked: true, Rung: RungQuit, Suspend: suspendKept}, quitFor(times.quit)},

		{"running, no space", running, event{kind: evStalled, reason: "/a"}, situation{Ran: true, Stalled: "/a"}, nil},
		{"running, room for nobody", running, event{kind: evRoom}, running, nil},
		{"halting for want of space, room", situation{Ran: true, Stalled: "/a"}, event{kind: evRoom}, situation{Ran: true, Stalled: "/a"}, nil},
		{"stalled, halted", situation{Ran: true, Stalled: "/a"}, event{kind: evHalted}, stalled, nil},
		{"stalled, another disk too", stalled, event{kind: evStalled, reason: "/b"}, situation{Ran: true, Paused: true, Stalled: "/b"}, nil},
		{"stalled, room", stalled, event{kind: evRoom}, stalled, resume},
		{"stalled, resumed", stalled, event{kind: evResumed}, running, nil},
		{"stalled, paused by its owner", stalled, event{kind: evHold}, held, nil},
		{"stalled and held, room", held, event{kind: evRoom}, held, nil},
		{"stalled and held, resumed", held, event{kind: evResumed}, running, nil},
		{"paused by its owner, room", situation{Ran: true, Paused: true, Held: true}, event{kind: evRoom},
			situation{Ran: true, Paused: true, Held: true}, nil},
		{"stalled, stop tries to go on", stalled, event{kind: evStop}, stalledPressed, append(resume, powerdownFor(pressEvery)...)},
		{"stalled in powerdown, room", stalledPressed, event{kind: evRoom}, stalledPressed, resume},
		{"stalled in powerdown, timer", stalledPressed, event{kind: evTimer}, stalledQuitting, quitFor(times.quit)},
		{"stalled in quit, room", stalledQuitting, event{kind: evRoom}, stalledQuitting, nil},

		{"running, stop by the agent", running, event{kind: evStop, agent: true}, told, tellAgent},
		{"paused and never ran, stop by an agent that cannot be", situation{Paused: true}, event{kind: evStop, agent: true},
			situation{Paused: true, Asked: true, Rung: RungQuit}, quitFor(times.quit)},
		{"paused after it ran, stop by the agent", situation{Paused: true, Ran: true}, event{kind: evStop, agent: true},
			situation{Paused: true, Ran: true, Asked: true, Rung: RungAgent}, append([]action{{kind: actResume}}, tellAgent...)},
		{"agent, taken", told, event{kind: evTaken}, taken, nil},
		{"agent, deaf", told, event{kind: evDeaf}, pressed, powerdownFor(pressEvery)},
		{"agent, taken and then refused", taken, event{kind: evDeaf}, pressed, powerdownFor(pressEvery)},
		{"agent, no word of it in time", told, event{kind: evTimer}, pressed, powerdownFor(pressEvery)},
		{"agent, taken and the guest still runs", taken, event{kind: evTimer}, takenPressed, powerdownFor(5 * time.Second)},
		{"agent, pressed beside it", takenPressed, event{kind: evTimer},
			situation{Ran: true, Asked: true, Rung: RungAgent, Agent: true, Presses: 2}, powerdownFor(5 * time.Second)},
		{"agent, time over", situation{Ran: true, Asked: true, Rung: RungAgent, Agent: true, Presses: 2}, event{kind: evTimer},
			situation{Ran: true, Asked: true, Rung: RungQuit, Agent: true, Presses: 2}, quitFor(times.quit)},
		{"agent, no space", situation{Ran: true, Paused: true, Asked: true, Stalled: "/a", Rung: RungAgent, Agent: true}, event{kind: evTimer},
			situation{Ran: true, Paused: true, Asked: true, Stalled: "/a", Rung: RungQuit, Agent: true}, quitFor(times.quit)},
		{"powerdown, late word of the agent", pressed, event{kind: evTaken}, pressed, nil},
		{"powerdown, late word of a deaf agent", pressed, event{kind: evDeaf}, pressed, nil},

		{"powerdown, second stop", pressed, event{kind: evStop}, pressed, nil},
		{"powerdown, kill", pressed, event{kind: evKill},
			situation{Ran: true, Asked: true, Rung: RungKill, Presses: 1}, killNow},
		{"powerdown, first timer", pressed, event{kind: evTimer},
			situation{Ran: true, Asked: true, Rung: RungPowerdown, Presses: 2}, powerdownFor(pressEvery)},
		{"powerdown, last press is for what is left", situation{Ran: true, Asked: true, Rung: RungPowerdown, Presses: 2}, event{kind: evTimer},
			situation{Ran: true, Asked: true, Rung: RungPowerdown, Presses: 3}, powerdownFor(2 * time.Second)},
		{"powerdown, time over", situation{Ran: true, Asked: true, Rung: RungPowerdown, Presses: 3}, event{kind: evTimer},
			quitting, quitFor(times.quit)},
		{"powerdown, halted", pressed, event{kind: evHalted},
			situation{Ran: true, Paused: true, Asked: true, Rung: RungPowerdown, Presses: 1}, nil},
		{"powerdown, resumed", pressed, event{kind: evResumed}, pressed, nil},
		{"powerdown, shutdown", pressed, event{kind: evShutdown, reason: "guest-shutdown"},
			situation{Ran: true, Asked: true, Rung: RungPowerdown, Presses: 1, Shutdown: "guest-shutdown"}, nil},
		{"powerdown, exit", pressed, event{kind: evExit},
			situation{Ran: true, Asked: true, Rung: RungPowerdown, Presses: 1, Ended: true}, []action{{kind: actDisarm}}},

		{"quit, second stop", quitting, event{kind: evStop}, quitting, nil},
		{"quit, kill", quitting, event{kind: evKill}, killed, killNow},
		{"quit, time over", quitting, event{kind: evTimer}, killed, []action{{kind: actKill}}},
		{"quit, halted", quitting, event{kind: evHalted},
			situation{Ran: true, Paused: true, Asked: true, Rung: RungQuit, Presses: 3}, nil},
		{"quit, exit", quitting, event{kind: evExit},
			situation{Ran: true, Asked: true, Rung: RungQuit, Presses: 3, Ended: true}, []action{{kind: actDisarm}}},

		{"kill, stop", killed, event{kind: evStop}, killed, nil},
		{"kill, second kill", killed, event{kind: evKill}, killed, killNow},
		{"kill, timer", killed, event{kind: evTimer}, killed, []action{{kind: actKill}}},
		{"kill, exit", killed, event{kind: evExit},
			situation{Ran: true, Asked: true, Rung: RungKill, Presses: 3, Ended: true}, []action{{kind: actDisarm}}},

		{"ended, stop", ended, event{kind: evStop}, ended, nil},
		{"ended, kill", ended, event{kind: evKill}, ended, nil},
		{"ended, timer", ended, event{kind: evTimer}, ended, nil},
		{"ended, halted", ended, event{kind: evHalted}, ended, nil},
		{"ended, resumed", ended, event{kind: evResumed}, ended, nil},
		{"ended, shutdown", ended, event{kind: evShutdown, reason: "guest-panic"}, ended, nil},
		{"ended, exit", ended, event{kind: evExit}, ended, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, actions := next(tt.from, tt.ev, times)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("situation (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.actions, actions, cmpInternal); diff != "" {
				t.Errorf("actions (-want +got):\n%s", diff)
			}
		})
	}
}

// climbAlone lets only timers fire and returns each action's time.
func climbAlone(times ladder) (when map[actionKind][]time.Duration) {
	when = map[actionKind][]time.Duration{}
	now, armed := time.Duration(0), time.Duration(-1)
	s, actions := next(situation{Ran: true}, event{kind: evStop}, times)
	for {
		for _, a := range actions {
			when[a.kind] = append(when[a.kind], now)
			if a.kind == actArm {
				armed = a.after
			}
		}
		if armed < 0 {
			return when
		}
		now, armed = now+armed, -1
		s, actions = next(s, event{kind: evTimer}, times)
	}
}

func TestLadderTakesTheTimesOfTheSpec(t *testing.T) {
	for _, tt := range []struct {
		powerdown, quit time.Duration
		presses         int
	}{
		{0, 0, 1},
		{time.Second, 0, 1},
		{5 * time.Second, time.Second, 1},
		{5*time.Second + 1, time.Second, 2},
		{60 * time.Second, 5 * time.Second, 12},
		{24 * time.Hour, 24 * time.Hour, 17280},
	} {
		t.Run(fmt.Sprint(tt.powerdown, tt.quit), func(t *testing.T) {
			when := climbAlone(ladder{powerdown: tt.powerdown, quit: tt.quit})
			if got := len(when[actPowerdown]); got != tt.presses {
				t.Errorf("%d presses, want %d", got, tt.presses)
			}
			if diff := cmp.Diff([]time.Duration{tt.powerdown}, when[actQuit]); diff != "" {
				t.Errorf("quit at (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]time.Duration{tt.powerdown + tt.quit}, when[actKill]); diff != "" {
				t.Errorf("kill at (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhy(t *testing.T) {
	const full = "no space left for /a"
	for _, tt := range []struct {
		name string
		s    situation
		want string
	}{
		{"running", situation{}, ""},
		{"paused", situation{Paused: true}, ""},
		{"about to stall", situation{Stalled: "/a"}, ""},
		{"stalled", situation{Paused: true, Stalled: "/a"}, full},
		{"stalled and held", situation{Paused: true, Stalled: "/a", Held: true}, full},
		{"stalled, stopping", situation{Paused: true, Stalled: "/a", Rung: RungPowerdown}, full},
		{"ended", situation{Paused: true, Stalled: "/a", Ended: true}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.s.why(); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestState(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    situation
		want State
	}{
		{"fresh", situation{}, StateRunning},
		{"paused", situation{Paused: true}, StatePaused},
		{"paused, stopping", situation{Paused: true, Rung: RungQuit}, StateStopping},
		{"powerdown", situation{Rung: RungPowerdown}, StateStopping},
		{"killed, ended", situation{Rung: RungKill, Ended: true}, StateEnded},
		{"shut down, QEMU still there", situation{Shutdown: "guest-shutdown"}, StateRunning},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.s.state(); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

var rungOrder = map[Rung]int{RungNone: 0, RungAgent: 1, RungPowerdown: 2, RungQuit: 3, RungKill: 4}

// broken names the rule of a guest's life that a step breaks, or "".
func broken(before situation, ev event, after situation, actions []action) string {
	kinds := map[actionKind]bool{}
	for _, a := range actions {
		kinds[a.kind] = true
		if a.kind == actArm && a.after < 0 {
			return "armed a timer with a negative time"
		}
	}
	switch {
	case before.Ended && (after != before || len(actions) > 0):
		return "something happened after the end"
	case rungOrder[after.Rung] < rungOrder[before.Rung]:
		return "climbed down"
	case ev.kind == evExit && !after.Ended:
		return "did not end with its process"
	case before.Asked && !after.Asked, before.Ran && !after.Ran:
		return "forgot something"
	case !before.Ended && ev.kind == evKill && !kinds[actKill]:
		return "a kill did not kill"
	case !before.Ended && ev.kind == evStop && after.Rung == RungNone && !(after.Suspend.isUnderWay() && after.Asked && kinds[actArm]):
		return "a stop did nothing"
	case (after.Rung == RungAgent || after.Rung == RungPowerdown || after.Rung == RungQuit) && after.Rung != before.Rung && !kinds[actArm]:
		return "a rung without a timer: the ladder stands still"
	case ev.kind == evTimer && (before.Rung == RungAgent || before.Rung == RungPowerdown) && !before.Ended && !kinds[actArm]:
		return "a rung's timer ran out and nothing follows"
	case (kinds[actPowerdown] || kinds[actAgent]) && before.Paused && !before.Ended && ev.kind == evStop && !kinds[actResume]:
		return "pressed the button of a guest that cannot hear it"
	case kinds[actResume] && ev.kind == evRoom && (before.Held || before.Stalled == ""):
		return "resumed a guest that stands still for another reason"
	case kinds[actResume] && after.Suspend == suspendKept, after.Suspend == suspendKept && before.Suspend != suspendKept && ev.kind != evKeep:
		return "a guest runs on whose memory is kept"
	case kinds[actResume] && rungOrder[after.Rung] >= rungOrder[RungQuit]:
		return "resumed a guest that is about to be ended"
	}
	return ""
}

func TestNextOverRandomLives(t *testing.T) {
	reasons := []string{"", "guest-shutdown", "guest-panic", "host-qmp-quit", "nonsense"}
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		lifeTimes := ladder{powerdown: time.Duration(r.IntN(40)) * time.Second, quit: time.Duration(r.IntN(10)) * time.Second}
		s := situation{Paused: true}
		var history []event
		for range 40 {
			ev := event{kind: eventKind(r.IntN(int(evExit) + 1)), reason: reasons[r.IntN(len(reasons))], agent: r.IntN(2) == 0}
			if ev.kind == evExit && r.IntN(4) > 0 {
				continue // or lives are too short
			}
			history = append(history, ev)
			after, actions := next(s, ev, lifeTimes)
			if rule := broken(s, ev, after, actions); rule != "" {
				t.Fatalf("seed %d: %s: %+v with %+v became %+v, %+v\nafter %+v", seed, rule, s, ev, after, actions, history)
			}
			s = after
		}
	}
}

// A guest that anybody has asked to end ends, whatever else happens, when its
// timers fire and SIGKILL works.
func TestEveryStopEnds(t *testing.T) {
	noise := []eventKind{evHalted, evResumed, evStop, evShutdown, evStalled, evRoom, evHold, evSave, evKeep, evSaved, evUnsave, evTaken}
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		how := []suspend{suspendNone, suspendSaving, suspendKept}[r.IntN(3)]
		s, actions := next(situation{Paused: r.IntN(2) == 0, Ran: r.IntN(2) == 0, Suspend: how}, event{kind: evStop, agent: r.IntN(2) == 0}, times)
		for step := 0; ; step++ {
			if step > 100 {
				t.Fatalf("seed %d: still at %+v after %d steps", seed, s, step)
			}
			killed := false
			for _, a := range actions {
				killed = killed || a.kind == actKill
			}
			if killed {
				break
			}
			s, _ = next(s, event{kind: noise[r.IntN(len(noise))]}, times)
			s, actions = next(s, event{kind: evTimer}, times)
		}
	}
}
