package launcher

import (
	"context"
	"fmt"
	"sync"
	"time"

	"vmrun/qmp"
)

// Events of vmrun's own, beside QEMU's, on the control socket.
const (
	EventState = "VMRUN_STATE" // data: state, a State; rung, of a stop; text, why the CPUs stand still
	EventEnded = "VMRUN_ENDED" // for good; data: an Outcome

	EventNIC       = "VMRUN_NIC"       // data: nic, its name; change, a word; text, for people
	EventAddresses = "VMRUN_ADDRESSES" // data: nic, its name; addresses, what is known of them by now
)

// watcher owns the guest's situation. Only its goroutine touches it; others
// send it a function through life.requests.
type watcher struct {
	*life
	now     situation
	timer   *time.Timer
	dropped uint64         // events lost so far, for noticing more
	acts    sync.WaitGroup // QMP commands under way
	asking  bool           // QEMU is being asked for its run state
	askMore bool           // and is to be asked again after that
	turns   int            // how often the CPUs were halted or resumed, as far as is known

	halted      time.Time          // when the CPUs were halted last, as far as is known
	late        bool               // the guest is ended because it was not ready in time
	stopLooking context.CancelFunc // for space, while the guest is stalled
	fallen      []*running         // companions that have ended, perhaps because QEMU does
	verdict     <-chan time.Time   // when QEMU would have ended too
	calm        <-chan time.Time   // when a guest that was stalled has run long enough to say so
}

// watch looks after the guest until QEMU is gone. Everything that can happen
// comes through this select.
func (l *life) watch(ctx context.Context) Outcome {
	w := &watcher{life: l, now: l.snapshot().Situation, timer: time.NewTimer(time.Hour)}
	w.timer.Stop()
	defer w.timer.Stop()
	w.stopLooking = func() {}
	defer func() { w.stopLooking() }()
	if w.now.Stalled != "" {
		w.stallChanged()
	}
	w.carryOn()
	l.machined = l.join()
	l.nics.run()
	l.checkReady()
	late := w.readyTimer()
	asked, kill := ctx.Done(), l.opts.Kill
	for {
		var redial <-chan time.Time
		if w.monitor() == nil {
			redial = time.After(redialEvery)
		}
		var rewrite <-chan time.Time
		if w.isUnwritten() {
			rewrite = time.After(rewriteEvery)
		}
		select {
		case ev, ok := <-w.qmpEvents():
			w.qmpEvent(ev, ok)
		case request := <-l.requests:
			request(w)
		case <-w.timer.C:
			w.handle(event{kind: evTimer})
		case <-asked:
			asked = nil
			l.log.Info("asked to end the guest, by a signal for example")
			w.handle(event{kind: evStop})
		case <-kill:
			kill = nil
			w.handle(event{kind: evKill})
		case <-late:
			w.tooLate()
		case r := <-l.fallen:
			w.fallen, w.verdict = append(w.fallen, r), time.After(companionTimeout)
		case <-w.verdict:
			w.companionsGone()
		case <-w.calm:
			w.calm = nil
			w.log.Info("there is space again: the guest goes on")
		case <-redial:
			w.act("answer", func(*qmp.Client, context.Context) error { return nil })
		case <-rewrite:
			_ = w.update(func(*record) {}) // until it can be written
		case <-l.qemu.done:
			return w.finish()
		}
	}
}

// redialEvery is how often a QEMU that has lost its connection, or never took
// one, is tried again. There is no timer while all is well.
const redialEvery = 3 * time.Second

// rewriteEvery is how often a state file is tried that could not be written.
const rewriteEvery = 3 * time.Second

// carryOn takes up a stop that a dead predecessor had begun, and gives up its suspend.
func (w *watcher) carryOn() {
	if w.now.Suspend != suspendNone {
		w.unsave()
	}
	rung := w.now.Rung
	switch {
	case w.now.Watchdog != "" && !w.now.Asked: // it has barked while nobody was there, perhaps
		w.now.Rung = RungNone
		w.barked()
		return
	case rung == RungNone:
		return
	}
	w.now.Rung = RungNone
	kind := evStop
	if rung == RungKill {
		kind = evKill
	}
	w.handle(event{kind: kind})
}

func (w *watcher) qmpEvents() <-chan qmp.Event {
	if sub := w.subscription(); sub != nil {
		return sub.Events()
	}
	return nil
}

func (w *watcher) qmpEvent(ev qmp.Event, ok bool) {
	if !ok { // the connection is over, and QEMU probably too
		if w.now.Shutdown != "" || w.qemu.exiting() {
			w.nics.closeSoon()
		}
		w.forgetMonitor()
		w.dropped = 0
		return
	}
	w.announce(ev)
	w.apply(ev)
	if lost := w.subscription().Dropped(); lost > w.dropped {
		w.dropped = lost
		w.resync()
	}
}

func (w *watcher) apply(ev qmp.Event) {
	w.nics.qmpEvent(ev)
	switch ev.Event {
	case "STOP":
		w.turns++
		w.handle(event{kind: evHalted})
	case "RESUME":
		w.turns++
		w.handle(event{kind: evResumed})
	case "BLOCK_IO_ERROR":
		w.blockError(ev)
	case "SHUTDOWN":
		reason, _ := ev.Data["reason"].(string)
		w.handle(event{kind: evShutdown, reason: reason})
	case "GUEST_PANICKED", "MEMORY_FAILURE":
		w.say(ev)
	case "WATCHDOG":
		w.barked()
	}
}

// barked does what the spec says of a guest that has not fed its watchdog, beside
// what QEMU has done.
func (w *watcher) barked() {
	action := w.guest().Watchdog.Action
	w.log.Warn("the guest has not fed its watchdog", "action", action)
	w.handle(event{kind: evWatchdog, reason: string(action)})
}

func (w *watcher) say(ev qmp.Event) {
	w.log.Warn("QEMU says", "event", ev.Event, "data", fmt.Sprint(ev.Data))
}

// handle feeds an event to the state machine and does what it says.
func (w *watcher) handle(ev event) {
	before := w.now
	stop := w.guest().Stop
	ev.agent = ev.kind == evStop && w.nics.agent.mayAnswer()
	after, actions := next(before, ev, ladder{powerdown: stop.Timeout, quit: stop.QuitTimeout})
	if w.now = after; after != before {
		w.setSituation(after)
	}
	if after.Paused != before.Paused {
		w.nics.pause(after.Paused)
		w.checkReady()
		w.keepTime(before)
	}
	if after.Rung != before.Rung {
		w.log.Info("stopping", "rung", after.Rung)
	}
	if !after.Ended && (after.state() != before.state() || after.why() != before.why()) { // who ends it tells of its end
		data := map[string]any{"state": string(after.state()), "rung": string(after.Rung)}
		if why := after.why(); why != "" {
			data["text"] = why
		}
		w.announce(newEvent(EventState, data))
	}
	if after.Stalled != before.Stalled {
		w.stallChanged()
	}
	for _, a := range actions {
		w.perform(a)
	}
}

func (w *watcher) perform(a action) {
	switch a.kind {
	case actArm:
		w.timer.Reset(a.after)
	case actDisarm:
		w.timer.Stop()
	case actKill:
		if err := w.opts.do("kill", func() error { return w.qemu.signal(sigKill) }); err != nil {
			w.log.Error("kill", "error", err)
			w.timer.Reset(killAgain)
			return
		}
		w.nics.closeSoon()
	case actResume:
		w.act("cont", func(mon *qmp.Client, ctx context.Context) error {
			if err := w.spendMemory(); err != nil {
				return err
			}
			return mon.Cont(ctx)
		})
	case actAgent:
		w.tellAgent()
	case actPowerdown:
		w.act("system_powerdown", (*qmp.Client).SystemPowerdown)
	case actQuit:
		w.act("quit", (*qmp.Client).Quit)
	}
}

// killAgain is when a SIGKILL that could not be sent is sent again.
const killAgain = time.Second

// act runs a QMP command beside the loop, which must never wait for QEMU.
func (w *watcher) act(name string, command func(*qmp.Client, context.Context) error) {
	w.acts.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		defer cancel()
		err := w.opts.do(name, func() error {
			mon, err := w.reach(ctx)
			if err != nil {
				return err
			}
			return command(mon, ctx)
		})
		if err != nil {
			w.log.Warn("QEMU did not do as told", "command", name, "error", err)
		}
	})
}

// resync finds out what lost events would have told.
func (w *watcher) resync() {
	w.nics.resync()
	w.askRun()
}

// askRun asks QEMU for its run state, one question at a time however many events
// are lost.
func (w *watcher) askRun() {
	if w.askMore = w.asking; w.asking {
		return
	}
	w.asking = true
	turns := w.turns
	w.acts.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		defer cancel()
		var run qmp.Status
		var stalled string
		mon, err := w.reach(ctx)
		if err == nil {
			run, stalled, err = queryRun(ctx, mon, w.guest())
		}
		w.request(context.Background(), func(w *watcher) { // which is there until QEMU ends
			w.asking = false
			switch {
			case err != nil:
				w.log.Warn("QEMU does not say whether the guest runs", "error", err)
			case turns == w.turns:
				w.sync(run, stalled)
			}
			if w.askMore || err == nil && turns != w.turns { // the answer is older than an event
				w.askRun()
			}
		})
	})
}

// sync makes the situation agree with QEMU's run state.
func (w *watcher) sync(run qmp.Status, stalled string) {
	if run.Running {
		w.handle(event{kind: evResumed})
		return
	}
	switch {
	case run.Status == "watchdog" && w.now.Watchdog == "":
		w.barked()
	case stalled != "":
		w.handle(event{kind: evStalled, reason: stalled})
	case run.Status == "paused": // by an owner, whatever the record said
		w.handle(event{kind: evHold})
	}
	w.handle(event{kind: evHalted})
}

// finish is called when QEMU is gone. Its last events may still be queued.
func (w *watcher) finish() Outcome {
	w.qemu.reap()
	deadline := time.After(time.Second)
	for w.monitor() != nil {
		select {
		case ev, ok := <-w.qmpEvents():
			w.qmpEvent(ev, ok)
		case <-deadline:
			w.forgetMonitor()
		}
	}
	o := outcome(w.now, w.ending(), w.lastWords())
	if w.late && o.Good() {
		o = w.lateEnd(o)
	}
	o.At = time.Now()
	w.handle(event{kind: evExit})
	w.acts.Wait()
	return o
}

func newEvent(name string, data map[string]any) qmp.Event {
	ev := qmp.Event{Event: name, Data: data}
	now := time.Now()
	ev.Timestamp.Seconds, ev.Timestamp.Microseconds = now.Unix(), int64(now.Nanosecond()/1000)
	return ev
}

// announce sends an event to everybody on the control socket.
func (l *life) announce(ev qmp.Event) {
	c := l.control.Load()
	if c == nil {
		return
	}
	if err := c.server.Broadcast(ev); err != nil {
		l.log.Warn("event not passed on", "event", ev.Event, "error", err)
	}
}

// request has fn run by the goroutine that owns the situation, and waits until
// it has.
func (l *life) request(ctx context.Context, fn func(*watcher)) error {
	done := make(chan struct{})
	select {
	case l.requests <- func(w *watcher) { fn(w); close(done) }:
		<-done
		return nil
	case <-l.qemu.done:
		return errGone
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reach returns the connection to QEMU, and makes a new one where it was lost,
// or could not be made when the guest was adopted.
func (l *life) reach(ctx context.Context) (*qmp.Client, error) {
	if mon := l.monitor(); mon != nil {
		return mon, nil
	}
	select {
	case l.dialing <- struct{}{}: // one at a time: QEMU serves only one
		defer func() { <-l.dialing }()
	case <-l.qemu.done: // which another QEMU may answer for by now
		return nil, errGone
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if mon := l.monitor(); mon != nil {
		return mon, nil
	}
	mon, err := qmp.Dial(ctx, l.dir.path(fileMonitor))
	if err != nil {
		return nil, err
	}
	l.setMonitor(mon)
	// The watcher may be the one that waits for this, so it is told beside it. It
	// is there until QEMU ends, and so is this at most.
	go l.request(context.Background(), (*watcher).resync)
	return mon, nil
}

func (l *life) forgetMonitor() {
	l.closeMonitor()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mon, l.events = nil, nil
}
