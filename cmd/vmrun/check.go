package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func (a *app) checkCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "check SPEC...",
		Short:   "Check specs without looking at the host",
		GroupID: "help",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var errs []error
			for _, path := range args {
				if _, err := readSpec(path); err != nil {
					errs = append(errs, err)
					continue
				}
				say("%s: good", path)
			}
			return errors.Join(errs...)
		},
	}
}
