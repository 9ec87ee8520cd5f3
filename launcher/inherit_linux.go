package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"vmrun/netsetup"
	"vmrun/qmp"
)

// inherit looks at what an earlier supervisor of this guest left. It adopts a
// guest that was committed and still runs; it ends one that was half started;
// it notes the end of one that ended while nobody watched.
func (l *life) inherit(ctx context.Context) (adopted bool, err error) {
	rec, recErr := l.dir.readRecord()
	qemu, err := findGuest(l.dir, rec)
	if err != nil && !errors.Is(err, errGone) {
		return false, err
	}
	if qemu == nil {
		if recErr != nil && !errors.Is(recErr, os.ErrNotExist) {
			l.log.Warn("the state file is of no use", "error", recErr)
		}
		return false, l.opts.do("clear", func() error { return l.dir.clear(rec) })
	}
	adopt, err := l.dir.mayAdopt(ctx, qemu, rec, recErr)
	if adopt && err == nil {
		if m, _ := findMemory(l.opts.RunDir, l.guest().Name); m.isOf(qemu) {
			return false, l.opts.do("end suspended", func() error { return l.dir.endSuspended(qemu, rec) })
		}
	}
	switch {
	case err != nil:
		return false, errors.Join(err, qemu.pidfd.Close())
	case !adopt:
		l.log.Warn("ending what is left of a start that was never finished", "pid", qemu.id.PID)
		return false, l.opts.do("end half-started", func() error {
			return errors.Join(qemu.kill(), l.dir.endCompanions(), rec.removeCgroup(), l.dir.clear(nil))
		})
	}
	return true, l.adopt(ctx, rec, qemu)
}

// findGuest finds the living QEMU of a run directory: the one that the record
// names, if it has the directory's mark, or one that no record names. The error
// is errGone when there is none.
func findGuest(dir runDir, rec *record) (*process, error) {
	if rec == nil || rec.BootID != bootID() || rec.QEMU.PID == 0 {
		return findOrphan(dir)
	}
	p, err := findProcess(rec.QEMU)
	if errors.Is(err, errGone) {
		return findOrphan(dir)
	}
	if err != nil {
		return nil, err
	}
	marked, err := dir.marked(p.id.PID)
	if marked {
		return p, nil
	}
	p.pidfd.Close()
	if err != nil {
		return nil, err
	}
	return findOrphan(dir)
}

// alive reports whether the record's QEMU is the living process of that pid.
// Who may not look at the process's mark has to believe the record.
func (r *record) alive() bool {
	if r.BootID != bootID() || r.QEMU.PID == 0 {
		return false
	}
	start, err := startTime(r.QEMU.PID)
	if err != nil || start != r.QEMU.Start || r.dir == "" {
		return err == nil && start == r.QEMU.Start
	}
	marked, err := r.dir.marked(r.QEMU.PID)
	return marked || err != nil
}

// clear removes what a guest that is no more left in its run directory, and
// notes in its record, if it has one, that nobody saw its end.
func (d runDir) clear(rec *record) (err error) {
	defer func() { err = errors.Join(err, d.endCompanions(), rec.removeCgroup()) }() // which tells of its end
	for _, file := range sockets {
		if err := removeFile(d.path(file)); err != nil {
			return err
		}
	}
	if rec == nil || !rec.Committed {
		return removeFile(d.path(fileState))
	}
	if rec.Ended != nil {
		return nil
	}
	rec.Ended = rec.lost()
	rec.Ended.At = time.Now()
	return d.writeRecord(rec)
}

// remove deletes the run directory of a guest that has ended.
func (d runDir) remove() error {
	if err := os.RemoveAll(string(d)); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	return nil
}

// adopt takes over a running guest. Nothing here changes the guest, and a
// failure leaves it as it was.
func (l *life) adopt(ctx context.Context, rec *record, qemu *process) error {
	l.qemu, l.committed = qemu, true
	l.mu.Lock()
	l.rec = *rec
	l.rec.Supervisor = os.Getpid()
	l.rec.Restarts = rec.Restarts.inherited(time.Now())
	l.mu.Unlock()
	l.spec.Store(rec.Guest) // as it was started, whatever the spec says by now
	for _, s := range l.adoptionSteps() {
		if err := l.opts.do(s.Name, func() error { return s.apply(l, ctx) }); err != nil {
			return errors.Join(fmt.Errorf("adopt: %s: %w", s.Name, err), l.letGo())
		}
	}
	return nil
}

// letGo closes what adoption opened, and leaves the guest alone.
func (l *life) letGo() error {
	l.closeMonitor()
	return errors.Join(l.nics.letGo(), l.stderr.close(), l.ns.Close())
}

func (l *life) adoptionSteps() []Step {
	return []Step{
		{Name: "adopt namespace", apply: (*life).adoptNamespace},
		{Name: "adopt log", apply: (*life).adoptLog},
		{Name: "adopt cgroup", apply: (*life).adoptCgroup},
		{Name: "adopt companions", apply: (*life).adoptCompanions},
		{Name: "adopt monitor", apply: (*life).adoptMonitor},
		{Name: "adopt console", apply: (*life).adoptConsole},
		{Name: "adopt display", apply: (*life).adoptDisplay},
		{Name: "adopt nics", apply: (*life).watchNICs},
		{Name: "adopt record", apply: (*life).adoptRecord},
		{Name: "adopt control", apply: (*life).serveControl},
	}
}

func (l *life) adoptNamespace(context.Context) error {
	ns, err := netsetup.NamespaceOf(l.qemu.id.PID)
	if err != nil {
		return err
	}
	l.ns = ns
	if err := l.verify(); err != nil {
		return l.dir.misfit(l.qemu, err)
	}
	for _, file := range sockets {
		if file != fileControl { // which outlives this life
			l.undo.push(file, func() error { return l.removeOwn(file) })
		}
	}
	l.undo.push("namespace", ns.Close)
	for _, c := range l.rec.Children {
		l.undo.push(c.Name, func() error { return ns.Delete(c) })
	}
	return nil
}

// adoptRecord puts this supervisor into the state file. A guest is adopted all
// the same where that cannot be written, on a full file system for example.
func (l *life) adoptRecord(context.Context) error {
	_ = l.update(func(*record) {}) // which has been logged
	return nil
}

// adoptConsole connects to the console. A guest without one is adopted all the
// same.
func (l *life) adoptConsole(ctx context.Context) error {
	if err := l.connectConsole(ctx); err != nil {
		l.log.Warn("the adopted guest has no console any more", "error", err)
	}
	return nil
}

// adoptMonitor connects and makes sure that this QEMU is the guest's. One that
// does not answer is adopted all the same: it is unresponsive, not gone.
func (l *life) adoptMonitor(ctx context.Context) error {
	if err := l.spendMemory(); err != nil { // where a predecessor did not come so far
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	l.undo.push("monitor", l.closeMonitor)
	mon, err := qmp.Dial(ctx, l.dir.path(fileMonitor))
	if err != nil {
		l.log.Warn("the adopted guest's QEMU does not answer", "error", err)
		return nil
	}
	id, err := mon.QueryUUID(ctx)
	if err == nil && id != l.rec.UUID.String() {
		mon.Close()
		return l.dir.misfit(l.qemu, fmt.Errorf("it has the uuid %s, and the state file %s", id, l.rec.UUID))
	}
	if err := l.verifyCards(ctx, mon); err != nil {
		mon.Close()
		return l.dir.misfit(l.qemu, err)
	}
	l.setMonitor(mon)
	run, stalled, err := queryRun(ctx, mon, l.rec.Guest)
	if err != nil {
		l.log.Warn("the adopted guest's QEMU does not answer", "error", err)
		return nil
	}
	s := l.rec.Situation
	if (run.Status == "prelaunch" || l.rec.Restored && run.Status == "paused") && !l.rec.Halted && s.Rung == RungNone && !s.Ran {
		// The predecessor died between the commit and letting the guest run.
		return l.resume(ctx)
	}
	s = s.found(run, stalled)
	s.Ran = s.Ran || l.rec.Restored
	l.setSituation(s)
	return nil
}
