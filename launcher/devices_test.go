package launcher

import (
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
)

// What a watchdog that has expired leads to, and how a guest has ended by it.
func TestWatchdogBarks(t *testing.T) {
	times := ladder{powerdown: time.Minute, quit: 5 * time.Second}
	running := situation{Ran: true}
	for _, tt := range []struct {
		name    string
		before  situation
		action  configs.WatchdogAction
		after   situation
		actions []actionKind
	}{
		{"reset is QEMU's", running, configs.WatchdogReset, running, nil},
		{"none", running, configs.WatchdogNone, running, nil},
		{"pause", situation{Ran: true, Paused: true}, configs.WatchdogPause, situation{Ran: true, Paused: true, Watchdog: configs.WatchdogPause}, nil},
		{"poweroff", running, configs.WatchdogPoweroff, situation{Ran: true, Watchdog: configs.WatchdogPoweroff, Rung: RungQuit}, []actionKind{actQuit, actArm}},
		{"poweroff while it stops", situation{Ran: true, Asked: true, Rung: RungPowerdown}, configs.WatchdogPoweroff,
			situation{Ran: true, Asked: true, Rung: RungPowerdown}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			after, actions := next(tt.before, event{kind: evWatchdog, reason: string(tt.action)}, times)
			var kinds []actionKind
			for _, a := range actions {
				kinds = append(kinds, a.kind)
			}
			if diff := cmp.Diff([]any{tt.after, tt.actions}, []any{after, kinds}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	resumed, _ := next(situation{Ran: true, Paused: true, Watchdog: configs.WatchdogPause}, event{kind: evResumed}, times)
	if resumed != running {
		t.Errorf("resumed: %+v", resumed)
	}
	ended := situation{Ran: true, Watchdog: configs.WatchdogPoweroff, Rung: RungQuit, Shutdown: "host-qmp-quit"}
	if o := outcome(ended, exit{known: true}, nil); o.Reason != ReasonWatchdog || o.Good() {
		t.Errorf("ended: %+v", o)
	}
	ended.Asked = true
	if o := outcome(ended, exit{known: true, status: syscall.WaitStatus(0)}, nil); o.Reason != ReasonStopped {
		t.Errorf("stopped: %+v", o)
	}
}

func TestSuspendable(t *testing.T) {
	if err := suspendable(&configs.Guest{TPM: true}); err != nil {
		t.Error(err)
	}
	if suspendable(&configs.Guest{Shares: []configs.Share{{Path: "/src", Tag: "src"}}}) == nil {
		t.Error("a guest with a share can be suspended")
	}
}
