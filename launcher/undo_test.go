package launcher

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUndoStack(t *testing.T) {
	var order []string
	var u undoStack
	first, third := errors.New("first"), errors.New("third")
	for _, e := range []struct {
		name string
		err  error
	}{{"first", first}, {"second", nil}, {"third", third}} {
		u.push(e.name, func() error {
			order = append(order, e.name)
			return e.err
		})
	}
	err := u.run()
	if diff := cmp.Diff([]string{"third", "second", "first"}, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if !errors.Is(err, first) || !errors.Is(err, third) {
		t.Errorf("%v does not hold both errors", err)
	}
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 2 {
		t.Errorf("%q has %d lines, want 2", err, len(lines))
	}
	if err := u.run(); err != nil || len(order) != 3 {
		t.Errorf("a second run did something: %v, %v", err, order)
	}
}

func TestUndoUnlessCommitted(t *testing.T) {
	for _, tt := range []struct {
		name      string
		committed bool
		want      int
	}{{"half done", false, 1}, {"committed", true, 0}} {
		t.Run(tt.name, func(t *testing.T) {
			undone := 0
			var l life
			l.undoUnlessCommitted("it", func() error { undone++; return nil })
			l.committed = tt.committed // it is asked for when the undo runs
			if err := l.undo.run(); err != nil || undone != tt.want {
				t.Errorf("undone %d times, %v; want %d", undone, err, tt.want)
			}
		})
	}
}
