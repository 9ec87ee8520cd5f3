package main

import "github.com/spf13/cobra"

func (a *app) resetCmd() *cobra.Command {
	return a.simpleVerb("reset", "Press the guests' reset button", "system_reset", "reset")
}
