package main

import (
	"encoding/json"
	"errors"

	"github.com/spf13/cobra"
)

func (a *app) qmpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "qmp GUEST COMMAND [ARGUMENTS]",
		Short: "Run one QMP command and print its result",
		Long: `Run one QMP command and print its result.

ARGUMENTS is a JSON object. Commands that would change what vmrun knows of the
guest are refused, with the verb that does it. Any QMP tool can speak to
control.sock in the guest's run directory as well.`,
		Example:           `  vmrun qmp web1 query-block` + "\n" + `  vmrun qmp web1 qom-list '{"path": "/machine"}'`,
		GroupID:           "look",
		Args:              cobra.RangeArgs(2, 3),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			var arguments any
			if len(args) == 3 {
				var object map[string]json.RawMessage
				if err := json.Unmarshal([]byte(args[2]), &object); err != nil {
					a.usage = true
					return errors.New("the arguments are not a JSON object: " + err.Error())
				}
				arguments = object
			}
			name, err := a.guestName(args[0])
			if err != nil {
				return err
			}
			var result json.RawMessage
			if err := a.command(cmd.Context(), name, args[1], arguments, &result); err != nil {
				return err
			}
			return printJSON(result)
		},
	}
}
