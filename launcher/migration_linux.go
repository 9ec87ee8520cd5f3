package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"vmrun/qmp"
)

// What QEMU does for a suspended guest: it writes its memory to a file, and reads it
// (QEMU's docs/devel/migration.rst).

// cancelMigration has QEMU write no more, and returns when it does not.
func (l *life) cancelMigration() error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	mon, err := l.reach(ctx)
	if err != nil {
		return err
	}
	if err := mon.Execute(ctx, "migrate_cancel", nil, nil); err != nil { // of none it does nothing
		return err
	}
	for {
		m, err := queryMigration(ctx, mon)
		if err != nil || !m.isUnderWay() {
			return err
		}
		select {
		case <-time.After(migrationPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// memoryFD is the name by which QEMU gets the file.
const memoryFD = "memory"

// passMemory has QEMU write its memory to a file, or read it, with command.
func passMemory(ctx context.Context, mon *qmp.Client, f *os.File, command string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := mon.GetFD(ctx, memoryFD, f); err != nil {
		return err
	}
	err := mon.Execute(ctx, command, map[string]any{"uri": "fd:" + memoryFD}, nil)
	if err != nil {
		_ = mon.CloseFD(ctx, memoryFD) // which it may have taken
	}
	return err
}

// migration is the result of query-migrate (qapi/migration.json, MigrationInfo).
type migration struct {
	Status  string   `json:"status"` // "" for none
	Error   string   `json:"error-desc"`
	Blocked []string `json:"blocked-reasons"`
}

func queryMigration(ctx context.Context, mon *qmp.Client) (m migration, err error) {
	err = mon.Execute(ctx, "query-migrate", nil, &m)
	return m, err
}

func (m migration) isUnderWay() bool {
	switch m.Status {
	case "setup", "active", "device", "pre-switchover", "cancelling":
		return true
	}
	return false
}

// migrationPoll is how often QEMU is asked how far it is.
const migrationPoll = 50 * time.Millisecond

// awaitMigration waits until QEMU has written or read all of f, whose position it
// shares, for as long as that moves and unwanted, if it is not nil, returns nil.
func (l *life) awaitMigration(ctx context.Context, mon *qmp.Client, f *os.File, unwanted func() error) error {
	last, moved := int64(0), time.Now()
	for {
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if at != last {
			last, moved = at, time.Now()
		}
		ask, cancel := context.WithTimeout(ctx, commandTimeout)
		m, err := queryMigration(ask, mon)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, context.DeadlineExceeded):
			return err
		case err == nil && m.Status == "completed":
			return nil
		case err == nil && m.Status != "" && m.Status != "none" && !m.isUnderWay():
			return fmt.Errorf("QEMU: %s: %s", m.Status, m.Error)
		case time.Since(moved) > loadTimeout:
			return fmt.Errorf("nothing was written or read for %v: %w", loadTimeout, ErrUnresponsive)
		}
		if unwanted != nil {
			if err := unwanted(); err != nil {
				return err
			}
		}
		select {
		case <-time.After(migrationPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// machineType asks QEMU which machine it has, an alias resolved.
func machineType(ctx context.Context, mon *qmp.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var name string
	err := mon.Execute(ctx, "qom-get", map[string]any{"path": "/machine", "property": "type"}, &name)
	return strings.TrimSuffix(name, "-machine"), err
}
