package launcher

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// rotated is the first line of a log that has an older part, or had one.
const rotated = "[vmrun: the log was rotated here; of what was before, one part is kept]\n"

// rotatingFile is a log that keeps at most its size twice: the file itself and
// one older part beside it. Every log of a guest is one.
//
// lumberjack does not serve: it counts in MiB, refuses what is larger than a
// part, says nothing of what it loses, and leaves a goroutine behind.
type rotatingFile struct {
	path string
	max  int64    // bytes, many more than the lines of its own have; 0 keeps nothing
	file *os.File // opened for appending
	std  bool     // file is standard error, and standard output goes there too
	lost int      // bytes that could not be written and that the log says nothing of yet
}

// openRotating goes on with the log at path, or begins it.
func openRotating(path string, size int64) (*rotatingFile, error) {
	r := &rotatingFile{path: path, max: size}
	if size == 0 {
		return r, nil
	}
	var err error
	r.file, err = openAppend(path)
	return r, err
}

// resize gives the log another size.
func (r *rotatingFile) resize(size int64) (err error) {
	if r.file == nil && size != 0 {
		r.file, err = openAppend(r.path)
	}
	if err == nil {
		r.max = size
	}
	return err
}

func openAppend(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// Write appends to the log. What could not be written, for want of room for
// example, is said there as soon as that can be.
func (r *rotatingFile) Write(p []byte) (int, error) {
	if r.max == 0 {
		return len(p), nil
	}
	var note []byte
	all := p
	if r.lost > 0 {
		note = fmt.Appendf(nil, "\n[vmrun: %d bytes could not be written here]\n", r.lost)
		all = append(note, p...)
	}
	n, err := r.append(all)
	n -= len(note)
	if n >= 0 {
		r.lost = 0 // it says so now
	}
	n = max(n, 0)
	r.lost += len(p) - n
	return n, err
}

// append writes p, in parts where it does not fit.
func (r *rotatingFile) append(p []byte) (written int, err error) {
	for written < len(p) {
		rest := p[written:]
		room, err := r.room(int64(len(rest)))
		if err != nil {
			return written, err
		}
		n, err := r.file.Write(rest[:min(int64(len(rest)), room)])
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// room is how many of the bytes that are to be written fit, after a rotation
// where they are not to be torn apart. The file is asked for its size: a panic
// writes to it without asking, and somebody may have emptied it.
func (r *rotatingFile) room(bytes int64) (int64, error) {
	info, err := r.file.Stat()
	if err != nil {
		return 0, err
	}
	room := r.max - info.Size()
	whole := bytes <= r.max-int64(len(rotated)) // fits into a part of its own
	if room > 0 && (bytes <= room || !whole) {
		return room, nil
	}
	if err := r.rotate(info.Size()); err != nil {
		return 0, fmt.Errorf("rotate: %w", err)
	}
	n, err := r.file.WriteString(rotated)
	return r.max - int64(n), err
}

// rotate makes room: what is there becomes the older part. A file that has lost
// its name is emptied instead, since the name may be another guest's by now, and
// so is one that somebody has written who keeps to no bound.
func (r *rotatingFile) rotate(size int64) error {
	if size > 2*r.max || !sameFile(r.file, r.path) {
		return r.file.Truncate(0)
	}
	older := r.path + olderPart
	if err := os.Rename(r.path, older); err != nil {
		return err
	}
	next, err := openAppend(r.path)
	if err == nil {
		err = sameReaders(next, r.file)
	}
	if err == nil && r.std {
		err = redirect(next)
	}
	if err != nil {
		return errors.Join(err, os.Rename(older, r.path))
	}
	if !r.std {
		r.file.Close()
		r.file = next
	}
	return nil
}

// redirect makes a file standard output and standard error, and closes it.
func redirect(f *os.File) error {
	defer f.Close()
	fd := int(f.Fd())
	return errors.Join(unix.Dup3(fd, 1, 0), unix.Dup3(fd, 2, 0))
}

// Close closes the log.
func (r *rotatingFile) Close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

// olderPart is what the older part of a log has behind its name.
const olderPart = ".1"

// logParts are the parts of a log, the older one first.
type logParts struct {
	io.Reader
	files []*os.File
}

// OpenLog opens what there is of a log: its last lines or, where lines is negative,
// all from its oldest byte on. The error is os.ErrNotExist when there is nothing.
func OpenLog(path string, lines int) (io.ReadCloser, error) {
	p, err := openLog(path)
	if err != nil {
		return nil, err
	}
	if err := p.skipTo(lines); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func openLog(path string) (*logParts, error) {
	for range 10 { // it may be rotated in between
		p, settled, err := openLogParts(path)
		if err != nil {
			return nil, err
		}
		if settled {
			return p, nil
		}
		p.Close()
	}
	return nil, fmt.Errorf("%s: is rotated too fast to be read: try again", path)
}

// openLogParts reports also whether the two belong together.
func openLogParts(path string) (p *logParts, settled bool, err error) {
	p = &logParts{}
	older, err := os.Open(path + olderPart)
	if err == nil {
		p.files = append(p.files, older)
	}
	newer, err := os.Open(path)
	if err == nil {
		p.files = append(p.files, newer)
	}
	if len(p.files) == 0 {
		return nil, false, err
	}
	readers := make([]io.Reader, len(p.files))
	for i, f := range p.files {
		readers[i] = f
	}
	p.Reader = io.MultiReader(readers...)
	if older == nil {
		_, err := os.Stat(path + olderPart)
		return p, err != nil, nil
	}
	return p, sameFile(older, path+olderPart), nil
}

// Close closes all parts.
func (p *logParts) Close() error {
	var errs []error
	for _, f := range p.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
