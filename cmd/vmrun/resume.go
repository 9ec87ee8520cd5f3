package main

import "github.com/spf13/cobra"

func (a *app) resumeCmd() *cobra.Command {
	return a.simpleVerb("resume", "Let halted guests' CPUs run", "cont", "running")
}
