package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// compareHardware prints in what vmrun's QEMU and child differ from the last's. The
// error says that the hardware does, and so nothing can be compared.
func (l *lab) compareHardware() error {
	var lines, links [2][]string
	contenders := [2]*contender{l.contenders[0], l.contenders[len(l.contenders)-1]}
	for i, c := range contenders {
		var err error
		if lines[i], links[i], err = c.shown(c.guests[0]); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for i, c := range contenders {
		fmt.Printf("\nonly %s:\n", c.name)
		for _, option := range without(lines[i], lines[1-i]) {
			fmt.Println("  qemu", option)
		}
		fmt.Println("  ip -d link:", strings.Join(without(links[i], links[1-i]), " "))
	}
	if a, b := hardware(lines[0]), hardware(lines[1]); !slices.Equal(a, b) {
		return fmt.Errorf("the hardware is not equal: %q and %q", without(a, b), without(b, a))
	}
	return nil
}

// shown are QEMU's options and what ip says of the child.
func (c *contender) shown(g guest) (qemu, link []string, err error) {
	pid, err := c.pid(g)
	if err != nil {
		return nil, nil, err
	}
	argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil, nil, err
	}
	text, err := c.child(g)
	return options(argv), strings.Fields(text), err
}

// without is what a list has and another has not, in its order.
func without(list, other []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(other, s) })
}

// options are a process's arguments as the kernel shows them (proc_pid_cmdline(5)),
// each option with its value, without the program's name.
func options(argv []byte) (list []string) {
	for _, word := range bytes.Split(bytes.TrimSuffix(argv, []byte{0}), []byte{0})[1:] {
		if len(list) > 0 && !bytes.HasPrefix(word, []byte("-")) {
			list[len(list)-1] += " " + string(word)
			continue
		}
		list = append(list, string(word))
	}
	return list
}

// notHardware are QEMU's options that say how it is governed, and of which a guest
// knows nothing but its name and UUID.
var notHardware = []string{
	"-name", "-uuid", "-S", "-sandbox", "-chardev", "-mon", "-qmp", "-serial", "-pidfile", "-daemonize",
}

// particular is what differs between any two guests: paths, addresses, descriptors.
var particular = regexp.MustCompile(`^(-kernel|-initrd|-append) .*|,(fd|mac)=[^,]*`)

// hardware is what is left of QEMU's options that a guest could tell by.
func hardware(options []string) (list []string) {
	for _, o := range options {
		if flag, _, _ := strings.Cut(o, " "); !slices.Contains(notHardware, flag) {
			list = append(list, particular.ReplaceAllString(o, "$1"))
		}
	}
	return list
}
