package launcher

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"vmrun/qmp"
)

// The limits of a command in a guest.
const (
	MaxExecInput  = 128 << 10           // bytes of its standard input
	maxExecText   = 4 << 20             // of what it writes to one stream, as base64
	MaxExecOutput = maxExecText / 4 * 3 // bytes
	maxExecWords  = 48 << 20            // of an agent's answer: it has up to 16 MiB of each stream (qga/commands.c, GUEST_EXEC_MAX_OUTPUT)
)

// execPath is where programs are that a command in a guest may start, when its
// environment is given and says nothing of it.
const execPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ExecArguments are those of vmrun-exec.
type ExecArguments struct {
	Command   []string `json:"command"`              // the program, and its arguments
	Env       []string `json:"env,omitempty"`        // NAME=VALUE: all that it gets beside PATH; the agent's environment when empty
	Input     []byte   `json:"input,omitempty"`      // what it reads
	TimeoutMS int64    `json:"timeout_ms,omitempty"` // that it may take; 0 for as long as it likes
}

// ExecResult is how a command in a guest ended. All of it is the guest's word.
type ExecResult struct {
	PID       int64  `json:"pid"`              // in the guest
	Status    int64  `json:"status"`           // that it exited with
	Signal    int64  `json:"signal,omitempty"` // that ended it
	Out       []byte `json:"out,omitempty"`
	Err       []byte `json:"err,omitempty"`
	Truncated bool   `json:"truncated,omitempty"` // it wrote more
}

// check says what is wrong with the arguments.
func (a ExecArguments) check() error {
	switch {
	case len(a.Command) == 0 || a.Command[0] == "":
		return qmp.Errorf("there is no command")
	case len(a.Input) > MaxExecInput:
		return qmp.Errorf("its input has %d bytes, and may have %d", len(a.Input), MaxExecInput)
	case a.TimeoutMS < 0:
		return qmp.Errorf("timeout_ms: %d is no time", a.TimeoutMS)
	}
	for _, text := range slices.Concat(a.Command, a.Env) {
		if strings.ContainsRune(text, 0) {
			return qmp.Errorf("no argument can hold a NUL")
		}
	}
	for _, env := range a.Env {
		if name, _, ok := strings.Cut(env, "="); !ok || name == "" {
			return qmp.Errorf("env: %q is not NAME=VALUE", env)
		}
	}
	return nil
}

// timeout is the time that the command may take.
func (a ExecArguments) timeout() time.Duration {
	if a.TimeoutMS <= 0 || a.TimeoutMS > int64(math.MaxInt64/time.Millisecond) {
		return math.MaxInt64
	}
	return time.Duration(a.TimeoutMS) * time.Millisecond
}

// guestExec are the arguments of guest-exec (qga/qapi-schema.json).
type guestExec struct {
	Path    string   `json:"path"`
	Args    []string `json:"arg,omitempty"`
	Env     []string `json:"env,omitempty"`
	Input   []byte   `json:"input-data,omitempty"`
	Capture bool     `json:"capture-output"`
}

func (a ExecArguments) guestExec() guestExec {
	e := guestExec{Path: a.Command[0], Args: a.Command[1:], Env: a.Env, Input: a.Input, Capture: true}
	if len(e.Env) > 0 && !slices.ContainsFunc(e.Env, func(env string) bool { return strings.HasPrefix(env, "PATH=") }) {
		e.Env = append([]string{execPath}, e.Env...)
	}
	return e
}

// execStatus is the answer to guest-exec-status (qga/qapi-schema.json,
// GuestExecStatus). An agent has the output when the command has ended.
type execStatus struct {
	Exited       bool   `json:"exited"`
	Code         int64  `json:"exitcode"`
	Signal       int64  `json:"signal"`
	Out          []byte `json:"out-data"`
	Err          []byte `json:"err-data"`
	OutTruncated bool   `json:"out-truncated"`
	ErrTruncated bool   `json:"err-truncated"`
}

func (s execStatus) result(pid int64) ExecResult {
	cut := s.OutTruncated || s.ErrTruncated || len(s.Out) >= MaxExecOutput || len(s.Err) >= MaxExecOutput
	return ExecResult{PID: pid, Status: s.Code, Signal: s.Signal, Out: s.Out, Err: s.Err, Truncated: cut}
}

// execStatus asks how a command does.
func (c *conversation) execStatus(pid int64) (s execStatus, err error) {
	if err := c.send("guest-exec-status", map[string]int64{"pid": pid}); err != nil {
		return s, err
	}
	err = c.answer(maxExecWords, maxExecText, &s)
	return s, err
}

// mayGoOn is the error for a command that may go on.
func mayGoOn(pid int64, err error) error {
	return fmt.Errorf("the command may go on in the guest, as process %d there: %w", pid, err)
}
