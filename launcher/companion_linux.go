package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/netsetup"
)

// companionTimeout is how long a companion may take to end once QEMU has.
const companionTimeout = 2 * time.Second

// EventCompanion says that a companion has ended, though QEMU has not; data:
// companion, its name; text, for people.
const EventCompanion = "VMRUN_COMPANION"

// running is a companion that was started, or adopted.
type running struct {
	name    string
	process *process
}

// connect makes a socket that listens, for a companion, and has its only client
// already, for QEMU. Nobody else can find it: its name is gone.
func (l *life) connect(c companion) error {
	path := l.dir.path(c.name + ".sock")
	listener, err := listenUnix(path)
	if err != nil {
		return err
	}
	defer listener.Close()
	defer removeFile(path)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	if l.files[c.name], err = conn.File(); err != nil {
		return err
	}
	if l.ends[c.name], err = listener.File(); err != nil {
		return err
	}
	return errors.Join(blocking(l.files[c.name]), blocking(l.ends[c.name]))
}

// blocking makes a descriptor block, as one has it that was not Go's.
func blocking(f *os.File) error {
	return unix.SetNonblock(int(f.Fd()), false)
}

// startCompanion starts a companion and notes it. QEMU waits for its answer by
// then; should the supervisor die, the one of the two that finds the other's end
// closed ends.
func (l *life) startCompanion(c companion) error {
	if c.name == nameTPM {
		if err := l.ownTPM(c.walls.own.path); err != nil {
			return err
		}
	}
	ns, err := netsetup.NewNamespace() // the guest's would live as long as this does
	if err != nil {
		return err
	}
	defer ns.Close()
	log, err := openFIFO(l.dir.path(fileCompanions))
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	defer null.Close()
	end := l.ends[c.name]
	w := c.walls
	w.Confine, w.mount, w.name = companionWalls, l.dir.real(), c.name
	w.shown = loadedBy(c.program)
	child, err := w.start(ns, c.program, c.args, []*os.File{null, log, log, end})
	if err != nil {
		return err
	}
	p, err := watchChild(child)
	if err != nil {
		return err
	}
	r := &running{c.name, p}
	l.undo.push(c.name, func() error { return l.endCompanion(r) })
	end.Close()
	delete(l.ends, c.name)
	if err := l.enterCgroup(p); err != nil {
		return err
	}
	l.watchCompanion(r)
	return l.update(func(rec *record) {
		rec.Companions = append(rec.Companions[:len(rec.Companions):len(rec.Companions)], companionRecord{Name: c.name, Process: p.id})
	})
}

// ownTPM makes the directory of what the guest's TPM keeps the property of the uid
// that the guest has for this start, and what is in it. A directory that is made
// for a start which fails goes with it.
func (l *life) ownTPM(dir string) error {
	err := os.Mkdir(dir, 0o700)
	switch {
	case err == nil:
		l.undoUnlessCommitted(nameTPM+" state", func() error { return os.RemoveAll(dir) })
	case !errors.Is(err, os.ErrExist):
		return fmt.Errorf("the TPM's state: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("the TPM's state: %w", err)
	}
	defer root.Close()
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("the TPM's state: %w", err)
	}
	errs := []error{root.Lchown(".", l.plan.UID, l.plan.UID)}
	for _, file := range list { // an swtpm makes no directories, and what a link leads to is none of its
		errs = append(errs, root.Lchown(file.Name(), l.plan.UID, l.plan.UID))
	}
	return errors.Join(errs...)
}

// watchCompanion has the guest's watcher hear of a companion's end.
func (l *life) watchCompanion(r *running) {
	go func() {
		<-r.process.done // which whoever ends it waits for too
		l.fallen <- r    // there is room for all
	}()
}

// endCompanion waits for a companion that ends because QEMU has, or ends it.
func (l *life) endCompanion(r *running) error {
	select {
	case <-l.qemu.done:
		return r.end(companionTimeout)
	default:
		return r.end(0)
	}
}

// end gives a companion some time to end by itself.
func (r *running) end(patience time.Duration) error {
	select {
	case <-r.process.done:
		return nil
	case <-time.After(patience):
	}
	if err := r.process.kill(); err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	return nil
}

// companionsGone tells of companions that have ended, though QEMU has not. Their
// devices are dead; QEMU cannot be given others.
func (w *watcher) companionsGone() {
	for _, r := range w.fallen {
		w.companionGone(r)
	}
	w.fallen, w.verdict = nil, nil
}

func (w *watcher) companionGone(r *running) {
	text := fmt.Sprintf("the process behind %s has ended (pid %d): the device is dead until the guest is started again", r.name, r.process.id.PID)
	w.log.Error("companion has ended", "companion", r.name, "pid", r.process.id.PID)
	_ = w.update(func(rec *record) { // which has been logged
		list := append([]companionRecord{}, rec.Companions...)
		for i := range list {
			list[i].Ended = list[i].Ended || list[i].Name == r.name
		}
		rec.Companions = list
	})
	w.announce(newEvent(EventCompanion, map[string]any{"companion": r.name, "text": text}))
}

// adoptCompanions goes on with those that the record names. A guest whose
// companion has ended is adopted all the same.
func (l *life) adoptCompanions(context.Context) error {
	for _, c := range l.snapshot().Companions {
		if c.Ended {
			continue
		}
		p, err := findProcess(c.Process)
		if err == nil && !l.dir.isCompanion(p.id.PID) {
			p.pidfd.Close()
			err = errGone
		}
		if err != nil {
			p = &process{id: c.Process, done: make(chan struct{})}
			close(p.done)
		}
		r := &running{c.Name, p}
		l.undo.push(c.Name, func() error { return l.endCompanion(r) })
		l.watchCompanion(r)
	}
	return nil
}

// companionWords are the last lines that companions wrote, who have ended, or are to.
func (l *life) companionWords() []string {
	if l.plan == nil || len(l.plan.companions) == 0 {
		return nil
	}
	if err := l.whispers.close(); err != nil {
		l.log.Warn("the companions' log", "error", err)
	}
	return tail(l.dir.path(fileCompanionLog), quoted)
}

// isCompanion reports whether a process is a companion of this directory's guest:
// its standard error is their pipe, which nobody else is given.
func (d runDir) isCompanion(pid int) bool {
	pipe, err := os.Stat(d.path(fileCompanions))
	if err != nil {
		return false
	}
	its, err := os.Stat(procDir(pid).thread().path("fd/2"))
	return err == nil && os.SameFile(pipe, its)
}

// endCompanions ends what is left of the companions of a guest that is no more:
// mostly nothing, as they end by themselves.
func (d runDir) endCompanions() error {
	if _, err := os.Lstat(d.path(fileCompanions)); err != nil {
		return nil // it had none
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !d.isCompanion(pid) {
			continue
		}
		p, err := findProcess(processID{PID: pid})
		switch {
		case errors.Is(err, errGone):
		case err != nil:
			errs = append(errs, err)
		case d.isCompanion(pid): // still the same process, now that the pidfd pins it
			errs = append(errs, (&running{fmt.Sprintf("companion (pid %d)", pid), p}).end(companionTimeout))
		default:
			p.pidfd.Close()
		}
	}
	return errors.Join(append(errs, removeFile(d.path(fileCompanions)))...)
}
