package launcher

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"time"
)

// Names lists the guests that have a run directory below base, those that have
// ended included.
func Names(base string) []string { return guestNames(base) }

// Supervised lists the guests that have a control socket. Nobody may be listening
// there any more.
func Supervised(base string) []string {
	return slices.DeleteFunc(guestNames(base), func(name string) bool {
		_, err := os.Stat(guestDir(base, name).path(fileControl))
		return err != nil
	})
}

// skipTo leaves out all but the last lines.
func (p *logParts) skipTo(lines int) error {
	if lines < 0 {
		return nil
	}
	for i, f := range slices.Backward(p.files) {
		at, n, err := lastLines(f, lines)
		if err != nil {
			return err
		}
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
		if lines -= n; lines > 0 || i == 0 {
			continue
		}
		for _, older := range p.files[:i] { // at their end, too
			if _, err := older.Seek(0, io.SeekEnd); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// lastLines finds where the last lines of a file begin, and how many of those that
// were asked for it has. A line without an end is one too.
func lastLines(f *os.File, most int) (at int64, lines int, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || most == 0 || end == 0 {
		return end, 0, err
	}
	block := make([]byte, 64<<10)
	for at = end; at > 0; {
		part := block[:min(at, int64(len(block)))]
		at -= int64(len(part))
		if _, err := f.ReadAt(part, at); err != nil {
			return 0, 0, err
		}
		for i, c := range slices.Backward(part) {
			if c != '\n' || at+int64(i) == end-1 {
				continue
			}
			if lines++; lines == most {
				return at + int64(i) + 1, lines, nil
			}
		}
	}
	return 0, lines + 1, nil
}

// How long a log that has not grown is left alone: it is asked again soon at first.
// inotify would tell at once, and has few descriptors for each user (inotify(7),
// max_user_instances).
const (
	followSoon = 50 * time.Millisecond
	followLate = 500 * time.Millisecond
)

// follower reads a log that grows, over its rotations.
type follower struct {
	ctx   context.Context
	path  string
	files []*os.File // what is to be read, the newest last
	left  bool       // the newest is not the log any more, and is read to its end
	last  bool       // ctx is over: what is there now is all
	idle  time.Duration
}

// FollowLog reads a log from its last lines on, or from its first byte where lines
// is negative, and waits for more. It ends when ctx is over and all is read. There
// need not be such a log yet.
func FollowLog(ctx context.Context, path string, lines int) (io.ReadCloser, error) {
	f := &follower{ctx: ctx, path: path, idle: followSoon}
	p, err := openLog(path)
	if errors.Is(err, os.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	f.files = p.files
	return f, p.skipTo(lines)
}

func (f *follower) Read(p []byte) (int, error) {
	for {
		if len(f.files) > 0 {
			n, err := f.files[0].Read(p)
			if n > 0 {
				f.idle = followSoon
				return n, nil
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return 0, err
			}
		}
		if more, err := f.next(); more || err != nil {
			if err != nil {
				return 0, err
			}
			continue
		}
		if f.last {
			return 0, io.EOF
		}
		select {
		case <-f.ctx.Done():
			f.last = true
		case <-time.After(f.idle):
			f.idle = min(2*f.idle, followLate)
		}
	}
}

// next goes on after the end of a file. It reports whether there may be more to
// read now.
func (f *follower) next() (more bool, err error) {
	switch {
	case len(f.files) > 1:
		f.drop()
		return true, nil
	case len(f.files) == 0 || f.left:
		return f.open()
	case sameFile(f.files[0], f.path):
		return f.emptied()
	}
	if _, err := os.Stat(f.path); err != nil {
		return false, nil // it is just being rotated, or is gone until the guest's next start
	}
	f.left = true // and what was written until then may not have been read
	return true, nil
}

func (f *follower) drop() {
	f.files[0].Close()
	f.files = f.files[1:]
}

// open opens what came after the file that was left.
func (f *follower) open() (more bool, _ error) {
	p, err := openLog(f.path)
	if err != nil { // it is not there yet, or not for this user yet, or is just being rotated
		return false, nil
	}
	if f.left {
		if isSame(f.files[0], p.files[0]) {
			p.files[0].Close()
			p.files = p.files[1:]
		}
		f.drop()
	}
	f.files, f.left = p.files, false
	return len(f.files) > 0, nil
}

func isSame(a, b *os.File) bool {
	one, err := a.Stat()
	if err != nil {
		return false
	}
	other, err := b.Stat()
	return err == nil && os.SameFile(one, other)
}

// emptied goes back to the beginning of a log that somebody has emptied.
func (f *follower) emptied() (bool, error) {
	at, err := f.files[0].Seek(0, io.SeekCurrent)
	if err != nil {
		return false, err
	}
	info, err := f.files[0].Stat()
	if err != nil || info.Size() >= at {
		return false, err
	}
	_, err = f.files[0].Seek(0, io.SeekStart)
	return true, err
}

func (f *follower) Close() error {
	return (&logParts{files: f.files}).Close()
}
