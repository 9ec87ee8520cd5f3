package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// DefaultStateDir is where what has to outlive a boot is kept, in a directory for
// each guest: firmware's variables, for example.
const DefaultStateDir = "/var/lib/vmrun"

// stateBase is the base of the state directories of the guests with this base of
// run directories. Guests of the same name below two bases are two guests.
func stateBase(runBase string) string {
	if runBase == DefaultRunDir {
		return DefaultStateDir
	}
	return runBase + ".state"
}

// StateDir is the directory of what a guest keeps between its starts. It need not
// be there.
func StateDir(runBase, name string) string { return filepath.Join(stateBase(runBase), name) }

// keepsState reports whether a settled guest has something to keep.
func keepsState(g *configs.Guest) bool { return g.Firmware == configs.FirmwareUEFI || g.TPM }

// KnownHosts is the path of the file that keeps a guest's ssh host keys for root, in
// its state directory, which is made.
func KnownHosts(runBase, name string) (string, error) {
	dir := StateDir(runBase, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	return filepath.Join(dir, "known_hosts"), nil
}

// makeState makes the guest's state directory, for root alone. One that stays empty
// goes with a start that fails.
func (l *life) makeState(context.Context) error {
	dir := StateDir(l.opts.RunDir, l.guest().Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	l.undoUnlessCommitted("state", func() error {
		if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("state directory: %w", err)
		}
		return nil
	})
	return nil
}
