package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"vmrun/launcher"
)

// journalHandler writes a supervisor's log as the journal's own entries, which
// can be searched by their fields (systemd.journal-fields(7)): the guest's name is
// in VMRUN_GUEST, the NIC's in VMRUN_NIC, and so on.
type journalHandler struct {
	attrs   []slog.Attr
	send    func(message string, priority journal.Priority, fields map[string]string) error
	waiting chan struct{} // holds one for each entry that the journal has not taken yet
}

func newJournalHandler() journalHandler {
	return journalHandler{send: journal.Send, waiting: make(chan struct{}, 16)}
}

// journalPatience is how long an entry is waited for. A journal that hangs is to cost
// entries, and not the guest: who looks after it logs, and feeds the watchdog.
const journalPatience = time.Second

var errJournal = errors.New("the journal takes no entries")

// The journal's field for the attributes that name what an entry is about, and so
// are not repeated in its message.
const (
	fieldPrefix = "VMRUN_"
	guestKey    = "guest"
	nicKey      = "nic"
)

// Enabled leaves out what is for developers.
func (h journalHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

// Handle writes an entry.
func (h journalHandler) Handle(_ context.Context, r slog.Record) error {
	fields := map[string]string{"SYSLOG_IDENTIFIER": "vmrun"}
	if id := os.Getenv("INVOCATION_ID"); id != "" { // systemd.exec(5)
		fields[launcher.InvocationField] = id
	}
	nic, rest := "", ""
	add := func(a slog.Attr) bool {
		value := a.Value.Resolve().String()
		fields[fieldName(a.Key)] = value
		switch a.Key {
		case guestKey:
		case nicKey:
			nic = value + ": "
		default:
			rest += ", " + a.Key + " " + value
		}
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	if rest != "" {
		rest = ": " + strings.TrimPrefix(rest, ", ")
	}
	return h.hand(clean(nic+r.Message+rest, "\n\t"), priority(r.Level), fields)
}

// hand hands an entry over, in time or not at all.
func (h journalHandler) hand(message string, p journal.Priority, fields map[string]string) error {
	select {
	case h.waiting <- struct{}{}:
	default:
		return errJournal
	}
	sent := make(chan error, 1)
	go func() {
		sent <- h.send(message, p, fields)
		<-h.waiting
	}()
	select {
	case err := <-sent:
		return err
	case <-time.After(journalPatience):
		return errJournal
	}
}

// fieldName makes a field's name of an attribute's.
func fieldName(key string) string {
	return fieldPrefix + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}

func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	}
	return journal.PriInfo
}

// WithAttrs adds attributes to all entries.
func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	return h
}

// WithGroup does nothing: no log of a supervisor has groups.
func (h journalHandler) WithGroup(string) slog.Handler { return h }
