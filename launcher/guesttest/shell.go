package guesttest

import (
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Shell is root's shell on the console of the Debian guest. One command runs at a
// time.
type Shell struct {
	line
	lines chan string
	last  int // the number of the last command
}

// retype is how long the first unanswered command is waited for before it is typed
// again, and each further one longer: a guest that boots hears nothing, or hears all of
// them late.
const retype = 3 * time.Second

// DialShell connects to the console's socket at path and waits until the shell
// answers, which it does once the guest has booted.
func DialShell(ctx context.Context, path string) (*Shell, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("guest's shell: %w", err)
	}
	s := &Shell{line: newLine(conn), lines: make(chan string, 1024)}
	go s.read()
	for patience := retype; ; patience += retype {
		attempt, cancel := context.WithTimeout(ctx, patience)
		_, err := s.Run(attempt, "true")
		cancel()
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil || s.ended() {
			s.Close()
			return nil, err
		}
	}
}

func (s *Shell) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *Shell) read() {
	defer close(s.done)
	defer close(s.lines)
	_ = s.each(func(line string) {
		select {
		case s.lines <- line:
		default: // nobody listens to a guest that talks so much
		}
	})
}

var endOfCommand = regexp.MustCompile(`^@end(\d+) (\d+)$`)

// Run types a command of one line, and returns what it printed, without the last
// line end. A status other than 0 is an error.
func (s *Shell) Run(ctx context.Context, command string) (string, error) {
	s.last++
	n := strconv.Itoa(s.last)
	deadline, _ := ctx.Deadline()
	s.conn.(net.Conn).SetWriteDeadline(deadline)
	// The quotes keep the echo of what is typed from looking like the answer. What was
	// typed before and is still in the line is ended first.
	_, err := io.WriteString(s.conn, "\necho; echo '@'begin"+n+"; { "+command+"; } </dev/null 2>&1; echo; echo '@'end"+n+" $?\n")
	if err != nil {
		return "", s.describe(command, err)
	}
	var out []string
	begun := false
	for {
		select {
		case <-ctx.Done():
			return "", s.describe(command, ctx.Err())
		case line, ok := <-s.lines:
			end := endOfCommand.FindStringSubmatch(line)
			switch {
			case !ok:
				return "", s.describe(command, io.EOF)
			case line == "@begin"+n:
				begun, out = true, nil
			case begun && end != nil && end[1] == n:
				text := strings.TrimSuffix(strings.Join(out, "\n"), "\n")
				if end[2] != "0" {
					return text, fmt.Errorf("guest: %s: status %s: %s", command, end[2], text)
				}
				return text, nil
			case begun:
				out = append(out, line)
			}
		}
	}
}

func (s *Shell) describe(command string, err error) error {
	const most = 3000
	text := s.Transcript()
	if len(text) > most {
		text = "..." + text[len(text)-most:]
	}
	return fmt.Errorf("guest's shell: %s: %w; the console showed:\n%s", command, err, text)
}
