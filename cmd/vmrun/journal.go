package main

import (
	"context"
	"log/slog"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// journalHandler writes a supervisor's log as the journal's own entries, which
// can be searched by their fields (systemd.journal-fields(7)): the guest's name is
// in VMRUN_GUEST, the NIC's in VMRUN_NIC, and so on.
type journalHandler struct{ attrs []slog.Attr }

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
	return journal.Send(clean(nic+r.Message+rest, "\n\t"), priority(r.Level), fields)
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
	return journalHandler{append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup does nothing: no log of a supervisor has groups.
func (h journalHandler) WithGroup(string) slog.Handler { return h }
