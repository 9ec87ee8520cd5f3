package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// compareHardware returns what is only in one contender's QEMU or link, of those
// that run their first guest. The error says that the hardware differs, and so
// nothing can be compared.
func (l *lab) compareHardware(all []*contender) (said string, err error) {
	lines, links := map[*contender][]string{}, map[*contender][]string{}
	for _, c := range all {
		if lines[c], links[c], err = c.shown(c.guest(1)); err != nil {
			return "", fmt.Errorf("%s: %w", c.name, err)
		}
	}
	last := all[len(all)-1]
	var text strings.Builder
	for _, c := range all {
		fmt.Fprintf(&text, "%s:\n", c.name)
		for _, option := range lines[c] {
			fmt.Fprintln(&text, "  qemu", option)
		}
		fmt.Fprintln(&text, "  ip -d link:", strings.Join(links[c], " "))
		if a, b := hardware(lines[c]), hardware(lines[last]); !slices.Equal(a, b) {
			return "", fmt.Errorf("the hardware is not equal: %s has %q, and %s has %q", c.name, without(a, b), last.name, without(b, a))
		}
	}
	return text.String(), nil
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
	text, err := output(nil, "sh", "-c", c.child(g))
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
// knows nothing but its name and UUID; and those for which it goes by what is the
// default (-boot without a boot menu, a clock in UTC, memory that is not locked,
// no sound).
var notHardware = []string{
	"-name", "-uuid", "-S", "-sandbox", "-chardev", "-mon", "-qmp", "-pidfile", "-daemonize", "-object", "-msg", "-no-shutdown",
	"-kernel", "-initrd", "-append", "-boot", "-rtc", "-overcommit", "-audiodev", "-netdev",
}

// What a device's place and its threads to the outside are called.
var place = map[string]bool{
	"id": true, "bus": true, "addr": true, "chassis": true, "slot": true, "port": true, "multifunction": true,
	"netdev": true, "chardev": true, "mac": true, "rng": true, "nr": true, "index": true,
}

var versioned = regexp.MustCompile(`^pc-(q35)-[0-9.]+$`)

// hardware is what is left of QEMU's options that a guest could tell by, in words
// that are the same whoever wrote them, sorted. Where on the bus a device sits is
// not in it.
func hardware(options []string) (list []string) {
	for _, o := range options {
		flag, value, _ := strings.Cut(o, " ")
		first, _, _ := strings.Cut(value, ",")
		switch {
		case slices.Contains(notHardware, flag):
			continue
		case flag == "-device":
			value = device(value)
		case flag == "-serial":
			flag, value = "-device", "isa-serial"
		case flag == "-machine":
			value = versioned.ReplaceAllString(first, "$1")
		case flag == "-accel", flag == "-smp", flag == "-cpu":
			value = first
		case flag == "-m":
			value = strings.TrimSuffix(first, "M")
		}
		list = append(list, strings.TrimSpace(flag+" "+value))
	}
	slices.Sort(list)
	return list
}

// device is a -device without its place, its properties sorted. libvirt writes it
// in JSON.
func device(value string) string {
	properties := map[string]any{}
	if err := json.Unmarshal([]byte(value), &properties); err != nil {
		driver, rest, _ := strings.Cut(value, ",")
		for _, p := range strings.Split(rest, ",") {
			key, v, _ := strings.Cut(p, "=")
			properties[key] = v
		}
		delete(properties, "")
		properties["driver"] = driver
	}
	words := []string{fmt.Sprint(properties["driver"])}
	delete(properties, "driver")
	for _, key := range slices.Sorted(maps.Keys(properties)) {
		if place[key] {
			continue
		}
		value := properties[key]
		if on, ok := value.(bool); ok {
			value = map[bool]string{true: "on", false: "off"}[on]
		}
		words = append(words, fmt.Sprintf("%s=%v", key, value))
	}
	return strings.Join(words, ",")
}
