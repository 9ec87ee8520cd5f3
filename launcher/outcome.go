package launcher

import (
	"fmt"
	"syscall"
	"time"

	"vmrun/configs"
)

// Reason says why a guest ended.
type Reason string

// The reasons.
const (
	ReasonPoweroff Reason = "poweroff" // the guest powered itself off
	ReasonStopped  Reason = "stopped"  // somebody asked for it
	ReasonPanic    Reason = "panic"    // the guest's kernel panicked
	ReasonSignal   Reason = "signal"   // QEMU was sent a signal by somebody else
	ReasonQuit     Reason = "quit"     // QEMU was told to quit by somebody else
	ReasonCrash    Reason = "crash"    // QEMU ended in disorder
	ReasonOOM      Reason = "oom"      // the kernel killed QEMU for want of memory
	ReasonUnknown  Reason = "unknown"  // QEMU ended while nobody watched

	ReasonSuspended   Reason = "suspended"    // its memory is on disk, for its next start to go on from
	ReasonWatchdog    Reason = "watchdog"     // the guest did not feed its watchdog
	ReasonNotReady    Reason = "not-ready"    // it was stopped for not being ready in time
	ReasonStartFailed Reason = "start-failed" // the guest could not be restarted
)

// Outcome is how a guest ended.
type Outcome struct {
	Reason Reason    `json:"reason"`
	Rung   Rung      `json:"rung,omitempty"` // the rung of the stop ladder that did it
	Detail string    `json:"detail,omitempty"`
	Log    []string  `json:"log,omitempty"` // QEMU's last words, of a crash
	At     time.Time `json:"at"`
}

// Good reports whether the guest ended as it or its owner wanted.
func (o Outcome) Good() bool {
	return o.Reason == ReasonPoweroff || o.Reason == ReasonStopped || o.Reason == ReasonSuspended
}

// String is the outcome in a line.
func (o Outcome) String() string {
	switch {
	case o.Reason == ReasonStopped && o.Rung != RungNone:
		return fmt.Sprintf("stopped (%s)", o.Rung)
	case o.Detail != "":
		return o.Detail
	case o.Reason == ReasonPoweroff:
		return "the guest powered itself off"
	case o.Reason == ReasonPanic:
		return "the guest's kernel panicked"
	case o.Reason == ReasonUnknown:
		return "ended while nobody watched, for reasons unknown"
	}
	return string(o.Reason)
}

// exit is how the QEMU process ended: the wait status of a child, or nothing
// for a process that was adopted.
type exit struct {
	known  bool
	status syscall.WaitStatus
	oom    string // what says that the kernel killed it for want of memory, or ""
}

func (e exit) killed() bool {
	return e.known && e.status.Signaled() && e.status.Signal() == syscall.SIGKILL
}

// outcome works out why the guest ended. QEMU's exit status alone cannot tell,
// since it is 0 after quit as after SIGTERM; the reason of its SHUTDOWN event
// can (qapi/run-state.json, ShutdownCause).
func outcome(s situation, e exit, log []string) Outcome {
	if s.Suspend == suspendKept { // however QEMU went: its disks are flushed
		return Outcome{Reason: ReasonSuspended}
	}
	if s.Watchdog == configs.WatchdogPoweroff && !s.Asked {
		return Outcome{Reason: ReasonWatchdog, Rung: s.Rung, Detail: "the guest did not feed its watchdog"}
	}
	if s.Rung == RungKill && e.known && e.status.Signaled() {
		// Whatever QEMU had announced before, it hung on the way, and its disks
		// may not be flushed.
		return Outcome{Reason: ReasonStopped, Rung: RungKill}
	}
	switch s.Shutdown {
	case "guest-reset": // with -no-reboot among qemu_args
		if s.Asked {
			return Outcome{Reason: ReasonStopped, Rung: s.gentle()}
		}
		return Outcome{Reason: ReasonPoweroff, Detail: "the guest rebooted, which QEMU was told to end with"}
	case "guest-shutdown":
		if s.Asked {
			return Outcome{Reason: ReasonStopped, Rung: s.gentle()}
		}
		return Outcome{Reason: ReasonPoweroff}
	case "guest-panic":
		return Outcome{Reason: ReasonPanic}
	case "host-qmp-quit":
		if s.Asked {
			return Outcome{Reason: ReasonStopped, Rung: RungQuit}
		}
		return Outcome{Reason: ReasonQuit, Detail: "QEMU was told to quit by another client"}
	case "host-signal":
		return Outcome{Reason: ReasonSignal, Detail: "QEMU ended on a signal from outside"}
	}
	if s.Rung == RungKill {
		return Outcome{Reason: ReasonStopped, Rung: RungKill}
	}
	if e.oom != "" && (e.killed() || !e.known) {
		return Outcome{Reason: ReasonOOM, Detail: e.oom}
	}
	if s.Rung == RungQuit { // QEMU closed the connection before its last event was read
		return Outcome{Reason: ReasonStopped, Rung: RungQuit}
	}
	switch {
	case !e.known: // no child of the supervisor that adopted it
		return Outcome{Reason: ReasonUnknown, Detail: "QEMU ended without a word, and its exit status is not known: the guest was adopted"}
	case e.killed():
		return Outcome{Reason: ReasonSignal, Detail: "QEMU was killed by SIGKILL from outside"}
	case e.status.Signaled():
		return Outcome{Reason: ReasonCrash, Detail: fmt.Sprintf("QEMU crashed with %v", e.status.Signal()), Log: log}
	}
	return Outcome{Reason: ReasonCrash, Detail: fmt.Sprintf("QEMU ended with status %d", e.status.ExitStatus()), Log: log}
}

// gentle is the rung on which a guest that was asked to has powered itself down.
func (s situation) gentle() Rung {
	if s.Agent {
		return RungAgent
	}
	return RungPowerdown
}
