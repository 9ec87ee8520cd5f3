package launcher

import (
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func exited(status int) exit           { return exit{known: true, status: syscall.WaitStatus(status << 8)} }
func killedBy(s syscall.Signal) exit   { return exit{known: true, status: syscall.WaitStatus(s)} }
func dumpedBy(s syscall.Signal) exit   { return exit{known: true, status: syscall.WaitStatus(s) | 0x80} }
func short(e exit) exit                { e.oom = "short"; return e }
func askedAt(rung Rung) situation      { return situation{Ran: true, Asked: true, Rung: rung} }
func saying(shutdown string) situation { return situation{Ran: true, Shutdown: shutdown} }

func TestOutcome(t *testing.T) {
	log := []string{"qemu: its last words"}
	both := func(rung Rung, shutdown string) situation {
		s := askedAt(rung)
		s.Shutdown = shutdown
		return s
	}
	for _, tt := range []struct {
		name string
		s    situation
		exit exit
		want Outcome
		good bool
		text string
	}{
		{"powered off", saying("guest-shutdown"), exited(0), Outcome{Reason: ReasonPoweroff}, true, "the guest powered itself off"},
		{"powered off, adopted", saying("guest-shutdown"), exit{}, Outcome{Reason: ReasonPoweroff}, true, "the guest powered itself off"},
		{"powerdown asked for", both(RungPowerdown, "guest-shutdown"), exited(0),
			Outcome{Reason: ReasonStopped, Rung: RungPowerdown}, true, "stopped (powerdown)"},
		{"shut down when quit was on its way", both(RungQuit, "guest-shutdown"), exited(0),
			Outcome{Reason: ReasonStopped, Rung: RungPowerdown}, true, "stopped (powerdown)"},
		{"shut down by its agent", situation{Ran: true, Asked: true, Rung: RungAgent, Agent: true, Shutdown: "guest-shutdown"}, exited(0),
			Outcome{Reason: ReasonStopped, Rung: RungAgent}, true, "stopped (agent)"},
		{"shut down by its agent when quit was on its way", situation{Ran: true, Asked: true, Rung: RungQuit, Agent: true, Shutdown: "guest-shutdown"}, exited(0),
			Outcome{Reason: ReasonStopped, Rung: RungAgent}, true, "stopped (agent)"},
		{"quit after its agent did nothing", situation{Ran: true, Asked: true, Rung: RungQuit, Agent: true, Shutdown: "host-qmp-quit"}, exited(0),
			Outcome{Reason: ReasonStopped, Rung: RungQuit}, true, "stopped (quit)"},
		{"rebooted under -no-reboot", saying("guest-reset"), exited(0),
			Outcome{Reason: ReasonPoweroff, Detail: "the guest rebooted, which QEMU was told to end with"}, true,
			"the guest rebooted, which QEMU was told to end with"},
		{"panic", saying("guest-panic"), exited(0), Outcome{Reason: ReasonPanic}, false, "the guest's kernel panicked"},
		{"panic while stopping", both(RungPowerdown, "guest-panic"), exited(0), Outcome{Reason: ReasonPanic}, false, "the guest's kernel panicked"},
		{"quit asked for", both(RungQuit, "host-qmp-quit"), exited(0),
			Outcome{Reason: ReasonStopped, Rung: RungQuit}, true, "stopped (quit)"},
		{"quit by a stranger", saying("host-qmp-quit"), exited(0),
			Outcome{Reason: ReasonQuit, Detail: "QEMU was told to quit by another client"}, false, "QEMU was told to quit by another client"},
		{"quit without its event", askedAt(RungQuit), exited(0), Outcome{Reason: ReasonStopped, Rung: RungQuit}, true, "stopped (quit)"},
		{"quit without its event, adopted", askedAt(RungQuit), exit{}, Outcome{Reason: ReasonStopped, Rung: RungQuit}, true, "stopped (quit)"},
		{"SIGTERM from outside", saying("host-signal"), exited(0),
			Outcome{Reason: ReasonSignal, Detail: "QEMU ended on a signal from outside"}, false, "QEMU ended on a signal from outside"},
		{"SIGKILL by us", askedAt(RungKill), killedBy(syscall.SIGKILL), Outcome{Reason: ReasonStopped, Rung: RungKill}, true, "stopped (kill)"},
		{"SIGKILL by us, adopted", askedAt(RungKill), exit{}, Outcome{Reason: ReasonStopped, Rung: RungKill}, true, "stopped (kill)"},
		{"SIGKILL by us of a QEMU that hung in its quit", both(RungKill, "host-qmp-quit"), killedBy(syscall.SIGKILL),
			Outcome{Reason: ReasonStopped, Rung: RungKill}, true, "stopped (kill)"},
		{"SIGKILL by us of a QEMU that hung after the guest's shutdown", both(RungKill, "guest-shutdown"), killedBy(syscall.SIGKILL),
			Outcome{Reason: ReasonStopped, Rung: RungKill}, true, "stopped (kill)"},
		{"SIGKILL from outside", situation{Ran: true}, killedBy(syscall.SIGKILL),
			Outcome{Reason: ReasonSignal, Detail: "QEMU was killed by SIGKILL from outside"}, false,
			"QEMU was killed by SIGKILL from outside"},
		{"SIGKILL from outside during powerdown", askedAt(RungPowerdown), killedBy(syscall.SIGKILL),
			Outcome{Reason: ReasonSignal, Detail: "QEMU was killed by SIGKILL from outside"}, false,
			"QEMU was killed by SIGKILL from outside"},
		{"SIGKILL by the kernel", situation{Ran: true}, short(killedBy(syscall.SIGKILL)), Outcome{Reason: ReasonOOM, Detail: "short"}, false, "short"},
		{"SIGKILL by the kernel during powerdown", askedAt(RungPowerdown), short(killedBy(syscall.SIGKILL)),
			Outcome{Reason: ReasonOOM, Detail: "short"}, false, "short"},
		{"SIGKILL by the kernel before it could quit", askedAt(RungQuit), short(killedBy(syscall.SIGKILL)),
			Outcome{Reason: ReasonOOM, Detail: "short"}, false, "short"},
		{"SIGKILL by the kernel, adopted", situation{Ran: true}, short(exit{}), Outcome{Reason: ReasonOOM, Detail: "short"}, false, "short"},
		{"SIGKILL by us of one that had no memory", askedAt(RungKill), short(exit{}), Outcome{Reason: ReasonStopped, Rung: RungKill}, true, "stopped (kill)"},
		{"crash where there was no memory", situation{Ran: true}, short(dumpedBy(syscall.SIGSEGV)),
			Outcome{Reason: ReasonCrash, Detail: "QEMU crashed with segmentation fault", Log: log}, false, "QEMU crashed with segmentation fault"},
		{"crash", situation{Ran: true}, dumpedBy(syscall.SIGSEGV),
			Outcome{Reason: ReasonCrash, Detail: "QEMU crashed with segmentation fault", Log: log}, false, "QEMU crashed with segmentation fault"},
		{"abort while stopping", askedAt(RungPowerdown), dumpedBy(syscall.SIGABRT),
			Outcome{Reason: ReasonCrash, Detail: "QEMU crashed with aborted", Log: log}, false, "QEMU crashed with aborted"},
		{"status 1", situation{}, exited(1), Outcome{Reason: ReasonCrash, Detail: "QEMU ended with status 1", Log: log}, false, "QEMU ended with status 1"},
		{"status 0 without a word", situation{Ran: true}, exited(0),
			Outcome{Reason: ReasonCrash, Detail: "QEMU ended with status 0", Log: log}, false, "QEMU ended with status 0"},
		{"adopted, no word", situation{Ran: true}, exit{},
			Outcome{Reason: ReasonUnknown, Detail: "QEMU ended without a word, and its exit status is not known: the guest was adopted"}, false,
			"QEMU ended without a word, and its exit status is not known: the guest was adopted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := outcome(tt.s, tt.exit, log)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got.Good() != tt.good {
				t.Errorf("good is %t", got.Good())
			}
			if got.String() != tt.text {
				t.Errorf("%q, want %q", got.String(), tt.text)
			}
		})
	}
}

// Every outcome has words of its own: what is printed is never empty.
func TestOutcomeIsNeverSilent(t *testing.T) {
	shutdowns := []string{"", "none", "host-error", "host-qmp-quit", "host-qmp-system-reset", "host-signal", "host-ui",
		"guest-shutdown", "guest-reset", "guest-panic", "subsystem-reset", "snapshot-load"}
	for _, shutdown := range shutdowns {
		for rung := range rungOrder {
			for _, e := range []exit{{}, exited(0), exited(1), killedBy(syscall.SIGKILL), dumpedBy(syscall.SIGSEGV)} {
				s := situation{Ran: true, Asked: rung != RungNone, Rung: rung, Shutdown: shutdown}
				o := outcome(s, e, nil)
				if o.Reason == "" || strings.TrimSpace(o.String()) == "" || strings.Contains(o.String(), "()") {
					t.Errorf("%+v, %+v: %+v says %q", s, e, o, o.String())
				}
				if o.Reason == ReasonStopped && !s.Asked {
					t.Errorf("%+v, %+v: stopped, though nobody asked", s, e)
				}
			}
		}
	}
}
