package launcher

import (
	"fmt"
	"strconv"
	"strings"

	"vmrun/configs"
)

// Reload is what has become of the changes to the spec of a guest that runs.
type Reload struct {
	Changed []configs.Difference `json:"changed"` // hold by now
	Later   []Postponed          `json:"later"`   // take a restart of the guest
	Failed  []Postponed          `json:"failed"`  // could be made, and were not
}

// Postponed is a change that does not hold yet.
type Postponed struct {
	configs.Difference
	Why string `json:"why,omitempty"` // where it is not the key itself
}

// liveSettings are the tables of a spec that nobody but the supervisor uses, and
// what takes one over.
var liveSettings = map[string]func(into, from *configs.Guest){
	"autostart": func(into, from *configs.Guest) { into.Autostart = from.Autostart },
	"after":     func(into, from *configs.Guest) { into.After = from.After },
	"console":   func(into, from *configs.Guest) { into.Console = from.Console },
	"stop":      func(into, from *configs.Guest) { into.Stop = from.Stop },
	"restart":   func(into, from *configs.Guest) { into.Restart = from.Restart },
	"ready":     func(into, from *configs.Guest) { into.Ready = from.Ready },
}

// liveKeys are the keys of a NIC that can change while the guest has it.
var liveKeys = map[string]func(into *configs.NIC, from configs.NIC){
	"mode":      func(into *configs.NIC, from configs.NIC) { into.Mode = from.Mode },
	"multicast": func(into *configs.NIC, from configs.NIC) { into.Multicast = from.Multicast },
	"trust":     func(into *configs.NIC, from configs.NIC) { into.Trust = from.Trust },
	"pin":       func(into *configs.NIC, from configs.NIC) { into.Pin = from.Pin },
	"addresses": func(into *configs.NIC, from configs.NIC) {
		into.Addresses, into.Prefixes = from.Addresses, from.Prefixes
	},
	"host_access":        func(into *configs.NIC, from configs.NIC) { into.HostAccess = from.HostAccess },
	"bandwidth.inbound":  func(into *configs.NIC, from configs.NIC) { into.Bandwidth.Inbound = from.Bandwidth.Inbound },
	"bandwidth.outbound": func(into *configs.NIC, from configs.NIC) { into.Bandwidth.Outbound = from.Bandwidth.Outbound },
}

// sorted tells the changes to a spec apart by what they are about.
type sorted struct {
	settings []configs.Difference
	nics     map[int][]configs.Difference // by number
	fixed    []configs.Difference
}

func sortDifferences(list []configs.Difference) sorted {
	s := sorted{nics: map[int][]configs.Difference{}}
	for _, d := range list {
		if i, _, ok := splitNIC(d.Key); ok {
			s.nics[i] = append(s.nics[i], d)
			continue
		}
		table, _, _ := strings.Cut(d.Key, ".")
		table, _, _ = strings.Cut(table, "[")
		if _, ok := liveSettings[table]; ok {
			s.settings = append(s.settings, d)
			continue
		}
		s.fixed = append(s.fixed, d)
	}
	return s
}

// splitNIC takes the key of a NIC apart: "nic[1].bandwidth.inbound". A list's
// element is its list.
func splitNIC(key string) (nic int, name string, ok bool) {
	rest, ok := strings.CutPrefix(key, "nic[")
	if !ok {
		return 0, "", false
	}
	number, name, _ := strings.Cut(rest, "]")
	name, _, _ = strings.Cut(strings.TrimPrefix(name, "."), "[")
	nic, err := strconv.Atoi(number)
	return nic, name, err == nil
}

func nicName(i int) string { return fmt.Sprintf("net%d", i) }

// nicKeyOf is the key in a spec of a NIC's own.
func nicKeyOf(i int, key string) string {
	if key == "" {
		return fmt.Sprintf("nic[%d]", i)
	}
	return fmt.Sprintf("nic[%d].%s", i, key)
}

// later notes changes that take a restart.
func (r *Reload) later(why string, list ...configs.Difference) {
	for _, d := range list {
		r.Later = append(r.Later, Postponed{d, why})
	}
}

// settle notes what has become of changes that were tried.
func (r *Reload) settle(err error, list ...configs.Difference) {
	if err == nil {
		r.Changed = append(r.Changed, list...)
		return
	}
	for _, d := range list {
		r.Failed = append(r.Failed, Postponed{d, err.Error()})
	}
}
