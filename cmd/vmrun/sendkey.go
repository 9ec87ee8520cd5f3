package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) sendkeyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "sendkey GUEST KEY...",
		Short: "Press keys on a guest's keyboard",
		Long: `Press keys on a guest's keyboard, one after the other, those of ctrl-alt-delete
at the same time. Keys have QEMU's names: a, 1, ret, esc, spc, tab, up, f1, shift,
ctrl, alt, meta_l, …`,
		Example:           "  vmrun sendkey web1 ctrl-alt-delete\n  vmrun sendkey web1 down down ret",
		GroupID:           "life",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := a.guestName(args[0])
			if err != nil {
				return err
			}
			return a.sendKeys(cmd.Context(), name, args[1:])
		},
	}
}

// sendKeys stops at the first key that QEMU does not know.
func (a *app) sendKeys(ctx context.Context, name string, chords []string) error {
	for _, chord := range chords {
		var keys []map[string]string
		for _, key := range strings.Split(chord, "-") {
			keys = append(keys, map[string]string{"type": "qcode", "data": key})
		}
		if err := a.command(ctx, name, "send-key", map[string]any{"keys": keys}, nil); err != nil {
			return err
		}
	}
	return nil
}
