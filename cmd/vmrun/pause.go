package main

import "github.com/spf13/cobra"

func (a *app) pauseCmd() *cobra.Command {
	return a.simpleVerb("pause", "Halt guests' CPUs", "stop", "paused")
}
