package launcher

import (
	"errors"
	"fmt"
)

// undo gives back what one act acquired.
type undo struct {
	name string
	do   func() error
}

// undoStack holds what gives back what was acquired, newest last.
type undoStack struct {
	step func(name string, do func() error) error // carries out each; nil: nobody is told
	list []undo
}

// push adds an undo; it belongs on the line after the act that it undoes, and
// has the name of what that acquired.
func (u *undoStack) push(name string, do func() error) {
	u.list = append(u.list, undo{"undo " + name, do})
}

// run undoes everything, newest first, and forgets it. One failure does not
// keep the others from running; the errors are joined.
func (u *undoStack) run() error {
	var errs []error
	for i := len(u.list) - 1; i >= 0; i-- {
		if err := u.runOne(u.list[i]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u.list[i].name, err))
		}
	}
	u.list = nil
	return errors.Join(errs...)
}

func (u *undoStack) runOne(one undo) error {
	if u.step == nil {
		return one.do()
	}
	return u.step(one.name, one.do)
}
