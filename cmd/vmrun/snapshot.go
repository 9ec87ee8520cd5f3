package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

func (a *app) snapshotCmd() *cobra.Command {
	var list, drop, disks bool
	cmd := &cobra.Command{
		Use:   "snapshot GUEST [TAG]",
		Short: "Take a snapshot of a guest that runs, memory and disks together",
		Long: `Take a snapshot of a guest that runs, memory and disks together.

It is kept inside the guest's images, all of which have to be qcow2, under the name
TAG; without one the time is the name. The guest stands still while QEMU writes its
memory there. vmrun rollback makes the guest again what it was.

With --disks-only the guest goes on: where an agent runs in it, it writes its file
systems out and freezes them for the moment that this takes. Such a snapshot can be
rolled back to while the guest does not run, with vmrun disk rollback.`,
		Example: `  vmrun snapshot web1 before-upgrade
  vmrun rollback web1 before-upgrade
  vmrun snapshot --list web1
  vmrun snapshot --delete web1 before-upgrade`,
		GroupID:           "life",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			if list && len(args) > 1 || drop && len(args) < 2 {
				return usageError{fmt.Errorf("--list takes a guest, and --delete a guest and a tag")}
			}
			if list {
				return a.listSnapshots(cmd.Context(), args[0])
			}
			tag := time.Now().Format("at-20060102-150405")
			if len(args) > 1 {
				tag = args[1]
			}
			command, done := launcher.CommandLiveSnapshot, "snapshot %s taken, halted for %v"
			if disks {
				done = "snapshot %s taken, of the disks alone, in %v"
			}
			if drop {
				command, done = launcher.CommandLiveForget, "snapshot %s deleted in %v"
			}
			return a.live(cmd.Context(), args[0], command, launcher.LiveArguments{Tag: tag, Disks: disks}, done)
		},
	}
	cmd.Flags().BoolVar(&list, "list", false, "list the snapshots instead, of a guest at rest too")
	cmd.Flags().BoolVar(&drop, "delete", false, "delete TAG instead")
	cmd.Flags().BoolVar(&disks, "disks-only", false, "leave the memory out, and the guest running")
	cmd.MarkFlagsMutuallyExclusive("list", "delete", "disks-only")
	return a.jsonFlag(cmd)
}

func (a *app) rollbackCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rollback GUEST TAG",
		Short: "Make a guest that runs what it was at a snapshot",
		Long: `Make a guest that runs what it was at a snapshot, its memory and its disks.

What the guest did since is lost. Its hardware has to be the same: detach NICs that
were attached since. A guest that does not run is to be started first.`,
		GroupID:           "life",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.live(cmd.Context(), args[0], launcher.CommandRollback, launcher.LiveArguments{Tag: args[1], Force: force}, "rolled back to snapshot %s in %v")
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "try one that vmrun did not take, whose hardware nobody knows")
	return cmd
}

// live carries out a command about a snapshot and says so.
func (a *app) live(ctx context.Context, arg, command string, args launcher.LiveArguments, done string) error {
	name, err := a.guestName(arg)
	if err != nil {
		return err
	}
	if err := launcher.CheckSnapshotName(args.Tag); err != nil {
		return usageError{err}
	}
	result, err := launcher.Live(ctx, a.runDir, name, command, args)
	if err != nil {
		return err
	}
	if why := result.Freeze.Why; why != "" {
		warn("%s: its file systems were not frozen: %s: after a rollback they are as after a power cut", name, safe(why))
	}
	say("%s: %s", name, fmt.Sprintf(done, args.Tag, result.Halted.Round(time.Millisecond)))
	return nil
}

func (a *app) listSnapshots(ctx context.Context, arg string) error {
	g, err := a.loadSpec(arg)
	if err != nil {
		return err
	}
	list, err := launcher.LiveSnapshots(a.runDir, g)
	if err != nil {
		return inGuest(g.Name, err)
	}
	if a.json {
		return printJSON(list)
	}
	t := table(os.Stdout)
	cells(t, "TAG", "TIME", "MEMORY", "DISKS")
	for _, s := range list {
		memory := "-"
		if s.Memory > 0 {
			memory = configs.Size(s.Memory >> 20 << 20).String()
		}
		disks := strings.Join(s.Disks, " ")
		if len(s.Lacks) > 0 {
			disks += ", not " + strings.Join(s.Lacks, " ")
		}
		cells(t, safe(s.Tag), s.At.Format(time.DateTime), memory, disks)
	}
	return t.Flush()
}
