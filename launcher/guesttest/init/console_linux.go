package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	saysPrefix   = "vmrun-guest: "
	detailPrefix = "vmrun-guest| "
)

// console writes whole answers, so that those of commands that run beside each
// other do not mix.
type console struct {
	in  *os.File
	out *os.File
	mu  sync.Mutex
}

func openConsole() (*console, error) {
	f, err := os.OpenFile("/dev/console", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return &console{in: os.Stdin, out: os.Stdout}, fmt.Errorf("console: %w", err)
	}
	return &console{in: f, out: f}, setRaw(int(f.Fd()))
}

// setRaw turns off the echo, which would repeat every command to its sender, and
// line editing, which cuts a line at 4096 bytes. Output keeps its \r\n.
func setRaw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	t.Iflag &^= unix.IXON | unix.IXOFF | unix.INLCR
	t.Iflag |= unix.ICRNL
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	// TCSETSF drops what was typed at the firmware.
	if err := unix.IoctlSetTermios(fd, unix.TCSETSF, t); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	return nil
}

func (c *console) say(words string) {
	c.write(saysPrefix + words + "\n")
}

func (c *console) write(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.out.WriteString(text)
}

// serve answers commands until the console ends.
func (g *guest) serve() {
	lines := bufio.NewScanner(g.console.in)
	lines.Buffer(make([]byte, 1<<12), 1<<20)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || g.silent.Load() {
			continue
		}
		mark := ""
		if strings.HasPrefix(words[0], "#") {
			mark, words = words[0]+" ", words[1:]
		}
		go g.answer(mark, words)
	}
}

func (g *guest) answer(mark string, words []string) {
	a, err := g.run(words)
	if g.silent.Load() {
		return
	}
	var text strings.Builder
	for _, line := range a.lines {
		text.WriteString(detailPrefix + line + "\n")
	}
	end := "ok " + mark + a.reply
	if err != nil {
		end = "error " + mark + strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	text.WriteString(saysPrefix + strings.TrimRight(end, " ") + "\n")
	if a.then == nil {
		g.console.write(text.String())
		return
	}
	g.silent.Store(true)
	g.console.write(text.String())
	a.then()
}
