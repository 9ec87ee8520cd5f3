package guesttest

import (
	"bufio"
	"io"
	"strings"
	"sync"
)

// line is a connection to a guest's console, of which everything is kept that came.
type line struct {
	conn io.ReadWriteCloser
	done chan struct{} // closed when the reader has ended

	heard      sync.Mutex
	transcript strings.Builder
}

func newLine(conn io.ReadWriteCloser) line { return line{conn: conn, done: make(chan struct{})} }

// Close ends the connection, and not what is in the guest.
func (l *line) Close() error {
	err := l.conn.Close()
	<-l.done
	return err
}

// Transcript returns all that came from the console, for a test that fails.
func (l *line) Transcript() string {
	l.heard.Lock()
	defer l.heard.Unlock()
	return l.transcript.String()
}

// each calls take with each line that comes, without its end, until the connection's
// own end, which is returned.
func (l *line) each(take func(string)) error {
	r := bufio.NewReader(l.conn)
	for {
		text, err := r.ReadString('\n')
		l.heard.Lock()
		l.transcript.WriteString(text)
		l.heard.Unlock()
		if err != nil {
			return err
		}
		take(strings.TrimRight(text, "\r\n"))
	}
}
