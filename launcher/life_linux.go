package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"vmrun/netsetup"
	"vmrun/qmp"
)

// commandTimeout bounds a QMP command that QEMU answers at once when it can.
const commandTimeout = 2 * time.Second

// life is what a supervisor holds of its guest. Steps fill it, undos empty it.
type life struct {
	*supervisor
	plan *Plan    // nil for a guest that was adopted
	past restarts // before this life

	memory *memory     // that it goes on from, or nil
	spent  atomic.Bool // and it is there no more

	printed lineWatch // of the goroutine that reads the console

	lease    *os.File            // on the slot, until QEMU has its uid
	initrd   *sealing            // being made while the start goes on
	reopened []*os.File          // of the files, those that QEMU opens anew
	files    map[string]*os.File // QEMU's, until it has them
	ends     map[string]*os.File // the companions', until they have them
	fallen   chan *running       // the companions that have ended
	ns       *netsetup.Namespace
	qemu     *process
	stderr   *stderrPipe // nil where QEMU writes its log by itself
	nics     *nics
	whispers *stderrPipe // its companions'
	undo     undoStack

	machined *membership // nil where there is no systemd

	warnings []string // for whoever started the guest

	committed bool                // the guest is there to stay
	requests  chan func(*watcher) // run by the goroutine that owns the situation
	dialing   chan struct{}       // held while a lost monitor is dialled
	reloads   chan struct{}       // held while the spec is read again

	diskWork sync.Mutex // held by whoever changes a disk

	mu        sync.Mutex // guards what follows, which the control socket reads
	rec       record
	unwritten bool     // the record is newer than the state file
	console   *console // nil where there is none
	mon       *qmp.Client
	events    *qmp.Subscription
}

// undoUnlessCommitted undoes only while the start is half done.
func (l *life) undoUnlessCommitted(name string, undo func() error) {
	l.undo.push(name, func() error {
		if l.committed {
			return nil
		}
		return undo()
	})
}

// apply runs the plan's steps. When one fails everything is undone, and the
// error names the step.
func (l *life) apply(ctx context.Context) error {
	for _, s := range l.plan.Steps {
		err := l.opts.do(s.Name, func() error { return s.do(l, ctx) })
		if err != nil && l.committed {
			l.log.Error("the guest could not be let run", "step", s.Name, "error", err)
			l.warnings = append(l.warnings, fmt.Sprintf("%s: %v", s.Name, err))
			return nil // the guest is there; it is the owner's to look after
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", s.Name, err), l.rollBack())
		}
	}
	return nil
}

// do carries the step out, unless nobody wants it any more.
func (s Step) do(l *life, ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.apply(l, ctx)
}

// rollBack gives everything back that a half-done start has acquired.
func (l *life) rollBack() error {
	l.closeFiles()
	l.closeEnds()
	return errors.Join(l.undo.run(), l.endLease())
}

func (l *life) closeFiles() {
	closeFiles(l.files)
	clear(l.files)
}

func (l *life) closeEnds() {
	closeFiles(l.ends)
	clear(l.ends)
}

func (l *life) endLease() error {
	if l.lease == nil {
		return nil
	}
	err := l.lease.Close()
	l.lease = nil
	return err
}

// recordStart begins a new record: whatever the last one said is over.
func (l *life) recordStart(context.Context) error {
	if err := l.settleGroup(); err != nil {
		return err
	}
	l.mu.Lock()
	l.rec = record{
		Version:    recordVersion,
		BootID:     bootID(),
		Guest:      l.guest(),
		UUID:       l.plan.UUID,
		Accel:      l.plan.Accel,
		Children:   l.plan.Children,
		Slot:       l.plan.Slot,
		Unlimited:  l.plan.Unlimited,
		Kills:      countKills(os.Getpid()), // in whose cgroup QEMU starts
		Ports:      l.plan.Ports,
		Supervisor: os.Getpid(),
		Halted:     l.opts.Paused,
		Forced:     l.opts.Force,
		Restarts:   l.past,
		Situation:  situation{Paused: true},
		Started:    time.Now(),
	}
	if m := l.memory; m != nil {
		l.rec.Restored, l.rec.Ready, l.rec.Addresses = true, m.Ready, m.Addresses
	}
	l.mu.Unlock()
	l.undoUnlessCommitted(fileState, func() error { return l.removeOwn(fileState) })
	return l.update(func(*record) {})
}

// update changes the record, in memory and on disk. Where the latter fails, the
// watcher tries again.
func (l *life) update(change func(*record)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.rec)
	nudge(l.news)
	err := fmt.Errorf("the run directory %s is not this guest's any more", l.dir)
	if l.owns() {
		err = l.dir.writeRecord(&l.rec)
	}
	before := l.unwritten
	l.unwritten = err != nil && l.rec.Committed
	switch {
	case l.unwritten && !before:
		l.log.Error("the state file is out of date", "error", err)
	case before && !l.unwritten:
		l.log.Info("the state file is right again")
	}
	return err
}

// owns reports whether the run directory still is the one that was locked. When
// somebody has removed it, another guest of the name may have made it anew.
func (l *life) owns() bool { return l.lock != nil && sameFile(l.lock, l.dir.path(fileLock)) }

// removeOwn removes a file of the run directory, as long as that is the guest's.
func (l *life) removeOwn(file string) error {
	if !l.owns() {
		return nil
	}
	return removeFile(l.dir.path(file))
}

// snapshot is the record as it is now.
func (l *life) snapshot() record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec
}

func (l *life) setSituation(s situation) {
	_ = l.update(func(r *record) { r.Situation = s }) // which has been logged
}

// isUnwritten reports whether the state file is older than the record.
func (l *life) isUnwritten() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unwritten
}

func (l *life) setMonitor(mon *qmp.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mon, l.events = mon, mon.Subscribe()
}

// monitor is the present connection to QEMU, or nil.
func (l *life) monitor() *qmp.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mon
}

func (l *life) subscription() *qmp.Subscription {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events
}

func (l *life) closeMonitor() error {
	if mon := l.monitor(); mon != nil {
		mon.Close() // whatever it ended with is not news any more
	}
	return nil
}
