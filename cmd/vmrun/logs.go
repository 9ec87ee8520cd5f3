package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) logsCmd() *cobra.Command {
	var console, qemu bool
	cmd := &cobra.Command{
		Use:   "logs GUEST",
		Short: "Show a guest's logs: its supervisor's, QEMU's, or its console's",
		Long: `Show a guest's logs: its supervisor's, QEMU's, or its console's.

A supervisor that runs in the foreground logs to its own standard error
instead. The logs are kept after the guest's end, until vmrun cleanup.`,
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
			f, err := os.Open(path)
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s: %w, or it has no such log", name, launcher.ErrNotFound)
			}
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(os.Stdout, f)
			return err
		},
	}
	cmd.Flags().BoolVar(&console, "console", false, "show what the guest wrote to its serial console")
	cmd.Flags().BoolVar(&qemu, "qemu", false, "show QEMU's standard error")
	cmd.MarkFlagsMutuallyExclusive("console", "qemu")
	return cmd
}
