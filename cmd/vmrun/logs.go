package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vmrun/launcher"
)

func (a *app) logsCmd() *cobra.Command {
	var console, qemu bool
	cmd := &cobra.Command{
		Use:   "logs GUEST",
		Short: "Show a guest's logs: its supervisor's, QEMU's, or its console's",
		Long: `Show a guest's logs: its supervisor's, QEMU's, or its console's.

A supervisor that runs in the foreground logs to its own standard error
instead. Of each log the newest part is kept, and the one before it. The logs
are kept after the guest's end, until vmrun cleanup.

A terminal is shown no colours, and other control characters as \x1b. A file or
a pipe gets the log as it is: vmrun logs --console GUEST | less -R`,
		GroupID:           "look",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(_ *cobra.Command, args []string) error {
			name, err := a.guestName(args[0])
			if err != nil {
				return err
			}
			supervisorLog, qemuLog, consoleLog := launcher.Logs(a.runDir, name)
			path := supervisorLog
			if qemu {
				path = qemuLog
			}
			if console {
				path = consoleLog
			}
			log, err := launcher.OpenLog(path)
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s: %w, or it has no such log", name, launcher.ErrNotFound)
			}
			if err != nil {
				return err
			}
			defer log.Close()
			return printLog(log)
		},
	}
	cmd.Flags().BoolVar(&console, "console", false, "show what the guest wrote to its serial console")
	cmd.Flags().BoolVar(&qemu, "qemu", false, "show QEMU's standard error")
	cmd.MarkFlagsMutuallyExclusive("console", "qemu")
	return cmd
}

// printLog writes a log to standard output: as it is, but for a terminal, which
// a guest must not steer.
func printLog(log io.Reader) error {
	if term.IsTerminal(int(os.Stdout.Fd())) {
		return writeLog(os.Stdout, log)
	}
	_, err := io.Copy(os.Stdout, log)
	return err
}
