package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"vmrun/configs"
)

// helpCmd stands in for cobra's own, which knows of no keys.
func helpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB|KEY]",
		Short: "Explain a verb, or a key of a spec: vmrun help nic.mode",
		Long: `Explain a verb, or a key of a spec.

A key is named with the table that it is in. A table is named as in a spec too,
which tells it from a verb of its name: vmrun help '[stop]'. All keys are in
vmrun.toml(5).`,
		Example: `  vmrun help wait
  vmrun help nic.mode
  vmrun help '[[nic]]'`,
		GroupID: "help",
		Args: func(cmd *cobra.Command, args []string) error {
			if verbOf(cmd, args) == nil && keyOf(args) == nil {
				return fmt.Errorf("there is no verb or key %s", safe(strings.Join(args, " ")))
			}
			return nil
		},
		ValidArgsFunction: completeHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			if verb := verbOf(cmd, args); verb != nil {
				verb.InitDefaultHelpFlag()
				return verb.Help()
			}
			return explainKey(cmd.OutOrStdout(), *keyOf(args))
		},
	}
}

// verbOf is the verb that all args together name, the root if there are none.
func verbOf(cmd *cobra.Command, args []string) *cobra.Command {
	verb, rest, err := cmd.Root().Find(args)
	if err != nil || len(rest) > 0 {
		return nil
	}
	return verb
}

// allKeys are those of a spec and those of a file of many guests.
func allKeys() []configs.Key {
	return append(configs.Reference(), configs.FleetReference()[1:]...)
}

// keyOf is the key or table that the only one of args names.
func keyOf(args []string) *configs.Key {
	if len(args) != 1 || args[0] == "" {
		return nil
	}
	for _, k := range allKeys() {
		if k.Path == args[0] || k.IsTable() && k.Header() == args[0] {
			return &k
		}
	}
	return nil
}

func explainKey(w io.Writer, k configs.Key) error {
	if !k.IsTable() {
		must := ""
		if k.Must {
			must = ", required"
		}
		fmt.Fprintf(w, "%s: %s%s\n\n%s\n\n", k.Path, k.Values(), must, k.Text)
		if table := keyOf([]string{k.Table}); table != nil {
			fmt.Fprintf(w, "  %s\n", table.Header())
		}
		_, err := fmt.Fprintf(w, "  %s = %s\n", k.Name(), k.Example)
		return err
	}
	fmt.Fprintf(w, "%s\n\n%s\n\n", k.Header(), k.Text)
	t := table(w)
	for _, in := range allKeys() {
		if in.Table == k.Path && !in.IsTable() {
			fmt.Fprintf(t, "  %s\t%s\n", in.Name(), in.Brief())
		}
	}
	return t.Flush()
}

// completeHelp completes verbs, and keys from the name of their table on.
func completeHelp(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	var words []string
	if len(args) == 0 {
		for _, verb := range cmd.Root().Commands() {
			if !verb.Hidden {
				words = append(words, cobra.CompletionWithDesc(verb.Name(), verb.Short))
			}
		}
	}
	for _, k := range allKeys() {
		if len(args) == 0 && strings.Contains(typed, ".") && !k.IsTable() {
			words = append(words, cobra.CompletionWithDesc(k.Path, k.Brief()))
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}
