package launcher

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"vmrun/configs"
)

func TestLineWatch(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, tt := range []struct {
		name, pattern string
		pieces        []string
		want          string // "" for none
	}{
		{"a line", "^ready$", []string{"boot\r\nready\r\nmore"}, "ready"},
		{"a prompt", "login: $", []string{"web1 ", "log", "in: "}, "web1 login: "},
		{"in pieces", "^ready", []string{"\nre", "ady to go"}, "ready to go"},
		{"not over lines", "a.*b", []string{"a\nb"}, ""},
		{"a line that was written over", "^b", []string{"aaa\rb"}, "b"},
		{"in colours", `^\[  OK  \] Reached target Multi-User`, []string{"[\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mMulti-User"}, "[  OK  ] Reached target Multi-User"},
		{"beyond the bound", "ready", []string{long, "ready\n"}, ""},
		{"after one beyond it", "ready", []string{long + long, "\nready"}, "ready"},
		{"another pattern", "(", []string{"ready"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var w lineWatch
			got := ""
			for _, piece := range tt.pieces {
				if line, ok := w.find(tt.pattern, []byte(piece)); ok {
					got = line
				}
			}
			if got != tt.want {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
}

// Whose time to become ready is over is stopped as not ready, unless he is ready,
// or somebody keeps him from it or wants his end.
func TestTooLate(t *testing.T) {
	for _, tt := range []struct {
		name  string
		now   situation
		ready bool
		late  bool
		when  configs.ReadyWhen
		plan  *Plan
	}{
		{"runs", situation{Ran: true}, false, true, configs.ReadyIP, nil},
		{"is ready", situation{Ran: true}, true, false, configs.ReadyIP, nil},
		{"never ran", situation{Paused: true}, false, false, configs.ReadyIP, nil},
		{"held", situation{Ran: true, Paused: true, Held: true}, false, false, configs.ReadyIP, nil},
		{"being stopped", situation{Ran: true, Asked: true, Rung: RungQuit}, false, false, configs.ReadyIP, nil},
		{"prints nothing", situation{Ran: true}, false, true, configs.ReadyConsole, &Plan{}},
		{"prints nothing since it was adopted", situation{Ran: true}, false, false, configs.ReadyConsole, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := &configs.Guest{Name: "web1", Ready: configs.Ready{When: tt.when, Timeout: time.Minute}}
			l := newLife(g, Options{RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler), MustBeReady: true})
			l.qemu = &process{done: make(chan struct{})}
			close(l.qemu.done) // and so no command is sent
			l.plan = tt.plan
			l.rec = record{Guest: g, Committed: true, Ready: tt.ready}
			w := &watcher{life: l, now: tt.now, timer: time.NewTimer(time.Hour), stopLooking: func() {}}
			defer w.timer.Stop()
			w.tooLate()
			w.acts.Wait()
			if w.late != tt.late || w.late != (w.now.Rung == RungPowerdown) {
				t.Errorf("late %v, want %v; %+v", w.late, tt.late, w.now)
			}
		})
	}
}
