package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"vmrun/configs"
	"vmrun/qmp"
)

// What can be done with the disks of a guest that runs.

// Commands of vmrun's own about disks. Their arguments are DiskArguments.
const (
	CommandDisks    = "vmrun-disks"           // no arguments; returns a list of Medium
	CommandInsert   = "vmrun-disk-insert"     // returns the Medium
	CommandEject    = "vmrun-disk-eject"      // returns nothing
	CommandResize   = "vmrun-disk-resize"     // returns nothing
	CommandSnapshot = "vmrun-disk-snapshot"   // returns a Freeze
	CommandForget   = "vmrun-disk-unsnapshot" // returns an empty one
)

// EventDisk tells of a change to a disk; data: disk, its name; change, a word; text,
// for people.
const EventDisk = "VMRUN_DISK"

// DiskArguments are those of the commands that change a disk.
type DiskArguments struct {
	Disk     string             `json:"disk"`               // "disk0"
	Path     string             `json:"path,omitempty"`     // of a medium, absolute
	Format   configs.DiskFormat `json:"format,omitempty"`   // of that
	Force    bool               `json:"force,omitempty"`    // open a tray that the guest has locked
	Size     uint64             `json:"size,omitempty"`     // bytes
	Snapshot string             `json:"snapshot,omitempty"` // its name
}

// Medium is the image that a disk has now; that of a drive can be changed.
type Medium struct {
	Disk   string             `json:"disk"`
	Path   string             `json:"path"` // "" for an empty drive
	Format configs.DiskFormat `json:"format,omitempty"`
}

// trayTimeout is how long a guest may take to open a tray that it has locked.
const trayTimeout = 5 * time.Second

// diskCommands are vmrun's own that are about disks.
var diskCommands = map[string]func(*life, context.Context, *qmp.Client, int, DiskArguments) (any, error){
	CommandInsert: func(l *life, ctx context.Context, mon *qmp.Client, i int, args DiskArguments) (any, error) {
		return l.insert(ctx, mon, i, args)
	},
	CommandEject: func(l *life, ctx context.Context, mon *qmp.Client, i int, args DiskArguments) (any, error) {
		return nil, l.eject(ctx, mon, i, args.Force)
	},
	CommandResize: func(l *life, ctx context.Context, mon *qmp.Client, i int, args DiskArguments) (any, error) {
		return nil, l.resize(ctx, mon, i, args.Size)
	},
	CommandSnapshot: func(l *life, ctx context.Context, mon *qmp.Client, i int, args DiskArguments) (any, error) {
		return l.diskSnapshot(ctx, mon, i, args.Snapshot, true)
	},
	CommandForget: func(l *life, ctx context.Context, mon *qmp.Client, i int, args DiskArguments) (any, error) {
		return l.diskSnapshot(ctx, mon, i, args.Snapshot, false)
	},
}

// serveDisk answers a request to change a disk, one at a time.
func (l *life) serveDisk(ctx context.Context, req qmp.Request, serve func(*life, context.Context, *qmp.Client, int, DiskArguments) (any, error)) (any, error) {
	var args DiskArguments
	if err := decodeArguments(req.Arguments, &args); err != nil {
		return nil, err
	}
	i, err := DiskNumber(args.Disk, len(l.guest().Disks))
	if err != nil {
		return nil, qmp.Errorf("%v", err)
	}
	l.diskWork.Lock()
	defer l.diskWork.Unlock()
	ctx, cancel := context.WithTimeout(ctx, busyTimeout)
	defer cancel()
	var result any
	err = l.change(func() error {
		mon, err := l.reach(ctx)
		if err != nil {
			return err
		}
		result, err = serve(l, ctx, mon, i, args)
		return err
	})
	return result, unresponsive(err)
}

// serveDisks tells which images the disks have now.
func (l *life) serveDisks(ctx context.Context) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	list := []Medium{}
	mon, err := l.reach(ctx)
	var drives []drive
	if err == nil {
		drives, err = queryDrives(ctx, mon)
	}
	if err != nil {
		return nil, unresponsive(err)
	}
	for i := range l.guest().Disks {
		list = append(list, l.medium(i, drives))
	}
	return list, nil
}

// medium is what is in a drive, as QEMU has it: the record says which file that is.
func (l *life) medium(i int, drives []drive) Medium {
	rec, d := l.snapshot(), l.guest().Disks[i]
	m := Medium{Disk: diskNode(i)}
	node := nodeIn(i, drives)
	if put, ok := rec.Media[node]; ok {
		m.Path, m.Format = put.Path, put.Format
	} else if node == diskNode(i) {
		m.Path, m.Format = d.Path, d.Format
	}
	return m
}

// drive is what is read of query-block's answer (qapi/block-core.json, BlockInfo).
type drive struct {
	Qdev     string `json:"qdev"`
	Locked   bool   `json:"locked"`
	TrayOpen bool   `json:"tray_open"`
	Inserted struct {
		Node  string `json:"node-name"`
		Image struct {
			Size uint64 `json:"virtual-size"`
		} `json:"image"`
	} `json:"inserted"`
}

func queryDrives(ctx context.Context, mon *qmp.Client) (list []drive, err error) {
	err = mon.Execute(ctx, "query-block", nil, &list)
	return list, err
}

// isDrive reports whether QEMU means the device of a disk by this, its id or the
// path of a part of it.
func isDrive(qdev string, i int) bool {
	return qdev == driveID(i) || strings.HasPrefix(qdev, "/machine/peripheral/"+driveID(i)+"/")
}

func driveOf(i int, drives []drive) drive {
	if at := slices.IndexFunc(drives, func(d drive) bool { return isDrive(d.Qdev, i) }); at >= 0 {
		return drives[at]
	}
	return drive{}
}

func nodeIn(i int, drives []drive) string { return driveOf(i, drives).Inserted.Node }

// insert puts a medium into a drive, in place of what is there.
func (l *life) insert(ctx context.Context, mon *qmp.Client, i int, args DiskArguments) (Medium, error) {
	d, err := l.changeable(i)
	if err != nil {
		return Medium{}, err
	}
	list, err := openChain(configs.Disk{Path: args.Path, Format: args.Format, Readonly: true}, os.O_RDONLY)
	defer closeLayers(list)
	if err == nil {
		err = l.refuseLocked(list[0].file, true)
	}
	if err != nil {
		return Medium{}, err
	}
	node, err := l.addMedium(ctx, mon, i, d, list[0])
	if err == nil {
		err = l.swap(ctx, mon, i, node, args.Force)
	}
	l.discardMedia(mon, i)
	if err != nil {
		return Medium{}, err
	}
	l.announceDisk(i, "inserted", "inserted "+args.Path)
	return Medium{diskNode(i), args.Path, args.Format}, nil
}

// eject empties a drive, and leaves its tray open.
func (l *life) eject(ctx context.Context, mon *qmp.Client, i int, force bool) error {
	if _, err := l.changeable(i); err != nil {
		return err
	}
	err := l.swap(ctx, mon, i, "", force)
	l.discardMedia(mon, i)
	if err == nil {
		l.announceDisk(i, "ejected", "ejected")
	}
	return err
}

func (l *life) changeable(i int) (configs.Disk, error) {
	d := l.guest().Disks[i]
	if !d.CDROM {
		return d, qmp.Errorf("%s is no CD-ROM drive, whose medium could be changed", diskNode(i))
	}
	return d, nil
}

// addMedium makes the nodes of a medium, whose path is recorded first: whoever
// adopts the guest then knows it.
func (l *life) addMedium(ctx context.Context, mon *qmp.Client, i int, d configs.Disk, medium layer) (string, error) {
	var node string
	err := l.update(func(r *record) {
		r.Inserted++
		node = fmt.Sprintf("%s-medium%d", diskNode(i), r.Inserted)
		media := map[string]Medium{node: {diskNode(i), medium.Path, medium.Format}}
		for name, m := range r.Media {
			media[name] = m
		}
		r.Media = media
	})
	if err != nil {
		return "", err
	}
	var added struct {
		Set int `json:"fdset-id"`
	}
	if err := mon.ExecuteFiles(ctx, "add-fd", map[string]any{"opaque": node}, &added, medium.file); err != nil {
		return "", err
	}
	file, format := layerNodes(node, medium, d, added.Set, nil)
	for _, options := range []map[string]any{file, format} {
		if err := mon.Execute(ctx, "blockdev-add", options, nil); err != nil {
			_ = mon.Execute(ctx, "remove-fd", map[string]any{"fdset-id": added.Set}, nil)
			return "", err
		}
	}
	return node, nil
}

// swap opens a drive's tray, takes out what is there, and puts a node in and closes
// the tray, unless there is none.
func (l *life) swap(ctx context.Context, mon *qmp.Client, i int, node string, force bool) error {
	id := map[string]any{"id": driveID(i)}
	if err := l.openTray(ctx, mon, i, force); err != nil {
		return err
	}
	if err := mon.Execute(ctx, "blockdev-remove-medium", id, nil); err != nil || node == "" {
		return err
	}
	err := mon.Execute(ctx, "blockdev-insert-medium", map[string]any{"id": driveID(i), "node-name": node}, nil)
	return errors.Join(err, mon.Execute(ctx, "blockdev-close-tray", id, nil))
}

// openTray opens a tray; a guest that has locked it is asked to, and waited for.
func (l *life) openTray(ctx context.Context, mon *qmp.Client, i int, force bool) error {
	err := mon.Execute(ctx, "blockdev-open-tray", map[string]any{"id": driveID(i), "force": force}, nil)
	if unlessRefused(err) != nil {
		return err
	}
	for end := time.Now().Add(trayTimeout); ; time.Sleep(100 * time.Millisecond) {
		drives, askErr := queryDrives(ctx, mon)
		if askErr != nil {
			return askErr
		}
		at := driveOf(i, drives)
		switch {
		case at.TrayOpen:
			return nil
		case err != nil && !at.Locked:
			return err
		case time.Now().After(end):
			return qmp.Errorf("the guest keeps the tray of %s locked: unmount the medium there, or use --force", diskNode(i))
		}
	}
}

// discardMedia removes the nodes of media that are in no drive any more, and what
// the record knows of them. What cannot be removed now is when this is next called.
func (l *life) discardMedia(mon *qmp.Client, i int) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	drives, err := queryDrives(ctx, mon)
	if err != nil {
		return
	}
	var nodes []struct {
		Name string `json:"node-name"`
		File string `json:"file"`
	}
	if err := mon.Execute(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return
	}
	inserted := nodeIn(i, drives)
	for _, suffix := range []string{"", "-file"} { // a format before its file
		for _, n := range nodes {
			node, ok := strings.CutSuffix(n.Name, suffix)
			if !ok || node == inserted || node != diskNode(i) && !isMedium(node, i) {
				continue
			}
			if mon.Execute(ctx, "blockdev-del", map[string]any{"node-name": n.Name}, nil) != nil || suffix == "" {
				continue
			}
			var set int
			if _, err := fmt.Sscanf(n.File, "/dev/fdset/%d", &set); err == nil {
				_ = mon.Execute(ctx, "remove-fd", map[string]any{"fdset-id": set}, nil)
			}
		}
	}
	_ = l.update(func(r *record) { // which has been logged
		media := map[string]Medium{}
		for node, m := range r.Media {
			if !isMedium(node, i) || node == inserted {
				media[node] = m
			}
		}
		r.Media = media
	})
}

// isMedium reports whether a node is of a medium that was put into a drive.
func isMedium(node string, i int) bool {
	number, ok := strings.CutPrefix(node, diskNode(i)+"-medium")
	return ok && strings.Trim(number, "0123456789") == ""
}

func (l *life) announceDisk(i int, change, text string) {
	l.log.Info(text, "disk", diskNode(i))
	l.announce(newEvent(EventDisk, map[string]any{"disk": diskNode(i), "change": change, "text": text}))
}

// resize makes a disk larger under the guest, which sees it at once.
func (l *life) resize(ctx context.Context, mon *qmp.Client, i int, size uint64) error {
	d := l.guest().Disks[i]
	if d.Readonly {
		return qmp.Errorf("%s is only read: it cannot be resized", diskNode(i))
	}
	drives, err := queryDrives(ctx, mon)
	if err != nil {
		return err
	}
	now := layer{Path: d.Path, Size: driveOf(i, drives).Inserted.Image.Size}
	if err := canGrow(now, size); err != nil || size == now.Size {
		return err
	}
	if err := mon.Execute(ctx, "block_resize", map[string]any{"node-name": diskNode(i), "size": size}, nil); err != nil {
		return err
	}
	l.announceDisk(i, "resized", "resized to "+configs.Size(size).String())
	return nil
}

// diskSnapshot makes or deletes a snapshot inside the image of a disk that is in
// use, with the guest's file systems frozen where its agent can do that.
func (l *life) diskSnapshot(ctx context.Context, mon *qmp.Client, i int, name string, fresh bool) (f Freeze, err error) {
	d := l.guest().Disks[i]
	if d.Readonly || d.Format != configs.FormatQCOW2 {
		return f, qmp.Errorf("%s: only a qcow2 image that is written has snapshots", diskNode(i))
	}
	there, err := diskShots(d)
	if err == nil {
		err = checkShot(d.Path, there, name, fresh)
	}
	if err != nil {
		return f, err
	}
	args := map[string]any{"device": diskNode(i), "name": name}
	if !fresh {
		err = mon.Execute(ctx, "blockdev-snapshot-delete-internal-sync", args, nil)
		if err == nil {
			l.announceDisk(i, "forgot", "forgot snapshot "+name)
		}
		return f, err
	}
	f, err = l.whileFrozen(ctx, func(ctx context.Context) error {
		return mon.Execute(ctx, "blockdev-snapshot-internal-sync", args, nil)
	})
	if err == nil {
		l.announceDisk(i, "snapshot", "took snapshot "+name)
	}
	return f, err
}
