package main

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// guest is the state behind the commands.
type guest struct {
	console *console
	params  params
	held    held

	// silent is set by hang and by everything that ends the guest: no answer
	// follows, so none can be taken for the next boot's.
	silent atomic.Bool
}

func main() {
	mountAll()
	con, err := openConsole()
	if err != nil {
		fmt.Fprintf(os.Stderr, "vmrun-guest: error: %v\n", err)
	}
	g := &guest{console: con, params: readParams()}
	g.warn("modules", loadModules("/modules"))
	g.warn("network", setUpNetwork(g.params.addresses))
	g.warn("hot plug", g.watchLinks(g.params.addresses))
	g.warn("power button", g.watchPowerButton())
	con.say("ready " + strings.Join(g.readyWords(), " "))
	g.serve()
	g.warn("console", fmt.Errorf("end of file"))
	select {} // the kernel panics when its first process ends
}

func (g *guest) warn(what string, err error) {
	if err != nil {
		g.console.say(fmt.Sprintf("warning: %s: %v", what, err))
	}
}

func (g *guest) readyWords() []string {
	words := []string{fmt.Sprintf("uptime=%.2f", uptime().Seconds())}
	links, err := listLinks()
	g.warn("links", err)
	for _, l := range links {
		words = append(words, l.name+"="+strings.Join(l.addresses, ","))
	}
	return words
}

func mountAll() {
	for _, m := range []struct{ kind, path string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
	} {
		_ = os.Mkdir(m.path, 0o755)
		if err := unix.Mount(m.kind, m.path, m.kind, 0, ""); err != nil {
			fmt.Fprintf(os.Stderr, "vmrun-guest: warning: mount %s: %v\n", m.path, err)
		}
	}
}

// params are the words of the kernel command line that are ours.
type params struct {
	addresses         []linkAddresses
	ignorePowerButton bool
}

type linkAddresses struct {
	dev       string
	addresses []string
}

func readParams() params {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return params{}
	}
	return parseParams(string(line))
}

func parseParams(line string) params {
	var p params
	for _, word := range strings.Fields(line) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "vmrun.addr":
			for _, part := range strings.Split(strings.Trim(value, `"`), ";") {
				dev, list, ok := strings.Cut(part, ":")
				if !ok {
					continue
				}
				p.addresses = append(p.addresses, linkAddresses{dev, strings.Split(list, ",")})
			}
		case "vmrun.powerbutton":
			p.ignorePowerButton = value == "ignore"
		}
	}
	return p
}

func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
