package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vmrun/launcher"
)

func (a *app) ipCmd() *cobra.Command {
	var all, quiet bool
	cmd := &cobra.Command{
		Use:   "ip GUEST",
		Short: "Show a guest's addresses",
		Long: `Show a guest's addresses: those that its frames and its QEMU guest agent have
told, and those of its spec. The best for reaching it come first, IPv4 before IPv6.

Link-local addresses are shown with --all, or when there are no others. On a
terminal the addresses are in a table; elsewhere, and with --quiet, there is one
on each line and nothing else. The exit status is 3 while none is known.`,
		Example: `  ssh root@$(vmrun ip web1 | head -n 1)
  vmrun wait --for=ip web1        # prints it as soon as there is one
  vmrun ip --json web1`,
		GroupID:           "look",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.observe(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := s.AtRest(); err != nil {
				return err
			}
			if s.State == launcher.StateRestarting {
				return fmt.Errorf("%s: %w: it is %s", s.Name, launcher.ErrState, stateWords(s))
			}
			list := useful(s.GuestAddresses(), all)
			switch {
			case a.json:
				err = printJSON(list)
			case quiet || !term.IsTerminal(int(os.Stdout.Fd())):
				for _, addr := range list {
					say("%s", addr.IP)
				}
			case len(list) > 0:
				err = printAddresses(os.Stdout, list)
			}
			if err == nil && len(list) == 0 {
				err = noAddress(s)
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "show link-local addresses too")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "write one address on each line, and nothing else")
	return a.jsonFlag(cmd)
}

// useful leaves link-local addresses out where there are better ones.
func useful(list []launcher.GuestAddress, all bool) []launcher.GuestAddress {
	for i, addr := range list { // global ones come first
		if addr.LinkLocal() && i > 0 && !all {
			return list[:i]
		}
		if addr.LinkLocal() {
			break
		}
	}
	return list
}

func noAddress(s launcher.Status) error {
	switch {
	case len(s.NICs) == 0:
		return fmt.Errorf("%s: %w: it has no NIC: vmrun nic %[1]s attach parent=eth0", s.Name, launcher.ErrState)
	case s.Supervisor == 0:
		return fmt.Errorf("%s: %w: no address of it is known, and without a supervisor none is learned: vmrun start %[1]s adopts it", s.Name, launcher.ErrState)
	}
	return fmt.Errorf("%s: %w: no address of it is known yet: vmrun wait --for=ip %[1]s", s.Name, launcher.ErrState)
}

func printAddresses(w io.Writer, list []launcher.GuestAddress) error {
	t := table(w)
	fmt.Fprintln(t, "NIC\tADDRESS\tSOURCE\tSEEN\tNOTE")
	for _, addr := range list {
		cells(t, addr.NIC, addr.IP, addr.Source, ago(addr.Seen), addressNote(addr))
	}
	return t.Flush()
}

// ago is age with the words around it.
func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return age(t) + " ago"
}

// addressNote is what there is to say about an address beside its source.
func addressNote(addr launcher.GuestAddress) string {
	var notes []string
	if addr.Conflict != "" {
		notes = append(notes, addr.Conflict+" claims it too!")
	}
	if addr.LinkLocal() {
		notes = append(notes, "link-local")
	}
	if !addr.Expires.IsZero() {
		notes = append(notes, "leased until "+addr.Expires.Local().Format("15:04:05"))
	}
	return strings.Join(notes, ", ")
}
