package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

// nicTimeout bounds a change to a NIC: the guest takes part in it.
const nicTimeout = time.Minute

// nicActs are what can be done to the NICs of a guest.
var nicActs = []nicAct{
	{"attach", "attach KEY=VALUE...", launcher.CommandAttach},
	{"detach", "detach NIC", launcher.CommandDetach},
	{"set", "set NIC KEY=VALUE...", launcher.CommandSet},
}

type nicAct struct {
	name    string
	usage   string
	command string
}

func (a *app) nicCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "nic GUEST [attach|detach|set ...]",
		Short: "List the NICs of a running guest, add, remove and change them",
		Long: `List the NICs of a running guest, add, remove and change them.

  vmrun nic GUEST                           list them, with the state of their links
  vmrun nic GUEST attach KEY=VALUE...       plug one more into the guest
  vmrun nic GUEST detach NIC                unplug one
  vmrun nic GUEST set NIC KEY=VALUE...      change one while it is in use

The keys are those of [[nic]] in a spec, the values without quotes, and commas
between those of a list. What can be set is mode (bridge, vepa or private),
multicast, trust, pin, addresses, bandwidth.inbound, bandwidth.outbound and
host_access, and link=down and link=up, which pull the guest's cable and put it
back. A key without a value gets its default.

The changes last until the guest ends: its spec is not changed.`,
		Example: `  vmrun nic web1 attach parent=eth1 mode=private vlan=100
  vmrun nic web1 set net0 bandwidth.inbound=100mbit trust=mac
  vmrun nic web1 set net0 link=down
  vmrun nic web1 detach net1`,
		GroupID:           "life",
		Args:              nicArgs,
		ValidArgsFunction: a.completeNIC,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 && a.json {
				a.usage = true
				return errors.New("--json is for the list")
			}
			if force && (len(args) < 2 || args[1] != "attach") {
				a.usage = true
				return errors.New("--force is for attach")
			}
			name, err := a.guestName(args[0])
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return a.listNICs(cmd.Context(), name)
			}
			return a.changeNIC(cmd.Context(), name, args[1], args[2:], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "attach even where it would cut the host off its network")
	return a.jsonFlag(cmd)
}

// nicArgs checks the shape of the words after nic.
func nicArgs(_ *cobra.Command, args []string) error {
	if len(args) < 2 {
		return cobra.ExactArgs(1)(nil, args)
	}
	i := slices.IndexFunc(nicActs, func(act nicAct) bool { return act.name == args[1] })
	if i < 0 {
		return fmt.Errorf("%s is nothing to do with a NIC: use attach, detach or set", safe(args[1]))
	}
	rest := args[2:]
	fits := map[string]bool{"attach": len(rest) >= 1, "detach": len(rest) == 1, "set": len(rest) >= 2}
	if !fits[args[1]] {
		return fmt.Errorf("want: vmrun nic %s %s", safe(args[0]), nicActs[i].usage)
	}
	return nil
}

func (a *app) listNICs(ctx context.Context, name string) error {
	s, err := launcher.Observe(ctx, a.runDir, name)
	if err != nil {
		return err
	}
	if a.json {
		return printJSON(s.NICs)
	}
	return printNICs(os.Stdout, s)
}

func printNICs(w io.Writer, s launcher.Status) error {
	t := table(w)
	fmt.Fprintln(t, "NIC\tPARENT\tMODE\tMAC\tMTU\tLINK\tADDRESSES")
	for _, n := range s.NICs {
		one := launcher.Status{NICs: []launcher.NICStatus{n}}
		cells(t, n.Name, n.Lower(), manner(n), n.MAC, mtuWord(n.MTU), linkWord(n.Link), addressWords(one))
	}
	return t.Flush()
}

func mtuWord(mtu int) string {
	if mtu == 0 {
		return "-"
	}
	return fmt.Sprint(mtu)
}

// linkWord is a link's state; nobody knows it of a NIC that nobody looks after.
func linkWord(l launcher.LinkState) string {
	if l == "" {
		return "unknown"
	}
	return string(l)
}

// changeNIC does one of nicActs and says so.
func (a *app) changeNIC(ctx context.Context, name, act string, words []string, force bool) error {
	args := launcher.NICArguments{Words: words, Force: force}
	if act != "attach" {
		args.Name, args.Words = words[0], words[1:]
	}
	if err := a.checkWords(ctx, name, act, args.Words); err != nil {
		return usageError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, nicTimeout)
	defer cancel()
	command := nicActs[slices.IndexFunc(nicActs, func(n nicAct) bool { return n.name == act })].command
	var n launcher.NICStatus
	result := any(&n)
	if act == "detach" {
		result = nil
	}
	if err := a.command(ctx, name, command, args, result); err != nil {
		return err
	}
	switch act {
	case "attach":
		say("%s: %s attached to %s, %s, MAC %s", name, n.Name, n.Lower(), manner(n), n.MAC)
	case "detach":
		say("%s: %s detached", name, args.Name)
	case "set":
		say("%s: %s: %s", name, n.Name, strings.Join(args.Words, " "))
	}
	if n.Refused != "" {
		warn("%s: %s: %s", name, n.Name, n.Refused)
	}
	if n.Note != "" {
		warn("%s: %s: %s", name, n.Name, n.Note)
	}
	return nil
}

// checkWords finds what is wrong with the words alone, before anything is done.
func (a *app) checkWords(ctx context.Context, name, act string, words []string) error {
	switch act {
	case "attach":
		cpus := 1
		if s, err := launcher.Observe(ctx, a.runDir, name); err == nil {
			cpus = max(1, s.CPUs)
		}
		_, err := configs.NICFromWords(cpus, words)
		return err
	case "set":
		return checkSet(words)
	}
	return nil
}

// settable are the keys that can be changed of a NIC in use.
var settable = []string{"mode", "multicast", "trust", "pin", "addresses", "bandwidth.inbound", "bandwidth.outbound", "host_access", "link"}

// checkSet checks words one by one. How they go with each other, and with what
// the NIC is, the supervisor knows.
func checkSet(words []string) error {
	var errs configs.Errors
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		switch {
		case ok && key == "link":
			if value != "up" && value != "down" {
				errs = append(errs, &configs.Error{Key: key, Msg: "use link=up or link=down"})
			}
			continue
		case ok && !slices.Contains(settable, key) && isNICKey(key):
			errs = append(errs, &configs.Error{Key: key, Msg: "cannot be changed while the NIC is in use: detach it, and attach it with " + safe(word)})
			continue
		}
		var wrong configs.Errors
		_, err := configs.NICFromWords(1, []string{"parent=eth0", word})
		if errors.As(err, &wrong) {
			for _, e := range wrong {
				if e.Key == key || e.Key == "" || strings.HasPrefix(e.Key, key+"[") {
					errs = append(errs, e)
				}
			}
		}
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

// nicKeys are the keys of a [[nic]], and link, which is of a NIC in use only.
func nicKeys() []configs.Key {
	var keys []configs.Key
	for _, k := range configs.Reference() {
		if k.Table == "nic" {
			keys = append(keys, k)
		}
	}
	return append(keys, configs.Key{Path: "link", Type: configs.TypeWord, Words: []string{"up", "down"}, Text: "Whether the guest's cable is plugged in."})
}

func isNICKey(key string) bool {
	return slices.ContainsFunc(nicKeys(), func(k configs.Key) bool { return k.Name() == key })
}

// completeNIC completes guests, then what to do, then NICs and keys.
func (a *app) completeNIC(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	switch {
	case len(args) == 0:
		return a.completeGuests(cmd, args, typed)
	case len(args) == 1:
		var words []string
		for _, act := range nicActs {
			words = append(words, cobra.CompletionWithDesc(act.name, act.usage))
		}
		return words, none
	case args[1] == "attach":
		return completeWord(typed, args[2:], func(key string) bool { return key != "link" })
	case len(args) == 2:
		return a.completeNICNames(cmd.Context(), args[0]), none
	case args[1] == "set":
		return completeWord(typed, args[3:], func(key string) bool { return slices.Contains(settable, key) })
	}
	return nil, none
}

func (a *app) completeNICNames(ctx context.Context, arg string) []string {
	name, err := a.guestName(arg)
	if err != nil {
		return nil
	}
	s, _ := launcher.Observe(ctx, a.runDir, name) // what cannot be seen cannot be completed
	var names []string
	for _, n := range s.NICs {
		names = append(names, cobra.CompletionWithDesc(safe(n.Name), safe(strings.Join([]string{n.Lower(), manner(n), n.MAC}, " "))))
	}
	return names
}

// completeWord completes a key that is not given yet, or its value.
func completeWord(typed string, given []string, may func(key string) bool) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	var words []string
	key, _, ok := strings.Cut(typed, "=")
	for _, k := range nicKeys() {
		name := k.Name()
		switch {
		case !may(name) || slices.ContainsFunc(given, func(w string) bool { return strings.HasPrefix(w, name+"=") }):
		case !ok:
			words = append(words, cobra.CompletionWithDesc(name+"=", k.Brief()))
		case name == key:
			for _, v := range values(k) {
				words = append(words, key+"="+v)
			}
		}
	}
	if !ok {
		return words, none | cobra.ShellCompDirectiveNoSpace
	}
	return words, none
}

// values are those of a key that can be listed: words, and the host's NICs for a
// parent.
func values(k configs.Key) []string {
	list := k.Words
	if k.Type == configs.TypeBool {
		list = append([]string{"true", "false"}, list...)
	}
	if k.Name() != "parent" {
		return list
	}
	links, _ := net.Interfaces() // what cannot be seen cannot be completed
	for _, l := range links {
		if l.Flags&net.FlagLoopback == 0 {
			list = append(list, l.Name)
		}
	}
	return list
}
