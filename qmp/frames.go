package qmp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

const (
	maxMessage = 16 << 20  // QEMU's longest answer, its schema, is under 1 MiB
	maxResult  = 2 << 20   // of an answer that is taken apart, which takes up to 50 times the space
	maxEvent   = 16 << 10  // the largest event known is a few KiB
	maxWords   = 16 << 10  // of one piece, in what is no event
	maxRequest = 256 << 10 // those that carry files and images name them
)

var (
	errSyntax   = errors.New("JSON parse error")
	errDepth    = errors.New("JSON nesting depth limit exceeded")
	errTooLarge = errors.New("message too large")
)

// frames cuts a stream into JSON values.
type frames struct {
	r   *bufio.Reader
	lex lexer
	max int // bytes of one value
}

func newFrames(r io.Reader, max int) *frames {
	return &frames{r: bufio.NewReaderSize(r, 2<<10), max: max}
}

// next returns the next value, in a slice of its own. After errSyntax and
// errDepth the stream can be read on; all other errors end it: io.EOF between
// values, io.ErrUnexpectedEOF in the midst of one.
func (f *frames) next() ([]byte, error) {
	var value []byte
	for {
		chunk, err := f.chunk()
		if err != nil {
			return nil, f.ended(err)
		}
		if f.lex.idle() {
			// Discard cannot fail: the bytes are buffered.
			n, _ := f.r.Discard(f.lex.skip(chunk))
			chunk = chunk[n:]
		}
		n, v := f.lex.scan(chunk)
		if len(value)+n > f.max {
			return nil, fmt.Errorf("%w: over %d bytes", errTooLarge, f.max)
		}
		value = append(value, chunk[:n]...)
		_, _ = f.r.Discard(n)
		switch v {
		case lexDone:
			return value, nil
		case lexBad:
			return nil, errSyntax
		case lexDeep:
			return nil, errDepth
		}
	}
}

// chunk returns what is buffered, after reading when that is nothing.
func (f *frames) chunk() ([]byte, error) {
	if f.r.Buffered() == 0 {
		if _, err := f.r.Peek(1); err != nil {
			return nil, err
		}
	}
	return f.r.Peek(f.r.Buffered())
}

// unreadable reports the errors of next that mean the peer, not the
// connection, is at fault.
func unreadable(err error) bool {
	return errors.Is(err, errSyntax) || errors.Is(err, errDepth) || errors.Is(err, errTooLarge)
}

func (f *frames) ended(err error) error {
	if errors.Is(err, io.EOF) && !f.lex.idle() {
		return io.ErrUnexpectedEOF
	}
	return err
}
