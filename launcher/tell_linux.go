package launcher

import (
	"context"
	"os"
	"strings"
	"time"

	"vmrun/netsetup"
)

// teller passes on what is known of the guest each time that it has changed, until
// it is stopped. It is a goroutine of its own: whoever is told may be slow.
func (s *supervisor) teller() (stop func()) {
	if s.opts.Tell == nil {
		return func() {}
	}
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-s.news:
				s.tell("")
			case <-done:
				s.tell("")
				return
			}
		}
	}()
	return func() { close(done); <-over }
}

// tell says what is known of the guest without asking anybody; who is silent, if
// anybody is, is known to the caller.
func (s *supervisor) tell(silent string) {
	l := s.latest.Load()
	if s.opts.Tell == nil || l == nil {
		return
	}
	s.telling.Lock()
	defer s.telling.Unlock()
	rec := l.snapshot()
	if rec.Guest == nil {
		return // about to start
	}
	status := rec.status(os.Getpid())
	if silent != "" && rec.Ended == nil {
		status.State, status.Silent, status.Why = StateUnresponsive, silent, ""
	}
	s.opts.Tell(status, rec.Guest)
}

// watchdog asks QEMU regularly whether it is there, and reports each answer.
func (s *supervisor) watchdog() (stop func()) {
	if s.opts.Alive == nil || s.opts.Watchdog <= 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		for every := time.NewTicker(s.opts.Watchdog); ; {
			select {
			case <-every.C:
			case <-ctx.Done():
				every.Stop()
				return
			}
			s.feed(ctx)
		}
	}()
	return func() { cancel(); <-over }
}

// feed reports that all is well, if it is. Between two lives, and when QEMU has
// ended, there is nobody who could be frozen.
func (s *supervisor) feed(ctx context.Context) {
	if l := s.present.Load(); l != nil {
		if err := l.answers(ctx, min(s.opts.Watchdog, commandTimeout)); err != nil {
			if ctx.Err() == nil {
				s.log.Warn("QEMU does not answer: the watchdog hears nothing", "error", err)
				s.tell(silentQEMU)
				s.silent = true
			}
			return
		}
	}
	s.opts.Alive()
	if s.silent {
		s.silent = false
		s.tell("")
	}
}

// answers asks the goroutine that looks after the guest, and then QEMU.
func (l *life) answers(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := l.request(ctx, func(*watcher) {})
	if err == nil {
		mon, dialErr := l.reach(ctx)
		if err = dialErr; err == nil {
			_, err = mon.QueryStatus(ctx)
		}
	}
	select {
	case <-l.qemu.done:
		return nil
	default:
		return err
	}
}

// awaitParents waits for those of the guest's parents that are not there yet. The
// start says what is wrong with one that has not come.
func (l *life) awaitParents(ctx context.Context) error {
	var names []string
	for _, n := range l.guest().NICs {
		names = append(names, n.Parent)
	}
	if l.opts.WaitParents <= 0 || len(names) == 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, l.opts.WaitParents)
	defer cancel()
	err := netsetup.AwaitLinks(limited, names, func(missing []string) {
		why := "waiting for " + strings.Join(missing, ", ")
		l.log.Info(why, "for at most", l.opts.WaitParents)
		if l.opts.Tell != nil {
			l.telling.Lock()
			defer l.telling.Unlock()
			l.opts.Tell(Status{Name: l.guest().Name, State: StateStarting, Supervisor: os.Getpid(), Why: why}, l.guest())
		}
	})
	if limited.Err() != nil {
		return ctx.Err()
	}
	return err
}
