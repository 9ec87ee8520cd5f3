package launcher

import (
	"fmt"
	"time"

	"vmrun/configs"
)

// State is where a guest is in its life.
type State string

// The states. Unresponsive is what an observer says of a QEMU that does not
// answer; it is never a guess that the guest has stopped.
const (
	StateStarting     State = "starting"
	StateRunning      State = "running"
	StatePaused       State = "paused"
	StateStopping     State = "stopping"
	StateUnresponsive State = "unresponsive"
	StateEnded        State = "ended"
	StateRestarting   State = "restarting" // it has ended, and its supervisor waits to start it again
	StateSuspending   State = "suspending" // its memory is being written to disk
	StateSuspended    State = "suspended"  // it has ended, and its next start goes on from its memory
)

// States are all of them.
var States = []State{StateStarting, StateRunning, StatePaused, StateStopping, StateUnresponsive, StateEnded, StateRestarting, StateSuspending, StateSuspended}

// Rests reports whether a guest in this state has neither QEMU nor supervisor.
func (s State) Rests() bool { return s == StateEnded || s == StateSuspended }

// Rung is a step of the stop ladder.
type Rung string

// The rungs, in order.
const (
	RungNone      Rung = ""
	RungAgent     Rung = "agent"     // the agent in the guest, and the power button beside it
	RungPowerdown Rung = "powerdown" // ACPI power button
	RungQuit      Rung = "quit"      // QMP quit: QEMU flushes its disks and ends
	RungKill      Rung = "kill"      // SIGKILL
)

// situation is all that decides what happens next to a guest.
type situation struct {
	Paused   bool   // the guest's CPUs stand still
	Ran      bool   // they have run before
	Asked    bool   // somebody wants the guest to end
	Rung     Rung   // how far the stop ladder has come
	Presses  int    // how often the power button was pressed
	Agent    bool   `json:",omitempty"` // the guest's agent has been told to power down, and did not refuse
	Shutdown string // SHUTDOWN's reason (qapi/run-state.json, ShutdownCause), or ""
	Ended    bool

	Stalled  string                 `json:",omitempty"` // the disk that has no space left, for which QEMU has halted the CPUs
	Watchdog configs.WatchdogAction `json:",omitempty"` // the guest has not fed its watchdog, which has paused it or is ending it
	Held     bool                   `json:",omitempty"` // the owner has paused the guest, perhaps besides

	Suspend suspend `json:",omitempty"` // how far a suspend has come
}

// suspend is how far a guest has come on its way to the disk.
type suspend string

const (
	suspendNone   suspend = ""
	suspendSaving suspend = "saving" // its memory is being written; it can still go on as before
	suspendKept   suspend = "kept"   // the memory is getting its name, and QEMU is not to run on
	suspendShot   suspend = "shot"   // it is not: a snapshot is being taken, or rolled back to
	suspendOver   suspend = "over"   // it was given up, and the guest is being let go on
)

// halfDone says of a guest that it is not to run.
const halfDone = "half done"

// isUnderWay reports whether the guest is on its way.
func (s suspend) isUnderWay() bool { return s == suspendSaving || s == suspendKept || s == suspendShot }

// state is the situation in a word.
func (s situation) state() State {
	switch {
	case s.Ended:
		return StateEnded
	case s.Suspend == suspendSaving && s.Rung == RungNone, s.Suspend == suspendKept && s.Rung != RungKill:
		return StateSuspending
	case s.Rung != RungNone:
		return StateStopping
	case s.Paused:
		return StatePaused
	}
	return StateRunning
}

// why says why the CPUs stand still, where nobody has asked for it, or "".
func (s situation) why() string {
	switch {
	case !s.Paused || s.Ended:
		return ""
	case s.Suspend == suspendShot:
		return "a snapshot is being taken, or rolled back to"
	case s.Watchdog != "":
		return "the guest has not fed its watchdog"
	case s.Stalled == "":
		return ""
	}
	return fmt.Sprintf("no space left for %s", s.Stalled)
}

// eventKind is what can happen to a guest.
type eventKind int

const (
	evStop     eventKind = iota // end gracefully
	evKill                      // end now
	evTimer                     // the time of the present rung is over
	evHalted                    // QMP STOP
	evResumed                   // QMP RESUME
	evShutdown                  // QMP SHUTDOWN, with its reason
	evStalled                   // QMP BLOCK_IO_ERROR for want of space, with the disk
	evRoom                      // there may be space for that disk again
	evHold                      // the owner pauses the guest
	evSave                      // the owner suspends the guest to disk
	evKeep                      // its memory is written
	evSaved                     // and has its name: QEMU is not needed any more
	evUnsave                    // the suspend is over, and has not come so far
	evTaken                     // the guest's agent has been told to power down
	evDeaf                      // it does not answer, or refuses
	evWatchdog                  // the guest's watchdog has expired, with the action of its spec
	evExit                      // QEMU is gone
)

type event struct {
	kind   eventKind
	reason string // of evShutdown, evStalled and evWatchdog; suspendShot of evSave, halfDone of evUnsave
	agent  bool   // of evStop: there may be an agent in the guest that answers
}

// actionKind is what the supervisor can do about it.
type actionKind int

const (
	actResume    actionKind = iota // QMP cont
	actAgent                       // tell the guest's agent to power down
	actPowerdown                   // QMP system_powerdown
	actQuit                        // QMP quit
	actKill                        // SIGKILL
	actArm                         // start the timer of the rung, with its time
	actDisarm                      // stop the timer
)

type action struct {
	kind  actionKind
	after time.Duration // of actArm
}

// ladder holds the times that the rungs get.
type ladder struct{ powerdown, quit time.Duration }

// next is the whole of a guest's life as a pure function: what the situation
// becomes with an event, and what is to be done.
func next(s situation, ev event, times ladder) (situation, []action) {
	if s.Ended {
		return s, nil
	}
	switch ev.kind {
	case evStop:
		if s.Rung != RungNone {
			return s, nil
		}
		s.Asked = true
		if s.Suspend.isUnderWay() { // which gives up for it, or ends the guest itself, soon
			return s, []action{{kind: actArm, after: times.quit}}
		}
		s.Suspend = suspendNone
		return startLadder(s, times, ev.agent)
	case evTaken:
		s.Agent = s.Rung == RungAgent
	case evDeaf:
		if s.Rung == RungAgent {
			return press(s, times)
		}
	case evKill:
		s.Asked, s.Rung = true, RungKill
		return s, []action{{kind: actDisarm}, {kind: actKill}}
	case evTimer:
		return climb(s, times)
	case evHalted:
		s.Paused = true
	case evResumed:
		s.Paused, s.Ran, s.Held, s.Stalled = false, true, false, ""
		if s.Suspend == suspendOver {
			s.Suspend = suspendNone
		}
		if s.Watchdog == configs.WatchdogPause {
			s.Watchdog = ""
		}
	case evShutdown:
		s.Shutdown = ev.reason
	case evStalled:
		s.Stalled = ev.reason
	case evWatchdog:
		return bark(s, configs.WatchdogAction(ev.reason), times)
	case evHold:
		s.Held = true
	case evRoom:
		return s, goOn(s)
	case evSave, evKeep, evSaved, evUnsave:
		return nextSuspend(s, ev, times)
	case evExit:
		s.Ended = true
		return s, []action{{kind: actDisarm}}
	}
	return s, nil
}

// bark ends a guest that has not fed its watchdog, if it is to end by that: not by
// the power button, which it would not hear. QEMU has halted it.
func bark(s situation, what configs.WatchdogAction, times ladder) (situation, []action) {
	switch {
	case what == configs.WatchdogPause:
		s.Watchdog = what
	case what == configs.WatchdogPoweroff && s.Rung == RungNone:
		s.Watchdog, s.Rung = what, RungQuit
		return s, []action{{kind: actQuit}, {kind: actArm, after: times.quit}}
	}
	return s, nil
}

// nextSuspend is next for a guest that is suspended to disk. Until its memory is
// kept a wish to stop comes first; from then on the guest has ended, and QEMU is
// told so.
func nextSuspend(s situation, ev event, times ladder) (situation, []action) {
	switch kind := ev.kind; {
	case kind == evSave && s.Suspend == suspendNone && s.Rung == RungNone && s.Stalled == "":
		s.Suspend = suspendSaving
		if ev.reason == string(suspendShot) {
			s.Suspend = suspendShot
		}
	case kind == evKeep && s.Suspend == suspendSaving && s.Rung == RungNone && !s.Asked && s.Paused:
		s.Suspend = suspendKept
	case kind == evSaved && s.Suspend == suspendKept && s.Rung == RungNone:
		s.Asked, s.Rung = true, RungQuit
		return s, []action{{kind: actQuit}, {kind: actArm, after: times.quit}}
	case kind == evUnsave && s.Suspend != suspendNone:
		s.Suspend = suspendNone
		s.Held = s.Held || s.Paused && ev.reason == halfDone
		switch {
		case s.Rung != RungNone:
		case s.Asked:
			return startLadder(s, times, false)
		case s.Paused && !s.Held:
			s.Suspend = suspendOver // until it does
			return s, []action{{kind: actResume}}
		}
	}
	return s, nil
}

// goOn resumes a guest that QEMU has halted for want of space, unless its owner
// wants it halted or QEMU is about to end.
func goOn(s situation) []action {
	if s.Stalled == "" || !s.Paused || s.Held || s.Suspend != suspendNone || s.Rung == RungQuit || s.Rung == RungKill {
		return nil
	}
	return []action{{kind: actResume}}
}

// startLadder sets foot on the first rung that can work. A guest that stands
// still cannot hear its power button: one that has run is resumed for it, one
// that never did has nothing to lose. An agent in the guest hears better than a
// power button.
func startLadder(s situation, times ladder, agent bool) (situation, []action) {
	if s.Paused && !s.Ran {
		s.Rung = RungQuit
		return s, []action{{kind: actQuit}, {kind: actArm, after: times.quit}}
	}
	var actions []action
	if s.Paused {
		actions = append(actions, action{kind: actResume})
	}
	if agent {
		s.Rung = RungAgent
		return s, append(actions, action{kind: actAgent}, action{kind: actArm, after: min(agentPatience, times.powerdown)})
	}
	s, pressed := press(s, times)
	return s, append(actions, pressed...)
}

// press presses the power button for the first time.
func press(s situation, times ladder) (situation, []action) {
	s.Rung, s.Presses, s.Agent = RungPowerdown, 1, false
	return s, []action{{kind: actPowerdown}, {kind: actArm, after: min(pressEvery, times.powerdown)}}
}

// agentPatience is how long the power button waits for an agent. One that has been
// told to power down may have done nothing about it, so the button is pressed all
// the same.
const agentPatience = 2 * time.Second

// pressEvery is how often the power button is pressed. Firmware and a kernel
// that is just booting do not hear it, and nobody tells that it was lost.
const pressEvery = 5 * time.Second

func climb(s situation, times ladder) (situation, []action) {
	switch {
	case s.Rung != RungNone || !s.Asked:
	case s.Suspend == suspendSaving:
		return startLadder(s, times, false)
	case s.Suspend == suspendKept:
		return nextSuspend(s, event{kind: evSaved}, times)
	case s.Suspend == suspendShot: // QEMU halts and resumes the guest itself, and is waited for
		return s, []action{{kind: actArm, after: times.quit}}
	}
	switch s.Rung {
	case RungAgent, RungPowerdown:
		if s.Rung == RungAgent && !s.Agent {
			return press(s, times)
		}
		// A guest that has no space to write cannot power down.
		if left := s.left(times); left > 0 && s.Stalled == "" {
			s.Presses++
			return s, []action{{kind: actPowerdown}, {kind: actArm, after: min(pressEvery, left)}}
		}
		s.Rung = RungQuit
		return s, []action{{kind: actQuit}, {kind: actArm, after: times.quit}}
	case RungQuit, RungKill:
		s.Rung = RungKill
		return s, []action{{kind: actKill}}
	}
	return s, nil
}

// left is what is left of the time for powering down when the present timer is
// over.
func (s situation) left(times ladder) time.Duration {
	used := time.Duration(s.Presses) * pressEvery
	if s.Rung == RungAgent {
		used += agentPatience
	}
	return times.powerdown - used
}
