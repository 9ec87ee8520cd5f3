package main

import (
	"context"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) suspendCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "suspend GUEST...",
		Short: "Write guests' memory to disk and end them, for resume to go on from there",
		Long: `Write guests' memory to disk and end them, for resume to go on from there.

The memory is kept in /var/lib/vmrun/NAME/memory, over a boot of the host too. It
takes as much space as the guest has used of its memory. Until it is whole the
guest is only halted: when something fails, or with Ctrl-C, it goes on.

vmrun resume lets it go on with the same NICs, MACs and disks, and open
connections with it; so does vmrun start, and the guest's unit when the host boots.
vmrun start --fresh throws the memory away. Until then nothing may write to the
guest's disks: a memory that does not fit them any more is refused.`,
		GroupID:           "life",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, name string) error {
				return a.end(ctx, name, launcher.Suspend)
			})
		},
	}
}
