package main

import (
	"fmt"
	"math"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/unit"

	"vmrun/configs"
	"vmrun/launcher"
)

const (
	unitTemplate = "vmrun@.service"
	unitTarget   = "vmrun.target"
)

// unitFiles are what the generator adds to systemd's units: names below its
// directory to what the file holds, or where the link leads.
type unitFiles struct{ files, links map[string]string }

// unitsFor tells systemd what only the specs know of the guests: what to wait for,
// how long, and which start with the host. The template and the target are in
// dir, the directory of installed units.
func unitsFor(guests []*configs.Guest, dir string) unitFiles {
	u := unitFiles{map[string]string{}, map[string]string{}}
	for _, g := range guests {
		u.files[path.Join(launcher.UnitOf(g.Name)+".d", launcher.UnitDropIn)] = dropIn(g)
		if g.Autostart {
			u.links[path.Join(unitTarget+".wants", launcher.UnitOf(g.Name))] = filepath.Join(dir, unitTemplate)
			u.links[path.Join("multi-user.target.wants", unitTarget)] = filepath.Join(dir, unitTarget)
		}
	}
	return u
}

// dropIn is the part of a guest's unit that follows from its spec. A NIC's device
// is wanted and never bound to: it may go and come back under a running guest.
func dropIn(g *configs.Guest) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# By vmrun-generator, from the guest's spec: systemctl daemon-reload makes it anew.")
	line("[Unit]")
	line("SourcePath=%s", quotePercent.Replace(g.Path))
	line("PartOf=%s", unitTarget)
	for _, name := range g.After {
		line("After=%s", launcher.UnitOf(name))
	}
	for _, device := range devices(g.NICs) {
		line("Wants=%s", device)
		line("After=%s", device)
	}
	line("")
	line("[Service]")
	if g.Path != filepath.Join(specDir, g.Name+".toml") { // the template's own
		line(`Environment="VMRUN_SPEC=%s"`, quoteUnit.Replace(g.Path))
	}
	line("TimeoutStartSec=%s", startSeconds(g))
	line("TimeoutStopSec=%d", seconds(launcher.StopBound(g)))
	return b.String()
}

// What a unit's file takes for something else (systemd.unit(5), specifiers;
// systemd.syntax(7), quoting).
var (
	quotePercent = strings.NewReplacer("%", "%%")
	quoteUnit    = strings.NewReplacer("%", "%%", `\`, `\\`, `"`, `\"`)
)

// devices are the units of the NICs' parents, each once (systemd.device(5)). The
// VLAN device on a parent is vmrun's to make.
func devices(nics []configs.NIC) []string {
	var units []string
	for _, n := range nics {
		name := systemd.UnitNamePathEscape("/sys/subsystem/net/devices/"+n.Parent) + ".device"
		if !slices.Contains(units, name) {
			units = append(units, name)
		}
	}
	return units
}

// startSeconds is how long a start may take: to wait for NICs, until the guest is
// ready, and to end one that is not.
func startSeconds(g *configs.Guest) string {
	bound := launcher.StartBound(g)
	if bound == 0 {
		return "infinity"
	}
	return strconv.Itoa(seconds(parentsWait + bound + launcher.StopBound(g)))
}

// parentsWait is how long a guest's unit waits for NICs, as the template says.
const parentsWait = time.Minute

func seconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }
