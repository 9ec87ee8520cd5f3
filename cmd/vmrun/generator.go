package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"vmrun/configs"
)

// generatorName is the name under which the binary is a generator of systemd's
// (systemd.generator(7)): it turns the specs in /etc/vmrun into units, early in a
// boot and at every daemon-reload. There is nothing then but the root file
// system, and whatever is wrong, the boot goes on.
const generatorName = "vmrun-generator"

// generate writes units below the first of the directories that systemd names.
func generate(self string, args []string) int {
	if len(args) == 0 {
		note("systemd starts this, with the directories to write to")
		return exitUsage
	}
	// Units are installed beside generators: ../system (see the Makefile).
	units := unitsFor(specsIn(specDir, note), filepath.Join(filepath.Dir(self), "../system"))
	var errs []error
	for name, text := range units.files {
		errs = append(errs, put(filepath.Join(args[0], name), func(path string) error {
			return os.WriteFile(path, []byte(text), 0o644)
		}))
	}
	for name, target := range units.links {
		errs = append(errs, put(filepath.Join(args[0], name), func(path string) error {
			return os.Symlink(target, path)
		}))
	}
	if err := errors.Join(errs...); err != nil {
		note("%v", err)
	}
	return exitDone
}

func put(path string, write func(path string) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return write(path)
}

// specsIn are the guests of all specs in a directory. One that is wrong is noted
// and left out, and so is a second guest of a name.
func specsIn(dir string, note func(format string, args ...any)) []*configs.Guest {
	paths, _ := filepath.Glob(filepath.Join(dir, "*.toml")) // sorted
	var guests []*configs.Guest
	for _, path := range paths {
		found, err := guestsOf(path)
		if err != nil {
			first, rest, _ := strings.Cut(err.Error(), "\n")
			if rest != "" {
				first += fmt.Sprintf(" (and more: vmrun check %s)", path)
			}
			note("%s", first)
			continue
		}
		for _, g := range found {
			if i := slices.IndexFunc(guests, func(other *configs.Guest) bool { return other.Name == g.Name }); i >= 0 {
				note("%s: the guest %s is in %s already", path, g.Name, guests[i].Path)
				continue
			}
			guests = append(guests, g)
		}
	}
	return guests
}

func guestsOf(path string) ([]*configs.Guest, error) {
	if strings.ContainsFunc(path, unicode.IsControl) {
		return nil, fmt.Errorf("%q: a unit cannot name a file like that", path)
	}
	f, err := configs.LoadFleet(path)
	if err != nil {
		return nil, err
	}
	return f.Guests, nil
}

// note writes a line to the kernel's log, the only one at that time (<4> is a
// warning, syslog(3)), and to whoever tries the generator by hand.
func note(format string, args ...any) {
	line := safe(fmt.Sprintf(format, args...))
	if kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		fmt.Fprintf(kmsg, "<4>%s[%d]: %s\n", generatorName, os.Getpid(), line)
		kmsg.Close()
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", generatorName, line)
}
