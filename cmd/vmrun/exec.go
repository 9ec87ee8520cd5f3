package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vmrun/launcher"
	"vmrun/qmp"
)

// The exit statuses of exec that are not the command's, as of timeout(1).
const (
	execTimeout  = 124
	execFailed   = 125
	execRefused  = 126
	execNotFound = 127
)

func (a *app) execCmd() *cobra.Command {
	var env []string
	var stdin bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "exec [flags] GUEST [--] COMMAND [ARGUMENT...]",
		Short: "Run a command in a guest, by its QEMU guest agent",
		Long: `Run a command in a guest, by its QEMU guest agent, and end as it does.

The command runs as the agent does, as root. There is no shell around it and no
terminal; what it writes is shown when it has ended, up to 3 MiB of each stream.
It reads nothing, or with --stdin all of standard input, up to 128 KiB, which it
gets at once. With --env its environment is what is given, and a PATH.

The exit status is the command's, or 128 and the number of the signal that ended
it. These are not the command's, as of timeout(1): 124 when --timeout is over, 125
when vmrun failed or nobody answers in the guest, 126 when the agent does not
start the command, and 127 when it finds none of that name. A command that is not
waited for any longer goes on in the guest.

Only root may do this, also where the spec names a group.`,
		Example: `  vmrun exec web1 -- systemctl is-system-running --wait
  vmrun exec --stdin web1 -- sh -c 'cat >/etc/motd' <motd
  vmrun exec --timeout=10s --env=LANG=C web1 -- df -h /`,
		GroupID:           "look",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeGuests,
		Annotations:       map[string]string{ownFailures: fmt.Sprint(execFailed)},
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout != 0 && timeout < time.Millisecond {
				return usageError{fmt.Errorf("--timeout: %v is less than 1ms", timeout)}
			}
			name, words, err := a.guestAndWords(args)
			if err != nil {
				return err
			}
			run := launcher.ExecArguments{Command: words, Env: env, TimeoutMS: timeout.Milliseconds()}
			if stdin {
				if run.Input, err = execInput(os.Stdin); err != nil {
					return err
				}
			}
			return a.exec(cmd.Context(), name, run)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringArrayVarP(&env, "env", "e", nil, "set a variable of its environment, `NAME=VALUE`")
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "read standard input to its end, and give it to the command")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "wait for no longer than this; 0 waits for the command's end")
	return cmd
}

// guestAndWords are a guest, and a command with its arguments, if there is one. The
// flags are vmrun's before the guest, and the command's after it.
func (a *app) guestAndWords(args []string) (name string, words []string, err error) {
	words = args[1:]
	switch {
	case len(words) > 0 && words[0] == "--":
		words = words[1:]
	case len(words) > 0 && strings.HasPrefix(words[0], "-"):
		return "", nil, usageError{fmt.Errorf("%s: vmrun's flags come before the guest, %s: and a command that begins with - after --", words[0], args[0])}
	}
	name, err = a.guestName(args[0])
	return name, words, err
}

func execInput(r io.Reader) ([]byte, error) {
	input, err := io.ReadAll(io.LimitReader(r, launcher.MaxExecInput+1))
	if err == nil && len(input) > launcher.MaxExecInput {
		err = fmt.Errorf("standard input has more than %d KiB, which an agent is not given: vmrun ssh takes any amount", launcher.MaxExecInput>>10)
	}
	return input, err
}

func (a *app) exec(ctx context.Context, name string, run launcher.ExecArguments) error {
	var result launcher.ExecResult
	var raw json.RawMessage // which may be longer than what a client takes apart by itself
	err := a.command(ctx, name, launcher.CommandExec, run, &raw)
	if err == nil {
		err = json.Unmarshal(raw, &result)
	}
	var refused *qmp.Error
	switch {
	case errors.As(err, &refused) && refused.Class == launcher.ClassTimeout:
		return statusError{err, execTimeout}
	case errors.As(err, &refused) && refused.Class == launcher.ClassRefused && strings.Contains(refused.Desc, "No such file"):
		return statusError{err, execNotFound}
	case errors.As(err, &refused) && refused.Class == launcher.ClassRefused:
		return statusError{err, execRefused}
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: the command is not waited for any longer, and goes on in the guest", name)
	case err != nil:
		return err
	}
	err = errors.Join(show(os.Stdout, result.Out), show(os.Stderr, result.Err))
	if result.Truncated {
		warn("%s: the command wrote more than is shown here", name)
	}
	if status := execStatus(result); err == nil && status != 0 {
		return statusError{errQuiet, status}
	}
	return err
}

// execStatus is the exit status of a command in a guest; what is none on Linux, of
// another system, is not 0 here either.
func execStatus(r launcher.ExecResult) int {
	switch {
	case r.Signal > 0 && r.Signal < 128:
		return 128 + int(r.Signal)
	case r.Signal != 0 || r.Status < 0 || r.Status > 255:
		return 255
	}
	return int(r.Status)
}

// show writes what a command has written: as it is, and to a terminal so that it
// cannot steer that.
func show(f *os.File, text []byte) error {
	if !term.IsTerminal(int(f.Fd())) {
		_, err := f.Write(text)
		return err
	}
	return writeLog(f, bytes.NewReader(text))
}
