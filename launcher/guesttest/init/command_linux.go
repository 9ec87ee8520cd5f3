package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmrun/netsetup/nettest/wire"
)

// answer is what a command has to say when it did not fail.
type answer struct {
	reply string
	lines []string
	then  func() // done after the answer was given, and the last thing done
}

type command struct {
	usage string
	least int // number of arguments
	run   func(g *guest, args []string) (answer, error)
}

var commands map[string]command

func init() {
	commands = map[string]command{
		"addr":         {"[del] DEV ADDRESS/BITS...", 2, (*guest).addr},
		"addrs":        {"DEV", 1, (*guest).addrs},
		"allmulti":     {"DEV on|off", 2, (*guest).allmulti},
		"carrier":      {"DEV", 1, (*guest).carrier},
		"cmdline":      {"", 0, (*guest).cmdline},
		"count":        {"DEV start|read|stop TAG", 3, (*guest).count},
		"crash":        {"", 0, (*guest).crash},
		"dhcp":         {"DEV [SECONDS]", 1, (*guest).dhcp},
		"dhcp-release": {"DEV", 1, (*guest).dhcpRelease},
		"disks":        {"", 0, (*guest).disks},
		"down":         {"DEV", 1, (*guest).down},
		"driver":       {"DEV", 1, (*guest).driver},
		"exec":         {"[NAME=VALUE]... PROGRAM [ARGUMENT]...", 1, (*guest).exec},
		"file":         {"read|write|link|mode|owner|node PATH [TEXT]", 2, (*guest).file},
		"flood":        {"DEV HEX COUNT", 3, (*guest).flood},
		"gratuitous":   {"DEV ADDRESS", 2, (*guest).gratuitous},
		"hang":         {"", 0, (*guest).hang},
		"heard":        {"udp ADDRESS PORT DEV", 4, (*guest).heard},
		"hello":        {"", 0, (*guest).hello},
		"files":        {"DEV TYPE", 2, (*guest).files},
		"help":         {"", 0, (*guest).help},
		"join":         {"GROUP DEV (an address or a MAC)", 2, (*guest).join},
		"leave":        {"GROUP DEV", 2, (*guest).leave},
		"links":        {"", 0, (*guest).links},
		"listen":       {"udp ADDRESS PORT DEV", 4, (*guest).listen},
		"mac":          {"DEV MAC", 2, (*guest).mac},
		"macstorm":     {"DEV SECONDS", 2, (*guest).macStorm},
		"mount":        {"TYPE SOURCE DIRECTORY", 3, (*guest).mount},
		"mtu":          {"DEV [MTU]", 1, (*guest).mtu},
		"neigh":        {"[flush] DEV", 1, (*guest).neigh},
		"nics":         {"", 0, (*guest).nics},
		"offload":      {"DEV", 1, (*guest).offload},
		"oem":          {"", 0, (*guest).oem},
		"pci":          {"DEV", 1, (*guest).pci},
		"ping":         {"ADDRESS COUNT [INTERVAL [WAIT]]", 2, (*guest).ping},
		"poweroff":     {"", 0, (*guest).powerOff},
		"promisc":      {"DEV on|off", 2, (*guest).promisc},
		"queues":       {"DEV [COUNT]", 1, (*guest).queues},
		"readdisk":     {"DEV OFFSET LENGTH", 3, (*guest).readDisk},
		"reboot":       {"", 0, (*guest).reboot},
		"route":        {"DESTINATION/BITS|default GATEWAY|DEV", 2, (*guest).route},
		"send":         {"DEV HEX", 2, (*guest).send},
		"sendtag":      {"DEV DESTINATION TAG [SOURCE [COUNT]]", 3, (*guest).sendTag},
		"sendudp":      {"ADDRESS PORT DEV TEXT [COUNT]", 4, (*guest).sendUDP},
		"slaac":        {"DEV on|off", 2, (*guest).slaac},
		"storm":        {"DEV SECONDS", 2, (*guest).storm},
		"tpm":          {"HEX", 1, (*guest).tpm},
		"tcp":          {"serve|sink|stop PORT, send ADDRESS PORT SECONDS, echo ADDRESS PORT TEXT", 2, (*guest).tcp},
		"unlisten":     {"udp ADDRESS PORT DEV", 4, (*guest).unlisten},
		"up":           {"DEV", 1, (*guest).up},
		"uptime":       {"", 0, (*guest).uptime},
		"watchdog":     {"MILLISECONDS", 1, (*guest).watchdog},
		"writedisk":    {"DEV OFFSET HEX", 3, (*guest).writeDisk},
	}
}

func (g *guest) run(words []string) (answer, error) {
	if len(words) == 0 {
		return answer{}, errors.New("no command")
	}
	c, ok := commands[words[0]]
	if !ok {
		return answer{}, fmt.Errorf("%s: no such command, try help", words[0])
	}
	if len(words)-1 < c.least {
		return answer{}, fmt.Errorf("usage: %s %s", words[0], c.usage)
	}
	a, err := c.run(g, words[1:])
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", words[0], err)
	}
	return a, nil
}

func (g *guest) help([]string) (answer, error) {
	var a answer
	for _, name := range slices.Sorted(maps.Keys(commands)) {
		a.lines = append(a.lines, strings.TrimSpace(name+" "+commands[name].usage))
	}
	return a, nil
}

func (g *guest) hello([]string) (answer, error) {
	return answer{reply: strings.Join(g.readyWords(), " ")}, nil
}

func (g *guest) uptime([]string) (answer, error) {
	return answer{reply: fmt.Sprintf("%.2f", uptime().Seconds())}, nil
}

func (g *guest) cmdline([]string) (answer, error) {
	line, err := os.ReadFile("/proc/cmdline")
	return answer{reply: strings.TrimSpace(string(line))}, err
}

func (g *guest) ping(args []string) (answer, error) {
	addr, err := netip.ParseAddr(args[0])
	if err != nil {
		return answer{}, err
	}
	count, err := strconv.Atoi(args[1])
	if err != nil || count < 1 {
		return answer{}, fmt.Errorf("count %q", args[1])
	}
	var p wire.Pinger
	for i, d := range []*time.Duration{&p.Interval, &p.Wait} {
		if len(args) <= 2+i {
			break
		}
		if *d, err = parseDuration(args[2+i]); err != nil {
			return answer{}, err
		}
	}
	sent, received, err := p.Ping(context.Background(), addr, count)
	return answer{reply: fmt.Sprintf("sent=%d received=%d", sent, received)}, err
}

// parseDuration takes Go's notation and plain seconds.
func parseDuration(s string) (time.Duration, error) {
	if seconds, err := strconv.ParseFloat(s, 64); err == nil {
		return time.Duration(seconds * float64(time.Second)), nil
	}
	return time.ParseDuration(s)
}

func (g *guest) send(args []string) (answer, error) {
	frame, err := hex.DecodeString(args[1])
	if err != nil {
		return answer{}, err
	}
	return answer{reply: fmt.Sprintf("bytes=%d", len(frame))}, wire.Send(args[0], frame)
}

func (g *guest) sendTag(args []string) (answer, error) {
	dev, tag := args[0], args[2]
	dst, err := net.ParseMAC(args[1])
	if err != nil {
		return answer{}, err
	}
	link, err := net.InterfaceByName(dev)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", dev, err)
	}
	src, count := link.HardwareAddr, 1
	if len(args) > 3 {
		if src, err = net.ParseMAC(args[3]); err != nil {
			return answer{}, err
		}
	}
	if len(args) > 4 {
		if count, err = strconv.Atoi(args[4]); err != nil {
			return answer{}, err
		}
	}
	for range count {
		if err := wire.Send(dev, wire.Tagged(dst, src, tag)); err != nil {
			return answer{}, err
		}
	}
	return answer{reply: fmt.Sprintf("sent=%d", count)}, nil
}

func (g *guest) count(args []string) (answer, error) {
	dev, tag := args[0], args[2]
	key := dev + " " + tag
	if args[1] == "start" {
		c, err := wire.NewCapture(dev, tag)
		if err != nil {
			return answer{}, err
		}
		g.held.put("count "+key, c)
		return answer{}, nil
	}
	c, ok := g.held.get("count " + key).(*wire.Capture)
	if !ok {
		return answer{}, fmt.Errorf("nothing counts %s on %s", tag, dev)
	}
	switch args[1] {
	case "read":
	case "stop":
		g.held.drop("count " + key)
	default:
		return answer{}, fmt.Errorf("%s: start, read or stop", args[1])
	}
	n := c.Counts()
	return answer{reply: fmt.Sprintf("unicast=%d broadcast=%d multicast=%d other=%d outgoing=%d",
		n.Unicast, n.Broadcast, n.Multicast, n.Other, n.Outgoing)}, nil
}
