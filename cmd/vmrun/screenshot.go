package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vmrun/launcher"
)

func (a *app) screenshotCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "screenshot GUEST FILE",
		Short: "Write a picture of a guest's screen, as PNG",
		Long: `Write a picture of a guest's screen, as PNG. With - for FILE it goes to standard
output. The guest needs a screen: display = "vnc" in its spec.`,
		Example:           "  vmrun screenshot web1 web1.png",
		GroupID:           "look",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := a.guestName(args[0])
			if err != nil {
				return err
			}
			if args[1] == "-" && term.IsTerminal(int(os.Stdout.Fd())) {
				return usageError{errors.New("a picture is nothing for a terminal: give a file")}
			}
			var shot launcher.Screenshot
			if err := a.command(cmd.Context(), name, launcher.CommandScreenshot, nil, &shot); err != nil {
				return err
			}
			if args[1] == "-" {
				_, err := os.Stdout.Write(shot.PNG)
				return err
			}
			return os.WriteFile(args[1], shot.PNG, 0o644)
		},
	}
}
