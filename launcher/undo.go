package launcher

import "errors"

// undoStack holds what gives back what was acquired, newest last.
type undoStack []func() error

// push adds an undo; it belongs on the line after the act that it undoes.
func (u *undoStack) push(undo func() error) { *u = append(*u, undo) }

// run undoes everything, newest first, and forgets it. One failure does not
// keep the others from running; the errors are joined.
func (u *undoStack) run() error {
	var errs []error
	for i := len(*u) - 1; i >= 0; i-- {
		errs = append(errs, (*u)[i]())
	}
	*u = nil
	return errors.Join(errs...)
}
