package guesttest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// script answers the console's commands from a stand-in for the guest.
func script(t *testing.T, answer func(mark, command string) string) *Console {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(theirs)
		for lines.Scan() {
			mark, command, ok := strings.Cut(lines.Text(), " ")
			if !ok {
				continue
			}
			if _, err := io.WriteString(theirs, answer(mark, command)); err != nil {
				return
			}
		}
	}()
	c := NewConsole(ours)
	t.Cleanup(func() {
		c.Close()
		theirs.Close()
		<-done
	})
	return c
}

func TestConsoleRun(t *testing.T) {
	const kernel = "[    1.0] a message of the kernel's\r\n"
	for _, tt := range []struct {
		name, answer string
		reply        string
		lines        []string
		err          error
	}{
		{name: "bare", answer: "vmrun-guest: ok MARK\r\n"},
		{name: "reply", answer: "vmrun-guest: ok MARK sent=3 received=2\r\n", reply: "sent=3 received=2"},
		{
			name:   "lines and kernel messages",
			answer: kernel + "vmrun-guest| vda 1\r\n" + kernel + "vmrun-guest| vdb 2\r\nvmrun-guest: ok MARK disks=2\r\n",
			reply:  "disks=2", lines: []string{"vda 1", "vdb 2"},
		},
		{name: "behind an open line", answer: "SeaBIOS...vmrun-guest: ok MARK 1\r\n", reply: "1"},
		{name: "another's answer before", answer: "vmrun-guest: ok #99 9\r\nvmrun-guest: ok MARK 1\r\n", reply: "1"},
		{
			name:   "refused",
			answer: "vmrun-guest: error MARK no such command\r\n",
			err:    &GuestError{Command: "do", Text: "no such command"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := script(t, func(mark, _ string) string { return strings.ReplaceAll(tt.answer, "MARK", mark) })
			reply, lines, err := c.Run(t.Context(), "do")
			var refused *GuestError
			if errors.As(err, &refused) {
				err = refused
			}
			if diff := cmp.Diff(fmt.Sprint(tt.err), fmt.Sprint(err)); diff != "" {
				t.Fatal(diff)
			}
			if reply != tt.reply || !cmp.Equal(lines, tt.lines) {
				t.Errorf("Run = %q, %q", reply, lines)
			}
		})
	}
}

func TestConsoleSilentGuest(t *testing.T) {
	c := script(t, func(_, _ string) string { return "no answer\r\n" })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err := c.Run(ctx, "uptime")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("Run: %v; want a deadline and the transcript", err)
	}
}

func TestConsoleEnd(t *testing.T) {
	ours, theirs := net.Pipe()
	c := NewConsole(ours)
	go theirs.Close()
	if _, err := c.WaitReady(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("WaitReady: %v; want EOF", err)
	}
	if _, _, err := c.Run(t.Context(), "uptime"); err == nil {
		t.Error("Run on an ended console succeeded")
	}
	c.Close()
}

// A console that is opened late has missed the ready line.
func TestConsoleReadyBefore(t *testing.T) {
	c := script(t, func(mark, command string) string {
		return fmt.Sprintf("vmrun-guest: ok %s %s back\r\n", mark, command)
	})
	words, err := c.WaitReady(t.Context())
	if err != nil || words != "hello back" {
		t.Errorf("WaitReady = %q, %v", words, err)
	}
}
