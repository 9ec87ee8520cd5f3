package launcher

import (
	"context"
	"errors"
)

// Cleanup repairs what dead supervisors left below base: it ends starts that
// were never finished and removes the directories of guests that have ended.
// A guest that runs is left alone. It returns the names of those it cleaned.
func Cleanup(ctx context.Context, base string) ([]string, error) {
	var cleaned []string
	errs := []error{RepairNetwork(ctx)}
	for _, name := range guestNames(base) {
		done, err := cleanup(ctx, guestDir(base, name))
		if err != nil {
			errs = append(errs, named(name, err))
		}
		if done {
			cleaned = append(cleaned, name)
		}
	}
	return cleaned, errors.Join(errs...)
}

func cleanup(ctx context.Context, dir runDir) (bool, error) {
	lock, err := dir.lockBriefly()
	var busy *BusyError
	if errors.As(err, &busy) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.Close()
	rec, recErr := dir.readRecord()
	qemu, err := findGuest(dir, rec)
	if err != nil && !errors.Is(err, errGone) {
		return false, err
	}
	if qemu != nil {
		if runs, err := dir.mayAdopt(ctx, qemu, rec, recErr); runs || err != nil {
			return false, errors.Join(err, qemu.pidfd.Close())
		}
		if err := qemu.kill(); err != nil {
			return false, err
		}
	}
	return true, errors.Join(rec.removeCgroup(), dir.remove())
}
