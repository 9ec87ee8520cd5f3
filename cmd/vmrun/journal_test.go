package main

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/google/go-cmp/cmp"
)

func TestJournalEntry(t *testing.T) {
	h := newJournalHandler()
	var message string
	var fields map[string]string
	h.send = func(m string, _ journal.Priority, f map[string]string) error {
		message, fields = m, f
		return nil
	}
	log := slog.New(h).With("guest", "web1")
	log.Warn("guest says", "nic", "net0", "what it-says", "a\nMESSAGE=b\x1b[2J")
	if strings.ContainsAny(message, "\x1b") || !strings.HasPrefix(message, "net0: guest says: what it-says a\n") {
		t.Errorf("%q", message)
	}
	want := map[string]string{"SYSLOG_IDENTIFIER": "vmrun", "VMRUN_GUEST": "web1", "VMRUN_NIC": "net0", "VMRUN_WHAT_IT_SAYS": "a\nMESSAGE=b\x1b[2J"}
	if diff := cmp.Diff(want, fields); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A journal that hangs keeps nobody for long, and not so many waiting.
func TestJournalHangs(t *testing.T) {
	h := newJournalHandler()
	hang, begun := make(chan struct{}), make(chan struct{}, 100)
	h.send = func(string, journal.Priority, map[string]string) error {
		begun <- struct{}{}
		<-hang
		return nil
	}
	for range cap(h.waiting) - 1 {
		h.waiting <- struct{}{}
	}
	for _, limit := range []time.Duration{journalPatience + 5*time.Second, journalPatience / 2} {
		begin := time.Now()
		if err := h.hand("a word", journal.PriInfo, nil); !errors.Is(err, errJournal) || time.Since(begin) > limit {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	}
	if len(begun) != 1 {
		t.Errorf("%d wait", len(begun))
	}
	close(hang)
	for deadline := time.Now().Add(5 * time.Second); len(h.waiting) == cap(h.waiting); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody comes back")
		}
	}
}
