package launcher

import (
	"fmt"
	"time"

	"vmrun/configs"
)

// EventReady says that the guest has come as far as ready.when in its spec says;
// data: text, how.
const EventReady = "VMRUN_READY"

// checkReady looks whether the guest is ready by now. What it prints is looked at
// as it comes.
func (l *life) checkReady() {
	rec := l.snapshot()
	if rec.Ready || !rec.Committed {
		return
	}
	switch rec.Guest.Ready.When {
	case configs.ReadyStarted:
		if rec.Situation.Ran {
			l.becomeReady("its CPUs run")
		}
	case configs.ReadyIP:
		if addr, ok := rec.status(0).Address(); ok {
			l.becomeReady("it has the address " + addr)
		}
	}
}

// heard looks at what the guest has printed.
func (l *life) heard(data []byte) {
	l.mu.Lock()
	ready, want := l.rec.Ready, l.rec.Guest.Ready
	l.mu.Unlock()
	if ready || want.When != configs.ReadyConsole {
		return
	}
	if line, ok := l.printed.find(want.Console, data); ok {
		l.becomeReady(fmt.Sprintf("it printed %q", line))
	}
}

// becomeReady notes and tells, once, that the guest is ready.
func (l *life) becomeReady(how string) {
	news := false
	_ = l.update(func(r *record) { news, r.Ready = !r.Ready, true }) // which has been logged
	if !news {
		return
	}
	l.log.Info("guest is ready", "because", how)
	l.announce(newEvent(EventReady, map[string]any{"text": how}))
}

// readyTimer tells when the guest is to be ready at the latest.
func (w *watcher) readyTimer() <-chan time.Time {
	if limit := w.guest().Ready.Timeout; limit > 0 && !w.snapshot().Ready {
		return time.After(limit)
	}
	return nil
}

// tooLate is called when the guest's time to become ready is over. One whose
// owner lets it wait is not late, nor is one that is being stopped.
func (w *watcher) tooLate() {
	rec := w.snapshot()
	if rec.Ready || w.now.Held || !w.now.Ran || w.now.Rung != RungNone {
		return
	}
	if w.plan == nil && rec.Guest.Ready.When == configs.ReadyConsole { // adopted, which is to cost a guest nothing
		w.becomeReady("it may have printed that while it had no supervisor")
		return
	}
	w.log.Error("guest is not ready", "within", rec.Guest.Ready.Timeout, "waits for", rec.Guest.Ready.Wish(), "stopping", w.opts.MustBeReady)
	if w.opts.MustBeReady {
		w.late = true
		w.handle(event{kind: evStop})
	}
}

// lateEnd is the outcome of a guest that was ended because it was not ready.
func (w *watcher) lateEnd(o Outcome) Outcome {
	ready := w.guest().Ready
	return Outcome{Reason: ReasonNotReady, Rung: o.Rung,
		Detail: fmt.Sprintf("not ready within %v (%s): %s", ready.Timeout, ready.Wish(), o)}
}
