package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Every verb can be found and understood from the help.
func TestVerbs(t *testing.T) {
	root := (&app{}).root()
	groups := map[string]bool{}
	for _, g := range root.Groups() {
		groups[g.ID] = true
	}
	for _, cmd := range root.Commands() {
		t.Run(cmd.Name(), func(t *testing.T) {
			if own := cmd.Name(); own != "help" && own != "completion" && (verbs[own] == nil || verbs[own](&app{}).Name() != own) {
				t.Error("is not known by its name")
			}
			if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || len(cmd.Short) > 90 {
				t.Errorf("short help %q: one line without a full stop", cmd.Short)
			}
			if !groups[cmd.GroupID] {
				t.Errorf("group %q is none", cmd.GroupID)
			}
			if cmd.Args == nil {
				t.Error("takes any arguments")
			}
			if takesGuests(cmd) && cmd.ValidArgsFunction == nil {
				t.Error("does not complete guests")
			}
			cmd.Flags().VisitAll(func(f *pflag.Flag) {
				if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
					t.Errorf("--%s: usage %q", f.Name, f.Usage)
				}
			})
			help := helpOf(t, cmd.Name())
			if !strings.Contains(help, "Usage:\n  vmrun "+cmd.Name()) {
				t.Errorf("help without usage:\n%s", help)
			}
		})
	}
}

func takesGuests(cmd *cobra.Command) bool { return strings.Contains(cmd.Use, "GUEST") }

func helpOf(t *testing.T, verb string) string {
	t.Helper()
	var out strings.Builder
	root := (&app{}).root()
	root.SetOut(&out)
	root.SetArgs([]string{verb, "--help"})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// A verb that reports can report to a program.
func TestReportsHaveJSON(t *testing.T) {
	root := (&app{}).root()
	for _, verb := range []string{"ps", "status", "ip", "nic", "stats", "tree", "plan", "doctor", "events"} {
		cmd, _, err := root.Find([]string{verb})
		if err != nil || cmd.Flags().Lookup("json") == nil {
			t.Errorf("%s has no --json, %v", verb, err)
		}
	}
}
