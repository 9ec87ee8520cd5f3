package main

import (
	"cmp"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

func (a *app) checkCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "check SPEC...",
		Short:   "Check files of guests without looking at the host",
		GroupID: "help",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return each(args, func(path string) error {
				f, err := readFleet(path)
				if err != nil {
					return err
				}
				return printFleet(path, f)
			})
		},
	}
}

// printFleet says that a file is good, and of a fleet's what guests it describes.
func printFleet(path string, f *configs.Fleet) error {
	if len(f.Guests) == 1 {
		say("%s: good", path)
		return nil
	}
	say("%s: good: %s", path, plural(len(f.Guests), "guest"))
	t := table(os.Stdout)
	fmt.Fprintln(t, "NAME\tCPUS\tMEMORY\tNICS\tAFTER")
	for _, g := range f.Guests {
		cells(t, g.Name, g.CPUs, g.Memory, lowerWords(g.NICs), cmp.Or(strings.Join(g.After, " "), "-"))
	}
	return t.Flush()
}

// lowerWords are the links that a guest's NICs sit on, how, and with what addresses.
func lowerWords(nics []configs.NIC) string {
	var words []string
	for _, n := range nics {
		word := n.Lower() + " " + manner(launcher.NICStatus{Kind: n.Kind, Mode: n.Mode})
		for _, addr := range n.Addresses {
			word += " " + addr.String()
		}
		words = append(words, word)
	}
	return cmp.Or(strings.Join(words, ", "), "-")
}
