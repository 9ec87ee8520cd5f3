package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vmrun/launcher"
	"vmrun/qmp"
)

func (a *app) reloadCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "reload GUEST...",
		Short: "Read specs again, and change of running guests what can be changed",
		Long: `Read specs again, and change of running guests what can be changed.

What can be changed is that of a NIC which vmrun nic set can change, NICs at the
end of the list that were added or removed, and all keys of stop, restart, ready
and console. For the rest a restart is needed, which is said and not done. With
a spec that is wrong nothing is changed, and the exit status is 2.`,
		GroupID:           "life",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.forEach(cmd.Context(), args, a.reload) },
	}
}

func (a *app) reload(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, nicTimeout)
	defer cancel()
	client, err := launcher.Control(ctx, a.runDir, name)
	if err != nil {
		return err
	}
	defer client.Close()
	var result launcher.Reload
	err = client.Execute(ctx, launcher.CommandReload, nil, &result)
	var refused *qmp.Error
	switch {
	case errors.As(err, &refused) && refused.Class == launcher.ClassSpec:
		return &launcher.StartError{Kind: launcher.KindSpec, Msg: refused.Desc}
	case refused != nil:
		return explain(name, refused)
	case err != nil:
		return explain(name, err)
	}
	for _, d := range result.Changed {
		say("%s: %s: %s", name, d.Key, fromTo(d.Before, d.After))
	}
	for _, d := range result.Later {
		why := "not before"
		if d.Why != "" {
			why = d.Why + ": or else"
		}
		say("%s: %s: %s: %s vmrun restart %[1]s", name, d.Key, fromTo(d.Before, d.After), why)
	}
	var errs []error
	for _, d := range result.Failed {
		errs = append(errs, fmt.Errorf("%s: %s: %s: %s", name, d.Key, fromTo(d.Before, d.After), d.Why))
	}
	if len(result.Changed)+len(result.Later)+len(result.Failed) == 0 {
		say("%s: nothing has changed", name)
	}
	return errors.Join(errs...)
}

// fromTo says in words how a key has changed.
func fromTo(before, after string) string {
	if before == "" {
		before = "unset"
	}
	if after == "" {
		after = "unset"
	}
	return before + " -> " + after
}
