package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) nsenterCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "nsenter GUEST -- COMMAND [ARGUMENT...]",
		Short:             "Run a program in a guest's network namespace, where its NICs are net0, net1, …",
		Example:           "  vmrun nsenter web1 -- tcpdump -n -i net0",
		GroupID:           "look",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := a.guestName(args[0])
			if err != nil {
				return err
			}
			return a.nsenter(cmd.Context(), name, args[1:])
		},
	}
}

func (a *app) nsenter(ctx context.Context, name string, words []string) error {
	program := exec.Command(words[0], words[1:]...) // its own end is its own business
	program.Stdin, program.Stdout, program.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := launcher.StartInside(ctx, a.runDir, name, program); err != nil {
		return err
	}
	if err := program.Wait(); err != nil {
		return fmt.Errorf("%s: %w", words[0], err)
	}
	return nil
}
