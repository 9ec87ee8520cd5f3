package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/qmp"
)

// saving is a suspend under way.
type saving struct {
	*life
	dir  string // the state directory
	file *os.File
	memory
	kept bool // the memory has its name
}

// serveSuspend answers when the guest has ended. Whoever asks for it and goes takes
// it back, as long as the memory is not kept.
func (l *life) serveSuspend(ctx context.Context) (any, error) {
	if err := l.suspend(ctx); err != nil {
		return nil, unresponsive(err)
	}
	return l.awaitEnd(ctx)
}

// suspend writes the guest's memory to disk and ends QEMU. With an error the guest
// goes on as before.
//
// The guest's CPUs stand still all the time, and at its end QEMU has flushed and
// given up the disks. The file gets its name when it is whole: from then on the guest
// is in it, and QEMU is not to run on.
func (l *life) suspend(ctx context.Context) error {
	l.diskWork.Lock() // a change to a disk that has begun comes to its end before
	defer l.diskWork.Unlock()
	if ctx.Err() != nil { // nobody waits for it any more
		return ctx.Err()
	}
	unlock, err := l.nics.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.canSuspend(ctx); err != nil {
		return err
	}
	s := &saving{life: l, dir: StateDir(l.opts.RunDir, l.guest().Name)}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"suspend mark", s.mark}, {"suspend halt", s.halt}, {"suspend save", s.save}, {"suspend sync", s.sync}, {"suspend keep", s.keep},
	} {
		err := l.opts.do(step.name, func() error { return step.do(ctx) })
		if err == nil || s.kept {
			continue
		}
		return errors.Join(fmt.Errorf("%s: %w", step.name, err), l.opts.do("undo suspend", s.takeBack))
	}
	s.file.Close()
	_ = l.request(context.Background(), func(w *watcher) { w.handle(event{kind: evSaved}) }) // unless QEMU is gone already
	return nil
}

// canSuspend says why the guest cannot be suspended, or returns nil.
func (l *life) canSuspend(ctx context.Context) error {
	rec := l.snapshot()
	switch {
	case !rec.Committed || rec.Situation.Rung != RungNone || rec.Ended != nil:
		return qmp.Errorf("the guest is starting, or stopping")
	case rec.Situation.Suspend.isUnderWay():
		return qmp.Errorf("the guest is being suspended, or a snapshot taken of it")
	case rec.Frozen:
		return qmp.Errorf("the guest's file systems are frozen for somebody")
	case suspendable(l.guest()) != nil:
		return qmp.Errorf("%v", suspendable(l.guest()))
	case len(rec.Loose) > 0:
		return qmp.Errorf("%s is still being removed: the guest does not let go of it", rec.Loose[0].Name)
	case rec.Ports == 0 && rec.replugged():
		return qmp.Errorf("NICs were attached or detached, and on machine %q they would not come back to their places: vmrun stop", rec.Guest.Machine)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	mon, err := l.reach(ctx)
	if err != nil {
		return err
	}
	run, err := mon.QueryStatus(ctx)
	if err != nil {
		return err
	}
	if run.Status != "running" && run.Status != "paused" && run.Status != "prelaunch" {
		return qmp.Errorf("QEMU's run state is %s: only a guest that runs or is paused can be suspended", run.Status)
	}
	drives, err := queryDrives(ctx, mon)
	if err != nil {
		return err
	}
	for i, d := range l.guest().Disks {
		if d.CDROM && l.medium(i, drives).Path != d.Path {
			return qmp.Errorf("%s has another medium than in the spec, which is what it would go on with: put that back first, with vmrun disk", diskNode(i))
		}
	}
	m, err := queryMigration(ctx, mon)
	if err == nil && len(m.Blocked) > 0 {
		err = qmp.Errorf("QEMU cannot save this guest: %s", strings.Join(m.Blocked, "; "))
	}
	return err
}

// replugged reports whether the guest has other NICs than it was started with.
func (r *record) replugged() bool {
	for i, c := range r.Children {
		if number(c) != i {
			return true
		}
	}
	return len(r.Children) != len(r.Guest.NICs)
}

// mark notes that the guest is being suspended, for whoever adopts it.
func (s *saving) mark(ctx context.Context) error {
	begun := false
	err := s.request(ctx, func(w *watcher) {
		w.handle(event{kind: evSave})
		begun = w.now.Suspend == suspendSaving
	})
	if err == nil && !begun {
		err = errors.New("the guest is stopping")
	}
	return err
}

func (s *saving) halt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	mon, err := s.reach(ctx)
	if err != nil {
		return err
	}
	return mon.Stop(ctx)
}

// save has QEMU write the guest's memory to a file without a name that counts.
func (s *saving) save(ctx context.Context) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if err := s.room(); err != nil {
		return err
	}
	path := filepath.Join(s.dir, fileNewMemory)
	err := removeFile(path) // of a predecessor that was killed
	if err != nil {
		return err
	}
	if s.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	if _, err := s.file.Seek(memoryHead, io.SeekStart); err != nil {
		return err
	}
	mon, err := s.reach(ctx)
	if err != nil {
		return err
	}
	if s.Machine, err = machineType(ctx, mon); err != nil {
		return err
	}
	fast := map[string]any{"max-bandwidth": math.MaxInt64}
	if err := mon.Execute(ctx, "migrate-set-parameters", fast, nil); err != nil {
		return err
	}
	if err := passMemory(ctx, mon, s.file, "migrate"); err != nil {
		return err
	}
	return s.awaitMigration(ctx, mon, s.file, s.unwanted)
}

// unwanted says why the suspend is to be given up, or returns nil.
func (l *life) unwanted() error {
	if s := l.snapshot().Situation; s.Asked || s.Rung != RungNone {
		return errors.New("somebody stops the guest")
	}
	return nil
}

// room makes sure that the memory fits on the disk. Pages that the guest has never
// written are not in it.
func (s *saving) room() error {
	need := min(uint64(s.guest().Memory), resident(s.qemu.id.PID))
	need += need/50 + 64<<20
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return fmt.Errorf("%s: %w", s.dir, err)
	}
	if free := fs.Bavail * uint64(fs.Frsize); free < need {
		return fmt.Errorf("%s has %d MiB free, and the guest's memory may need %d MiB", s.dir, free>>20, need>>20)
	}
	return nil
}

// sync writes who the guest is to the file's beginning, and the file to the disk.
func (s *saving) sync(context.Context) (err error) {
	s.record = s.snapshot()
	s.At = time.Now()
	if s.Images, err = imagesOf(s.guest()); err != nil {
		return err
	}
	if s.Size, err = s.file.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	head, err := s.memory.encode()
	if err == nil {
		_, err = s.file.WriteAt(head, 0)
	}
	if err == nil {
		err = s.file.Sync()
	}
	return err
}

// keep gives the memory its name, unless somebody wants the guest to end otherwise.
func (s *saving) keep(ctx context.Context) error {
	accepted := false
	err := s.request(ctx, func(w *watcher) {
		w.handle(event{kind: evKeep})
		accepted = w.now.Suspend == suspendKept
	})
	if err == nil && !accepted {
		err = errors.New("somebody stops the guest")
	}
	if err == nil {
		err = os.Rename(filepath.Join(s.dir, fileNewMemory), filepath.Join(s.dir, fileMemory))
	}
	if err != nil {
		return err
	}
	s.kept = true
	if err := syncDir(s.dir); err != nil {
		s.log.Error("the guest's memory may be lost in a power cut", "error", err)
	}
	return nil
}

// takeBack lets the guest go on as before.
func (s *saving) takeBack() error {
	if s.file != nil {
		s.file.Close()
	}
	dropUnkept(s.dir)
	var over <-chan struct{}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if err := s.request(ctx, func(w *watcher) { over = w.unsave() }); err != nil {
		return nil // QEMU is gone, and its end says so
	}
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the guest does not go on yet: %w", ErrUnresponsive)
	}
}

// dropUnkept removes a memory that is not whole.
func dropUnkept(dir string) {
	_ = os.Remove(filepath.Join(dir, fileNewMemory)) // which means nothing, wherever it stays
	_ = os.Remove(dir)                               // if it is empty
}

// unsave ends a suspend, of a predecessor perhaps, that is not to come to its end. It
// tries until QEMU has answered or is gone.
func (w *watcher) unsave() <-chan struct{} {
	done, shot := make(chan struct{}), w.now.Suspend == suspendShot
	w.acts.Go(func() {
		defer close(done)
		dropUnkept(StateDir(w.opts.RunDir, w.guest().Name))
		over := event{kind: evUnsave}
		for {
			var err error
			var spoilt bool
			if shot {
				spoilt, err = w.awaitShot()
			} else {
				err = w.cancelMigration()
			}
			if err == nil {
				if spoilt {
					over.reason = halfDone
				}
				break
			}
			w.log.Warn("the guest cannot be let go on yet", "error", err)
			select {
			case <-w.qemu.done:
				return
			case <-time.After(redialEvery):
			}
		}
		w.request(context.Background(), func(w *watcher) { w.handle(over) })
	})
	return done
}

// announceSelf has QEMU tell the switches on the wire where the guest is by now, and
// the guest its neighbours (announce-self, qapi/net.json). What the guest wants of
// its NICs QEMU knows from the memory, and tells who asks.
func (l *life) announceSelf(ctx context.Context) error {
	for _, n := range l.nics.all() {
		n.filterChanged.Store(true)
	}
	l.nics.wakeAll()
	rounds := json.RawMessage(`{"initial":50,"max":550,"rounds":5,"step":100}`)
	return l.monitor().Execute(ctx, "announce-self", rounds, nil)
}

// Suspend writes a guest's memory to disk and returns when everything else of it is
// gone. With an error the guest goes on.
func Suspend(ctx context.Context, base, name string) (o Outcome, err error) {
	client, err := Control(ctx, base, name)
	if err != nil {
		return o, err
	}
	defer client.Close()
	err = inWords(client.Execute(ctx, CommandSuspend, nil, &o))
	if errors.Is(err, qmp.ErrClosed) {
		err = fmt.Errorf("its supervisor has gone: vmrun start %s goes on from where it was", name)
	}
	return o, named(name, err)
}

// endSuspended ends a QEMU whose guest is on disk already: its supervisor was killed
// in between.
func (d runDir) endSuspended(qemu *process, rec *record) error {
	if err := qemu.kill(); err != nil {
		return err
	}
	rec.Ended = &Outcome{Reason: ReasonSuspended, At: time.Now()}
	return errors.Join(d.writeRecord(rec), d.clear(rec))
}

// isOf reports whether the memory is that of a QEMU which is still there.
func (m *memory) isOf(qemu *process) bool {
	return m != nil && m.BootID == bootID() && m.QEMU == qemu.id
}

// checkMemory holds what the plan is to go on from against the host.
func (p *Plan) checkMemory(m *memory, force bool) (errs configs.Errors) {
	for i, err := range m.misfits() {
		text := fmt.Sprintf("%v: vmrun start --fresh %s throws the memory away", err, m.Guest.Name)
		if force {
			p.Warnings = append(p.Warnings, "--force overrides that "+text)
			continue
		}
		errs = append(errs, m.Guest.Errorf(fmt.Sprintf("disk[%d].path", i), "%s, --force does not", text))
	}
	return errs
}
