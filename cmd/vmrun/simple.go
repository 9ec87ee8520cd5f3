package main

import (
	"context"

	"github.com/spf13/cobra"
)

// simpleVerb is a verb that is one QMP command for each guest; word is what is
// said when it worked.
func (a *app) simpleVerb(verb, short, command, word string) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " GUEST...",
		Short:             short,
		GroupID:           "life",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, name string) error {
				if err := a.command(ctx, name, command, nil, nil); err != nil {
					return err
				}
				say("%s: %s", name, word)
				return nil
			})
		},
	}
}
