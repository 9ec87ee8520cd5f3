package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/qmp"
)

// QEMU halts a guest whose disk image cannot grow, and says so in two events: it
// is the default of every disk (block/block-backend.c, blk_new). What was to be
// written is kept, and written when the guest is resumed.
const (
	// roomEvery is how often the image's file system is looked at meanwhile.
	roomEvery = time.Second
	// tryEvery is how often the guest is let try where nothing can be seen: the
	// pool behind a block device may have grown, or a quota.
	tryEvery = time.Minute
	// calm is how long a guest has to run until it is believed to have space.
	calm = 5 * time.Second
)

// blockError takes in that QEMU could not read or write a disk.
func (w *watcher) blockError(ev qmp.Event) {
	noSpace, _ := ev.Data["nospace"].(bool)
	if noSpace && ev.Data["action"] == "stop" {
		node, _ := ev.Data["node-name"].(string)
		w.handle(event{kind: evStalled, reason: diskOf(w.guest(), node)})
		return
	}
	w.say(ev)
}

// diskOf is the path behind a block node that argv has named, or else the node.
func diskOf(g *configs.Guest, node string) string {
	for i, d := range g.Disks {
		if node == diskNode(i) {
			return d.Path
		}
	}
	return fmt.Sprintf("QEMU's block node %q", node)
}

// stallChanged follows the guest into a stall and out of it.
func (w *watcher) stallChanged() {
	w.stopLooking()
	w.stopLooking = func() {}
	if w.now.Stalled == "" {
		w.calm = time.After(calm) // it may stall again at once
		return
	}
	if w.calm == nil {
		w.log.Warn("no space left: the guest stands still until there is some", "disk", w.now.Stalled)
	}
	w.calm = nil
	ctx, cancel := context.WithCancel(context.Background())
	w.stopLooking = cancel
	// Nobody waits for it: on a file system that hangs it hangs too.
	go w.lookForRoom(ctx, w.now.Stalled)
}

// lookForRoom tells when there is more space for a disk than there was, until
// ctx ends.
func (l *life) lookForRoom(ctx context.Context, path string) {
	least, _ := freeSpace(path) // which was too little
	tried := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(roomEvery):
		}
		free, err := freeSpace(path)
		if (err != nil || free <= least) && time.Since(tried) < tryEvery {
			continue
		}
		least, tried = max(least, free), time.Now()
		_ = l.request(ctx, func(w *watcher) { w.handle(event{kind: evRoom}) }) // or it is over
	}
}

// freeSpace is how many bytes the file system of a file, or of the directory
// that it was in, has left for those without privileges.
func freeSpace(path string) (uint64, error) {
	if !filepath.IsAbs(path) {
		return 0, fmt.Errorf("%s is not in the spec", path)
	}
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, unix.ENOENT) {
		err = unix.Statfs(filepath.Dir(path), &st)
	}
	if err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// queryRun asks QEMU whether the CPUs run and, where it has halted them for want
// of space, which disk it is for.
func queryRun(ctx context.Context, mon *qmp.Client, g *configs.Guest) (run qmp.Status, stalled string, err error) {
	if run, err = mon.QueryStatus(ctx); err != nil || run.Status != "io-error" {
		return run, "", err
	}
	var disks []struct {
		IOStatus string `json:"io-status"`
		Inserted struct {
			Node string `json:"node-name"`
		} `json:"inserted"`
	}
	if err := mon.Execute(ctx, "query-block", nil, &disks); err != nil {
		return run, "", err
	}
	for _, d := range disks {
		if d.IOStatus == "nospace" { // of several, the next try tells the next
			return run, diskOf(g, d.Inserted.Node), nil
		}
	}
	return run, "", nil
}
