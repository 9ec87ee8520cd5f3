package launcher

import (
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
)

// Status is everything about one guest that can be said. It is what `vmrun ps
// --json` lists.
type Status struct {
	Name       string        `json:"name"`
	UUID       string        `json:"uuid"`
	State      State         `json:"state"`
	PID        int           `json:"pid"`        // QEMU's, 0 when there is none
	Supervisor int           `json:"supervisor"` // its pid, 0 when there is none
	Spec       string        `json:"spec"`
	Started    time.Time     `json:"started"`
	CPUs       int           `json:"cpus"`
	Memory     uint64        `json:"memory"` // bytes
	Accel      configs.Accel `json:"accel"`
	NICs       []NICStatus   `json:"nics"`
	Rung       Rung          `json:"rung,omitempty"`   // of the stop that is under way
	Silent     string        `json:"silent,omitempty"` // who does not answer, of an unresponsive guest
	Ended      *Outcome      `json:"ended,omitempty"`
}

// NICStatus is one NIC of a guest.
type NICStatus struct {
	Name      string       `json:"name"` // in the guest's namespace
	Parent    string       `json:"parent"`
	Mode      configs.Mode `json:"mode"`
	MAC       string       `json:"mac"`
	Index     int          `json:"ifindex"`
	Queues    int          `json:"queues"`
	Addresses []string     `json:"addresses"`
}

// status is what the record says, for a supervisor with this pid.
func (r record) status(supervisor int) Status {
	qemu := r.QEMU.PID
	if r.Ended != nil {
		qemu = 0 // the number may be somebody else's by now
	}
	return Status{
		Name:       r.Guest.Name,
		UUID:       r.UUID.String(),
		State:      r.state(),
		PID:        qemu,
		Supervisor: supervisor,
		Spec:       r.Guest.Path,
		Started:    r.Started,
		CPUs:       r.Guest.CPUs,
		Memory:     uint64(r.Guest.Memory),
		Accel:      r.Accel,
		NICs:       nicStatuses(r.Children),
		Rung:       r.Situation.Rung,
		Ended:      r.Ended,
	}
}

func nicStatuses(children []netsetup.Child) []NICStatus {
	nics := []NICStatus{}
	for _, c := range children {
		nics = append(nics, NICStatus{
			Name: c.Name, Parent: c.Parent, Mode: c.Mode, MAC: c.MAC.String(),
			Index: c.Index, Queues: c.Queues, Addresses: []string{},
		})
	}
	return nics
}

// NICs is the guest's NICs as its status will show them.
func (p *Plan) NICs() []NICStatus { return nicStatuses(p.Children) }

// The two that may not answer.
const (
	silentQEMU       = "QEMU"
	silentSupervisor = "its supervisor"
)

// state is what the record says of itself; the kernel may know better.
func (r record) state() State {
	switch {
	case r.Ended != nil:
		return StateEnded
	case !r.Committed:
		return StateStarting
	case r.Situation.Ended:
		return StateStopping // QEMU is gone, what was around it is being given back
	}
	return r.Situation.state()
}

// doubt corrects the state by the answer to a question: who is alive and does
// not answer is unresponsive, who is not alive is on the way out.
func (s *Status) doubt(who string, err error, alive bool) {
	switch {
	case err == nil || s.State == StateEnded:
	case alive:
		s.State, s.Silent = StateUnresponsive, who
	default:
		s.State = StateStopping
	}
}
