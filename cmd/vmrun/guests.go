package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

// What arguments mean: guests, by their names, by the paths of their specs, or all
// those of a fleet's file.

// specDir is where specs are looked for by a guest's bare name.
const specDir = "/etc/vmrun"

// isSpec reports whether an argument is a spec's path and not a guest's name.
func isSpec(arg string) bool {
	return strings.Contains(arg, "/") || strings.HasSuffix(arg, ".toml")
}

// guestNames are the guests that arguments mean, in this order and each once: the
// name itself, or all guests of a file. With an error the others are there all the
// same.
func (a *app) guestNames(args []string) ([]string, error) {
	var names []string
	err := each(args, func(arg string) error {
		list, err := a.namesOf(arg)
		for _, name := range list {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		return err
	})
	return names, err
}

func (a *app) namesOf(arg string) ([]string, error) {
	if !isSpec(arg) {
		return []string{arg}, checkName(arg)
	}
	f, err := readFleet(arg)
	if err != nil {
		// A guest outlives its spec: it can be looked at and stopped all the same.
		if started := launcher.StartedFrom(a.runDir, arg); started != nil {
			return started, nil
		}
		return nil, err
	}
	return names(f.Guests), nil
}

// guestName is the one guest that an argument means.
func (a *app) guestName(arg string) (string, error) {
	names, err := a.namesOf(arg)
	if err == nil && len(names) != 1 {
		err = ofOne(arg, names)
	}
	if err != nil {
		return "", err
	}
	return names[0], nil
}

// ofOne refuses a file of several guests where one is wanted.
func ofOne(path string, names []string) error {
	if len(names) > 5 {
		names = append(slices.Clone(names[:4]), fmt.Sprintf("or one of %d others", len(names)-4))
	}
	return usageError{fmt.Errorf("%s is a fleet's, and this is for one guest: name it: %s", path, strings.Join(names, ", "))}
}

// observe looks at the guest that an argument means.
func (a *app) observe(ctx context.Context, arg string) (launcher.Status, error) {
	name, err := a.guestName(arg)
	if err != nil {
		return launcher.Status{}, err
	}
	return launcher.Observe(ctx, a.runDir, name)
}

func checkName(name string) error {
	if err := configs.CheckName(name); err != nil {
		return usageError{err}
	}
	return nil
}

// loadSpecs reads the specs that arguments mean: all guests of a file, or for a
// name that of a guest that runs or has run, or the one in /etc/vmrun. With an
// error the others are there all the same.
func (a *app) loadSpecs(args []string) ([]*configs.Guest, error) {
	var list []*configs.Guest
	err := each(args, func(arg string) error {
		if !isSpec(arg) {
			g, err := a.findSpec(arg)
			if err == nil {
				list = append(list, g)
			}
			return err
		}
		f, err := readFleet(arg)
		if err == nil {
			list = append(list, f.Guests...)
		}
		return err
	})
	return list, err
}

// loadSpec reads the spec of the one guest that an argument means.
func (a *app) loadSpec(arg string) (*configs.Guest, error) {
	list, err := a.loadSpecs([]string{arg})
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, ofOne(arg, names(list))
	}
	return list[0], nil
}

// names are those of guests.
func names(guests []*configs.Guest) []string {
	var list []string
	for _, g := range guests {
		list = append(list, g.Name)
	}
	return list
}

// findSpec finds the spec of a guest by its name: that of one that runs or has
// run, its own in /etc/vmrun, or a fleet's there that has it.
func (a *app) findSpec(name string) (*configs.Guest, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	path := filepath.Join(specDir, name+".toml")
	if spec, err := launcher.Spec(a.runDir, name); err == nil {
		path = spec
	}
	if _, err := os.Stat(path); err == nil {
		return readGuest(path, name)
	}
	if g := findInFleets(specDir, name); g != nil {
		return g, nil
	}
	hint := ""
	if _, err := os.Stat(name + ".toml"); err == nil {
		hint = fmt.Sprintf(": did you mean ./%s.toml?", name)
	}
	return nil, fmt.Errorf("%s: %w: no guest runs under that name, and there is no %s%s", name, launcher.ErrNotFound, path, hint)
}

// findInFleets looks for a guest in all files of a directory, and passes over those
// that are wrong.
func findInFleets(dir, name string) *configs.Guest {
	paths, _ := filepath.Glob(filepath.Join(dir, "*.toml"))
	for _, path := range paths {
		if f, err := configs.LoadFleet(path); err == nil && f.Guest(name) != nil {
			return f.Guest(name)
		}
	}
	return nil
}

// readGuest reads one guest of a file.
func readGuest(path, name string) (*configs.Guest, error) {
	f, err := readFleet(path)
	if err != nil {
		return nil, err
	}
	g := f.Guest(name)
	switch {
	case g == nil && len(f.Guests) == 1:
		g = f.Guests[0]
		return nil, g.Errorf("name", "the guest of this spec is %q by now, not %q: name the spec itself, %s", g.Name, name, path)
	case g == nil:
		return nil, &configs.Error{File: path, Msg: fmt.Sprintf("it has no guest %q: vmrun check %s lists those that it has", name, path)}
	}
	return g, nil
}

// readFleet loads a file of guests; one that cannot be read is wrong usage too.
func readFleet(path string) (*configs.Fleet, error) {
	f, err := configs.LoadFleet(path)
	var file *os.PathError
	if errors.As(err, &file) {
		return nil, &configs.Error{File: path, Msg: file.Err.Error()}
	}
	return f, err
}

// completeGuests completes the first argument with the names of guests, their
// states beside them, and with the specs that are there.
func (a *app) completeGuests(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 && !strings.Contains(cmd.Use, "GUEST...") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var words []string
	list, _ := launcher.List(cmd.Context(), a.runDir) // what cannot be seen cannot be completed
	for _, s := range list {
		if !slices.Contains(args, s.Name) {
			words = append(words, cobra.CompletionWithDesc(safe(s.Name), safe(string(s.State))))
		}
	}
	specs, _ := filepath.Glob(typed + "*.toml")
	return append(words, specs...), cobra.ShellCompDirectiveDefault
}
