package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"vmrun/configs"
)

// DefaultRunDir is where the guests' run directories are.
const DefaultRunDir = "/run/vmrun"

// Options are what Run can do without; the zero value works.
type Options struct {
	RunDir string       // the base of all run directories; DefaultRunDir when ""
	Log    *slog.Logger // nil for none
	Paused bool         // leave the guest's CPUs halted
	Force  bool         // override the rules that may be overridden

	// WaitParents is how long a start waits for parents that are not there yet.
	WaitParents time.Duration
	// MustBeReady stops a guest that is not ready in the time of its spec.
	MustBeReady bool

	// Kill, when it is closed, ends the guest at once.
	Kill <-chan struct{}
	// Ready is called once, when the guest has been started or adopted.
	Ready func(Report)
	// Tell is called, one call at a time, whenever what is known of the guest may
	// have changed. QEMU is not asked for it.
	Tell func(Status, *configs.Guest)
	// Reloading is called when a reload begins and when it is over.
	Reloading func(begin bool)
	// Reexec executes the program that is installed in place of this one, so that it
	// runs the same guest, and returns only when it could not. nil: nobody can.
	Reexec func() error
	// Alive is called each time that QEMU has answered, which is asked every
	// Watchdog.
	Alive    func()
	Watchdog time.Duration

	adoptOnly bool                          // never start: the guest is to be ended
	step      func(when, name string) error // test hook: "before" or "after" a step, which fails with its error
}

// Report is what a supervisor has to say once its guest is there.
type Report struct {
	Status   Status   `json:"status"`
	Adopted  bool     `json:"adopted"`
	Resumed  bool     `json:"resumed,omitempty"` // from a memory on disk
	Unit     string   `json:"-"`                 // of systemd's, through which it was started, or ""
	Warnings []string `json:"warnings,omitempty"`
}

// do carries out an act that can be the last one of a life: of each, tests make
// sure what happens then.
func (o *Options) do(name string, act func() error) error {
	if o.step == nil {
		return act()
	}
	if err := o.step("before", name); err != nil {
		return err
	}
	if err := act(); err != nil {
		return err
	}
	return o.step("after", name)
}

// supervisor is what a guest's lives have in common: there is one for as long as
// the guest's name is locked, and a restart begins another life.
type supervisor struct {
	opts Options
	log  *slog.Logger
	dir  runDir
	spec atomic.Pointer[configs.Guest] // what the guest is; a reload replaces it

	latest  atomic.Pointer[life] // the last that has begun
	news    chan struct{}        // holds one: there is something to tell
	telling sync.Mutex           // held while Tell is called
	silent  bool                 // QEMU did not answer the watchdog

	lock    *os.File                // the guest's name
	giveUp  context.CancelFunc      // ends the guest, and what would start it again
	control atomic.Pointer[control] // nil until the first life has come so far
	present atomic.Pointer[life]
	undo    undoStack     // of what outlives a life
	gone    chan struct{} // closed when everything is given back
	outcome Outcome       // valid after gone
}

// Run starts the guest, or adopts it where it runs without a supervisor, and
// looks after it until it ends for good: it is started again as its policy says.
// A cancelled ctx stops the guest gracefully; Kill ends it at once.
//
// The error is a configs.Errors when spec and host do not fit, with nothing
// created; a *BusyError when the guest has a supervisor; or says which step of
// the start failed, with everything undone. A guest that ended in disorder is
// no error but an Outcome that is not Good.
func Run(ctx context.Context, g *configs.Guest, opts Options) (Outcome, error) {
	l := newLife(g, opts)
	ctx, l.giveUp = context.WithCancel(ctx)
	defer l.giveUp()
	if err := l.opts.do("lock", l.takeName); err != nil {
		return Outcome{}, err
	}
	defer l.teller()()
	defer l.watchdog()()
	adopted, err := l.inherit(ctx)
	if err == nil && !adopted && opts.adoptOnly {
		err = fmt.Errorf("%s: %w: it has ended", g.Name, ErrState)
	}
	if err == nil && !adopted {
		err = l.goOn()
	}
	if err == nil && !adopted {
		err = l.awaitParents(ctx)
	}
	if err == nil && !adopted {
		err = l.start(ctx)
	}
	if err != nil {
		return Outcome{}, errors.Join(err, l.supervisor.undo.run(), l.abandon(), l.lock.Close(), l.control.Load().close())
	}
	l.ready(adopted)
	for {
		outcome := l.watch(ctx)
		err := l.end(outcome)
		next, outcome := l.again(ctx, outcome)
		if next == nil {
			return outcome, errors.Join(err, l.leave(outcome))
		}
		l = next
	}
}

// newLife is the first life of a guest.
func newLife(g *configs.Guest, opts Options) *life {
	if opts.RunDir == "" {
		opts.RunDir = DefaultRunDir
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &supervisor{
		opts: opts,
		log:  slog.New(newLimiter(opts.Log.Handler())).With("guest", g.Name),
		dir:  guestDir(opts.RunDir, g.Name),
		gone: make(chan struct{}),
		news: make(chan struct{}, 1),
	}
	s.spec.Store(g)
	s.undo.step = s.opts.do
	return s.newLife()
}

func (s *supervisor) newLife() *life {
	l := &life{
		supervisor: s,
		files:      map[string]*os.File{},
		ends:       map[string]*os.File{},
		fallen:     make(chan *running, maxCompanions),
		requests:   make(chan func(*watcher)),
		dialing:    make(chan struct{}, 1),
		reloads:    make(chan struct{}, 1),
	}
	l.undo.step = l.opts.do
	l.nics = newNICs(l)
	s.latest.Store(l)
	return l
}

// guest is what the guest is: its spec as it was started with, and what was
// changed since.
func (s *supervisor) guest() *configs.Guest { return s.spec.Load() }

func (l *life) takeName() (err error) {
	if l.lock, err = l.dir.lock(); err == nil {
		l.dir.sweep()
	}
	return err
}

func guestDir(base, name string) runDir { return runDir(filepath.Join(base, name)) }

// start plans and applies.
func (l *life) start(ctx context.Context) error {
	if initrd := l.guest().Boot.Initrd; initrd != "" {
		l.initrd = beginCopy(initrd)
		defer l.initrd.drop()
	}
	if err := RepairNetwork(ctx); err != nil {
		l.log.Warn("what dead guests left in the host's network is still there", "error", err)
	}
	facts, err := gatherFacts(ctx, l.guest(), l.opts.RunDir, l.memory)
	if err != nil {
		return err
	}
	if facts.Slot, l.lease, err = takeSlot(l.guest().Name); err != nil {
		return err
	}
	l.plan, err = NewPlan(l.guest(), facts, PlanOptions{Force: l.opts.Force, Paused: l.opts.Paused})
	if err != nil {
		return errors.Join(err, l.endLease())
	}
	l.warnings = append(l.warnings, l.plan.Warnings...)
	for _, w := range l.warnings {
		l.log.Warn(w)
	}
	return l.apply(ctx)
}

// abandon leaves no directory behind of a guest that never was.
func (l *life) abandon() error {
	if _, err := os.Stat(l.dir.path(fileState)); err == nil {
		return nil // an earlier life's record, or one that could not be undone
	}
	if _, err := os.Stat(l.dir.path(fileQEMULog)); err == nil {
		return nil // says why
	}
	// By their names first: to list a directory takes the descriptors that the
	// start may have failed for want of.
	return errors.Join(removeFile(l.dir.path(fileSupervisorLog)), removeFile(l.dir.path(fileLock)), l.dir.remove())
}

func (l *life) ready(adopted bool) {
	rec := l.snapshot()
	status := l.recorded(&rec)
	if adopted || status.State != StateRunning { // which QEMU has just said, or not
		status = l.liveStatus(context.Background())
	}
	report := Report{Status: status, Adopted: adopted, Resumed: !adopted && l.memory != nil, Warnings: l.warnings}
	l.log.Info("guest is up", "state", report.Status.State, "pid", report.Status.PID, "adopted", adopted)
	if l.opts.Ready != nil {
		l.opts.Ready(report)
	}
}

// end gives back what the life had. What is left is its record, for whoever asks.
func (l *life) end(o Outcome) error {
	l.dialing <- struct{}{} // for good: the next life has a monitor of the same name
	left := l.machined.leave()
	err := l.undo.run()
	<-left
	level := slog.LevelInfo
	if !o.Good() {
		level = slog.LevelError
	}
	l.log.Log(context.Background(), level, "guest has ended", "reason", o.Reason, "how", o.String())
	if err != nil {
		l.log.Error("not all was given back", "error", err)
		err = fmt.Errorf("clean up after %s: %w", l.guest().Name, err)
	}
	return err
}

// leave notes the outcome for whoever asks later, gives the name back, and only
// then answers those who wait for the end: the next start finds nothing in its
// way.
func (l *life) leave(o Outcome) error {
	err := l.opts.do("record end", func() error {
		return l.update(func(r *record) {
			r.Ended = &o
			r.Restarts.Next = time.Time{}
		})
	})
	l.announce(newEvent(EventState, map[string]any{"state": string(StateEnded)}))
	l.announce(newEvent(EventEnded, map[string]any{"reason": string(o.Reason), "rung": string(o.Rung), "detail": o.String()}))
	err = errors.Join(err, l.supervisor.undo.run(), l.opts.do("unlock", l.lock.Close))
	l.outcome = o
	close(l.gone)
	if err = errors.Join(err, l.control.Load().close()); err != nil {
		return fmt.Errorf("clean up after %s: %w", l.guest().Name, err)
	}
	return nil
}
