package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A column that was wide stays so, and names make room where the terminal is narrow.
func TestColumns(t *testing.T) {
	c := &columns{}
	for _, tt := range []struct {
		rows [][]string
		want []string
	}{
		{[][]string{{"NAME", "STATE", "X"}, {"web1", "running", "-"}}, []string{"NAME  STATE    X", "web1  running  -"}},
		{[][]string{{"a", "b", "c"}, {"a", ""}, {"longer\n", "b"}}, []string{"a         b        c", "a", `longer\n  b`}},
	} {
		if diff := cmp.Diff(tt.want, c.lines(tt.rows, 0)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	c = &columns{numbers: true}
	rows := [][]string{{"GUEST", "CPU", "LOST"}, {"a-name-that-is-long", "7.0 %", "0"}, {"web1", "100.0 %", "12"}}
	want := []string{"GUEST              CPU  LOST", "a-name-that-…    7.0 %     0", "web1           100.0 %    12"}
	if diff := cmp.Diff(want, c.lines(rows, 28)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := c.lines(rows, 3)[1]; got != "a-name-…    7.0 %     0" {
		t.Errorf("in a terminal of 3 columns: %q", got)
	}
}
