package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"vmrun/configs"
	"vmrun/qmp"
)

// Snapshots of a guest that runs, inside the images of its disks: of the memory and
// all disks together (qapi/migration.json, snapshot-save), or of the disks alone.

// EventSnapshot tells of a snapshot; data: tag; change, a word; text, for people.
const EventSnapshot = "VMRUN_SNAPSHOT"

// liveJob is the id of QEMU's job, of which there is one at a time.
const liveJob = "vmrun"

// liveTimeout bounds one: its memory goes into an image.
const liveTimeout = 10 * time.Minute

// liveCommands are vmrun's own about such snapshots.
var liveCommands = map[string]func(*live, context.Context) error{
	CommandLiveSnapshot: (*live).take,
	CommandRollback:     (*live).rollBack,
	CommandLiveForget:   (*live).forget,
}

// live is one request under way.
type live struct {
	*life
	args   LiveArguments
	mon    *qmp.Client
	nodes  []string
	result LiveResult
}

// serveLive answers such a request, one at a time, and while no NIC or disk changes.
func (l *life) serveLive(ctx context.Context, req qmp.Request, do func(*live, context.Context) error) (any, error) {
	v := &live{life: l}
	if err := decodeArguments(req.Arguments, &v.args); err != nil {
		return nil, err
	}
	l.diskWork.Lock()
	defer l.diskWork.Unlock()
	unlock, err := l.nics.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), liveTimeout) // a client that goes does not cut it short
	defer cancel()
	if v.args.Disks {
		err = l.change(func() error { return nil })
	} else {
		err = l.canSuspend(ctx)
	}
	if err == nil {
		v.mon, err = l.reach(ctx)
	}
	if err == nil {
		v.nodes, err = liveNodes(l.guest().Disks)
	}
	if err == nil {
		err = do(v, ctx)
	}
	return v.result, unresponsive(err)
}

// take takes a snapshot.
func (v *live) take(ctx context.Context) error {
	if err := v.checkTag(true); err != nil {
		return err
	}
	if v.args.Disks {
		return v.takeDisks(ctx)
	}
	was, err := v.hardwareNow(ctx)
	if err != nil {
		return err
	}
	path := livePath(v.opts.RunDir, v.guest().Name, v.args.Tag)
	text, err := json.Marshal(was)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err == nil {
		err = renameio.WriteFile(path, text, 0o600)
	}
	if err == nil {
		err = v.job(ctx, "snapshot-save", map[string]any{"tag": v.args.Tag, "vmstate": v.nodes[0], "devices": v.nodes}, false)
	}
	if err != nil {
		return errors.Join(err, v.unlessThere(path))
	}
	v.tell("taken", "snapshot %s was taken, of the memory and %s", v.args.Tag, strings.Join(v.nodes, ", "))
	return nil
}

// unlessThere removes what is known of a snapshot that there is none of.
func (v *live) unlessThere(path string) error {
	if v.checkTag(true) != nil { // it is there, or nobody knows
		return nil
	}
	err := removeFile(path)
	_ = os.Remove(filepath.Dir(path)) // if it is empty
	return err
}

// takeDisks takes one of all disks at the same instant. The guest's agent, if there is
// one, has all file systems written out for it.
func (v *live) takeDisks(ctx context.Context) error {
	var actions []map[string]any
	for _, node := range v.nodes {
		actions = append(actions, map[string]any{
			"type": "blockdev-snapshot-internal-sync", "data": map[string]any{"device": node, "name": v.args.Tag},
		})
	}
	began := time.Now()
	var err error
	v.result.Freeze, err = v.whileFrozen(ctx, func(ctx context.Context) error {
		return v.mon.Execute(ctx, "transaction", map[string]any{"actions": actions}, nil)
	})
	if v.result.Halted = time.Since(began); err != nil {
		return err
	}
	v.tell("taken", "snapshot %s was taken, of %s", v.args.Tag, strings.Join(v.nodes, ", "))
	return nil
}

// rollBack makes the guest what it was at a snapshot. Where QEMU fails in the middle
// the guest stays halted: it is neither the one nor the other then.
func (v *live) rollBack(ctx context.Context) error {
	if err := v.checkTag(false); err != nil {
		return err
	}
	shots, err := LiveSnapshots(v.opts.RunDir, v.guest())
	if err != nil {
		return err
	}
	i := slices.IndexFunc(shots, func(s LiveSnapshot) bool { return s.Tag == v.args.Tag })
	switch {
	case i < 0:
		return qmp.Errorf("there is no snapshot %q", v.args.Tag)
	case shots[i].Memory == 0:
		return qmp.Errorf("snapshot %q is of the disks alone, under which no guest can go on: stop it, and roll each back with vmrun disk rollback", v.args.Tag)
	case len(shots[i].Lacks) > 0:
		return qmp.Errorf("snapshot %q is not of %s", v.args.Tag, strings.Join(shots[i].Lacks, ", "))
	}
	if err := v.fits(ctx); err != nil {
		return err
	}
	if err := v.job(ctx, "snapshot-load", map[string]any{"tag": v.args.Tag, "vmstate": v.nodes[0], "devices": v.nodes}, true); err != nil {
		return err
	}
	v.nics.agent.resync()
	v.nics.agent.clockStood()
	v.tell("rolled-back", "the guest was rolled back to snapshot %s", v.args.Tag)
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := v.announceSelf(ctx); err != nil {
		v.log.Warn("the network was not told", "error", err)
	}
	return nil
}

// fits says why the guest is another than at the snapshot, or returns nil.
func (v *live) fits(ctx context.Context) error {
	now, err := v.hardwareNow(ctx)
	if err != nil {
		return err
	}
	var was []string
	text, err := readBounded(livePath(v.opts.RunDir, v.guest().Name, v.args.Tag), maxRecord)
	if err == nil {
		err = json.Unmarshal(text, &was)
	}
	switch why := unlike(was, now); {
	case err != nil && v.args.Force:
	case err != nil:
		return qmp.Errorf("nobody knows what hardware the guest had at snapshot %q (%v): --force tries, and may end the guest", v.args.Tag, err)
	case why != "":
		return qmp.Errorf("the guest had other hardware at snapshot %q: %s", v.args.Tag, why)
	}
	return nil
}

// forget deletes a snapshot.
func (v *live) forget(ctx context.Context) error {
	if err := v.checkTag(false); err != nil {
		return err
	}
	if err := v.job(ctx, "snapshot-delete", map[string]any{"tag": v.args.Tag, "devices": v.nodes}, false); err != nil {
		return err
	}
	v.tell("deleted", "snapshot %s was deleted", v.args.Tag)
	return v.unlessThere(livePath(v.opts.RunDir, v.guest().Name, v.args.Tag))
}

func (v *live) tell(change, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	v.log.Info(text)
	v.announce(newEvent(EventSnapshot, map[string]any{"tag": v.args.Tag, "change": change, "text": text}))
}

// checkTag makes sure that no disk has the snapshot, or that one has.
func (v *live) checkTag(fresh bool) error {
	var err error
	for _, d := range v.guest().Disks {
		if d.Readonly {
			continue
		}
		var there []ImageSnapshot
		if there, err = diskShots(d); err == nil {
			err = checkShot(d.Path, there, v.args.Tag, fresh)
		}
		if fresh == (err != nil) { // the first that decides
			break
		}
	}
	if err != nil {
		return qmp.Errorf("%v", err)
	}
	return nil
}

func (v *live) hardwareNow(ctx context.Context) ([]string, error) {
	machine, err := machineType(ctx, v.mon)
	rec := v.snapshot()
	uefi := settled(rec.Guest, archOf(runtime.GOARCH)).Firmware == configs.FirmwareUEFI
	return hardware(rec.Guest, machine, rec.Ports, uefi, rec.Children), err
}

func livePath(base, name, tag string) string {
	return filepath.Join(StateDir(base, name), "snapshots", tag)
}

// job has QEMU carry out a job, for which it halts the guest itself. A wish to stop the
// guest waits meanwhile. When one fails that spoils the guest, it stays halted.
func (v *live) job(ctx context.Context, command string, args map[string]any, spoils bool) error {
	begun := false
	err := v.request(ctx, func(w *watcher) {
		w.handle(event{kind: evSave, reason: string(suspendShot)})
		begun = w.now.Suspend == suspendShot
	})
	if err == nil && !begun {
		err = qmp.Errorf("the guest is stopping")
	}
	if err != nil {
		return err
	}
	began := time.Now()
	args["job-id"] = liveJob
	if err = dismissJobs(ctx, v.mon); err == nil {
		err = v.opts.do(command, func() error { return runJob(ctx, v.mon, command, args) })
	}
	v.result.Halted = time.Since(began)
	over := event{kind: evUnsave}
	if err != nil && spoils {
		over.reason = halfDone
		err = fmt.Errorf("%w: the guest is halted, and what it is now nobody knows: vmrun stop --force, or another rollback", err)
	}
	return errors.Join(err, v.request(context.WithoutCancel(ctx), func(w *watcher) { w.handle(over) }))
}

// awaitShot waits for the end of a job that a predecessor began, and says whether it
// has left the guest half done.
func (l *life) awaitShot() (spoilt bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), liveTimeout)
	defer cancel()
	mon, err := l.reach(ctx)
	if err != nil {
		return false, err
	}
	sub := mon.Subscribe("JOB_STATUS_CHANGE")
	defer sub.Close()
	ours, err := queryJobs(ctx, mon)
	if err != nil || ours == nil {
		return false, err
	}
	var failed *qmp.Error
	if err := awaitJobs(ctx, mon, sub); err != nil && !errors.As(err, &failed) {
		return false, err
	}
	return failed != nil && ours.Type == "snapshot-load", nil
}

// LiveSnapshots lists the snapshots of a guest, whether or not it runs, oldest first.
func LiveSnapshots(base string, g *configs.Guest) ([]LiveSnapshot, error) {
	byTag := map[string]*LiveSnapshot{}
	var written []string
	for i, d := range g.Disks {
		if d.Readonly || d.Format != configs.FormatQCOW2 {
			continue
		}
		written = append(written, diskNode(i))
		there, err := diskShots(d)
		if errors.Is(err, os.ErrNotExist) {
			continue // it was never started
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", diskNode(i), err)
		}
		for _, s := range there {
			if byTag[s.Name] == nil {
				byTag[s.Name] = &LiveSnapshot{Tag: s.Name, At: time.Unix(int64(s.Seconds), 0)}
			}
			one := byTag[s.Name]
			one.Memory, one.Disks = max(one.Memory, s.VMState), append(one.Disks, diskNode(i))
		}
	}
	shots := []LiveSnapshot{}
	for _, s := range byTag {
		for _, node := range written {
			if !slices.Contains(s.Disks, node) {
				s.Lacks = append(s.Lacks, node)
			}
		}
		shots = append(shots, *s)
	}
	slices.SortFunc(shots, func(a, b LiveSnapshot) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		return strings.Compare(a.Tag, b.Tag)
	})
	return shots, nil
}

// Live carries out one of the commands about snapshots of a guest that runs.
func Live(ctx context.Context, base, name, command string, args LiveArguments) (r LiveResult, err error) {
	client, err := Control(ctx, base, name)
	if err != nil {
		return r, err
	}
	defer client.Close()
	return r, named(name, inWords(client.Execute(ctx, command, args, &r)))
}
