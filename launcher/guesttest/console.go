package guesttest

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// The prefixes that init puts before its lines; what has neither is the
// kernel's or the firmware's.
const (
	saysPrefix   = "vmrun-guest: "
	detailPrefix = "vmrun-guest| "
)

// Console is a client of the guest's console. Its methods may be called from
// several goroutines; the guest works on their commands at the same time.
type Console struct {
	line
	writing sync.Mutex

	mu      sync.Mutex
	lastID  int
	waiting map[string]chan<- answer // by the mark of the command
	said    []string                 // what the guest said without being asked
	seen    map[string]int           // how far WaitFor has read said, by what it waits for
	change  chan struct{}            // closed, and replaced, when the guest says something
	err     error                    // why the reader ended
}

type answer struct {
	ok    bool
	text  string
	lines []string
}

// GuestError is a command's answer that begins with error.
type GuestError struct {
	Command, Text string
}

func (e *GuestError) Error() string {
	return fmt.Sprintf("guest: %s: %s", e.Command, e.Text)
}

// NewConsole speaks with the guest over conn and owns it from now on.
func NewConsole(conn io.ReadWriteCloser) *Console {
	c := &Console{
		line:    newLine(conn),
		waiting: make(map[string]chan<- answer),
		seen:    make(map[string]int),
		change:  make(chan struct{}),
	}
	go c.read()
	return c
}

// Dial connects to the unix socket that is or will be at path.
func Dial(ctx context.Context, path string) (*Console, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return NewConsole(conn), nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("guest console: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (c *Console) read() {
	defer close(c.done)
	var lines []string
	c.end(c.each(func(line string) {
		// Not at the line's start when the firmware left one open.
		if _, detail, ok := strings.Cut(line, detailPrefix); ok {
			lines = append(lines, detail)
			return
		}
		_, words, ok := strings.Cut(line, saysPrefix)
		if !ok {
			return
		}
		status, rest, _ := strings.Cut(words, " ")
		if status != "ok" && status != "error" {
			c.say(words)
			return
		}
		mark, text, _ := strings.Cut(rest, " ")
		c.deliver(mark, answer{ok: status == "ok", text: text, lines: lines})
		lines = nil
	}))
}

func (c *Console) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	for mark, ch := range c.waiting {
		close(ch)
		delete(c.waiting, mark)
	}
	close(c.change)
	c.change = make(chan struct{})
}

func (c *Console) say(words string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said = append(c.said, words)
	close(c.change)
	c.change = make(chan struct{})
}

// deliver drops the answer that nobody waits for any more.
func (c *Console) deliver(mark string, a answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch, ok := c.waiting[mark]; ok {
		ch <- a // has room for its one answer
		delete(c.waiting, mark)
	}
}

// Run gives the guest a command and returns its answer: what stands behind ok,
// and the lines before it. The error is a *GuestError when the guest refused.
func (c *Console) Run(ctx context.Context, command string) (reply string, lines []string, err error) {
	mark, ch, err := c.start(ctx, command)
	if err != nil {
		return "", nil, c.describe(command, err)
	}
	select {
	case <-ctx.Done():
		c.forget(mark)
		return "", nil, c.describe(command, ctx.Err())
	case a, ok := <-ch:
		if !ok {
			return "", nil, c.describe(command, c.ended())
		}
		if !a.ok {
			return "", a.lines, &GuestError{Command: command, Text: a.text}
		}
		return a.text, a.lines, nil
	}
}

// start sends a command and returns where its answer will come.
func (c *Console) start(ctx context.Context, command string) (mark string, ch <-chan answer, err error) {
	in := make(chan answer, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return "", nil, c.err
	}
	c.lastID++
	mark = fmt.Sprintf("#%d", c.lastID)
	c.waiting[mark] = in
	c.mu.Unlock()

	c.writing.Lock()
	defer c.writing.Unlock()
	if conn, ok := c.conn.(net.Conn); ok {
		deadline, _ := ctx.Deadline()
		_ = conn.SetWriteDeadline(deadline)
	}
	// The first line end closes what a guest that was still booting left over.
	if _, err := io.WriteString(c.conn, "\n"+mark+" "+command+"\n"); err != nil {
		c.forget(mark)
		return "", nil, err
	}
	return mark, in, nil
}

func (c *Console) forget(mark string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, mark)
}

func (c *Console) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// describe adds what the console showed last.
func (c *Console) describe(what string, err error) error {
	const most = 2000
	text := c.Transcript()
	if len(text) > most {
		text = "..." + text[len(text)-most:]
	}
	return fmt.Errorf("guest console: %s: %w; it showed:\n%s", what, err, text)
}

// WaitReady waits until the guest has booted and returns its addresses, as
// "eth0=192.0.2.11/24,..." beside other words. After a reboot it waits for the
// new boot. It may be called long after the guest was ready, too.
func (c *Console) WaitReady(ctx context.Context) (words string, err error) {
	for {
		words, err = within(ctx, func(ctx context.Context) (string, error) { return c.WaitFor(ctx, "ready") })
		if err == nil || ctx.Err() != nil || c.ended() != nil {
			return words, err
		}
		// A guest that became ready before we were connected is asked.
		words, err = within(ctx, func(ctx context.Context) (string, error) {
			words, _, err := c.Run(ctx, "hello")
			return words, err
		})
		if err == nil {
			c.mu.Lock()
			c.seen["ready"] = len(c.said)
			c.mu.Unlock()
			return words, nil
		}
		if ctx.Err() != nil || c.ended() != nil {
			return "", err
		}
	}
}

func within(ctx context.Context, do func(context.Context) (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return do(ctx)
}

// WaitFor waits until the guest says, without being asked, a line that begins
// with words, and returns the rest of it. Each line is returned once.
func (c *Console) WaitFor(ctx context.Context, words string) (rest string, err error) {
	for {
		c.mu.Lock()
		for i := c.seen[words]; i < len(c.said); i++ {
			c.seen[words] = i + 1
			if after, ok := strings.CutPrefix(c.said[i], words); ok {
				c.mu.Unlock()
				return strings.TrimSpace(after), nil
			}
		}
		change, ended := c.change, c.err
		c.mu.Unlock()
		if ended != nil {
			return "", c.describe("waiting for "+words, ended)
		}
		select {
		case <-ctx.Done():
			return "", c.describe("waiting for "+words, ctx.Err())
		case <-change:
		}
	}
}
