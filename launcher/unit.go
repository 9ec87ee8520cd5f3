package launcher

import (
	"fmt"
	"strings"
)

// UnitDropIn is what the part of a guest's unit is called that is made of its spec.
const UnitDropIn = "50-vmrun.conf"

// UnitOf names the unit of a guest, an instance of configs/systemd/vmrun@.service.
// A guest's name has no character that a unit's may not have, and the template
// takes it as it is, by %i (systemd.unit(5)).
func UnitOf(name string) string { return "vmrun@" + name + ".service" }

// UnitError says that a guest's unit did not start it.
type UnitError struct {
	Unit   string
	Result string   // of systemd's job (org.freedesktop.systemd1(5), JobRemoved)
	Status int      // the supervisor's exit status; 0 when it has none
	Log    []string // the end of what it logged
}

// Error is a line, and further ones with the log.
func (e *UnitError) Error() string {
	text := fmt.Sprintf("systemd did not start %s: %s", e.Unit, e.Result)
	if e.Status != 0 {
		text += fmt.Sprintf(", exit status %d", e.Status)
	}
	if len(e.Log) == 0 {
		return text + ": systemctl status " + e.Unit
	}
	return text + "; it logged:\n\t" + strings.Join(e.Log, "\n\t")
}
