package launcher

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

// Status is everything about one guest that can be said. It is what `vmrun ps
// --json` lists.
type Status struct {
	Name       string        `json:"name"`
	UUID       string        `json:"uuid"`
	State      State         `json:"state"`
	Ready      bool          `json:"ready"`      // it has come as far as ready.when in its spec says
	PID        int           `json:"pid"`        // QEMU's, 0 when there is none
	Supervisor int           `json:"supervisor"` // its pid, 0 when there is none
	Spec       string        `json:"spec"`
	Started    time.Time     `json:"started"`
	CPUs       int           `json:"cpus"`
	Memory     uint64        `json:"memory"` // bytes
	Accel      configs.Accel `json:"accel"`
	NICs       []NICStatus   `json:"nics"`
	Why        string        `json:"why,omitempty"`      // its CPUs stand still, where nobody has asked for it
	Restarts   *Restarts     `json:"restarts,omitempty"` // by its policy, of a guest that had or waits for one
	Rung       Rung          `json:"rung,omitempty"`     // of the stop that is under way
	Silent     string        `json:"silent,omitempty"`   // who does not answer, of an unresponsive guest
	Ended      *Outcome      `json:"ended,omitempty"`

	Companions []CompanionStatus `json:"companions,omitempty"` // the processes beside QEMU

	Limits    *LimitsStatus `json:"limits,omitempty"`    // of a QEMU that has some
	Unlimited string        `json:"unlimited,omitempty"` // why limits of the spec do not hold
}

// NICStatus is one NIC of a guest.
type NICStatus struct {
	Name      string       `json:"name"` // in the guest's namespace
	Parent    string       `json:"parent"`
	Mode      configs.Mode `json:"mode"`
	MAC       string       `json:"mac"`
	Index     int          `json:"ifindex"`
	Queues    int          `json:"queues"`
	MTU       int          `json:"mtu"`
	VLAN      int          `json:"vlan,omitempty"`
	Kind      configs.Kind `json:"kind"`
	Addresses []string     `json:"addresses"`          // the spec's and those that are in Learned
	Declared  []string     `json:"declared,omitempty"` // of these, the spec's

	Learned    []netsetup.Address    `json:"learned,omitempty"` // from the guest's frames and its agent
	Link       LinkState             `json:"link,omitempty"`    // "" when nobody looks after the NIC
	Multicast  configs.Multicast     `json:"multicast"`
	Groups     []string              `json:"groups,omitempty"` // the multicast groups that are let in
	AllGroups  bool                  `json:"all_groups"`       // all are
	Trust      configs.Trust         `json:"trust"`
	Pin        configs.Pin           `json:"pin,omitempty"`
	Dropped    *netsetup.Refusals    `json:"dropped,omitempty"` // what was forged, of a pinned NIC
	HostAccess bool                  `json:"host_access"`
	Unrouted   map[netip.Addr]string `json:"unrouted,omitempty"` // addresses that the host does not reach, and why
	Bandwidth  *configs.Bandwidth    `json:"bandwidth,omitempty"`
	Vhost      bool                  `json:"vhost"`
	Refused    string                `json:"refused,omitempty"` // what the guest wanted of its NIC and did not get
	Note       string                `json:"note,omitempty"`    // what else its owner should know
}

// Lower names the link that the NIC is a child of: its parent, or the VLAN device
// on that.
func (n NICStatus) Lower() string { return configs.NIC{Parent: n.Parent, VLAN: n.VLAN}.Lower() }

// status is what the record says, for a supervisor with this pid.
func (r record) status(supervisor int) Status {
	qemu, why := r.QEMU.PID, r.Situation.why()
	if r.Ended != nil {
		qemu, why = 0, "" // the number may be somebody else's by now
	}
	if supervisor != r.Supervisor {
		r.Restarts.Next = time.Time{} // whoever waited for it has gone
	}
	s := Status{
		Name:       r.Guest.Name,
		UUID:       r.UUID.String(),
		State:      r.state(),
		Ready:      r.Ready && r.Ended == nil,
		PID:        qemu,
		Supervisor: supervisor,
		Spec:       r.Guest.Path,
		Started:    r.Started,
		CPUs:       r.Guest.CPUs,
		Memory:     uint64(r.Guest.Memory),
		Accel:      r.Accel,
		NICs:       nicStatuses(r.Children, r.Addresses),
		Why:        why,
		Rung:       r.Situation.Rung,
		Ended:      r.Ended,
	}
	if s.State == StateRestarting {
		s.Ended, s.NICs = nil, nicStatuses(r.Children, nil)
	}
	if r.Restarts.Count > 0 || s.State == StateRestarting {
		s.Restarts = &r.Restarts.Restarts
	}
	if r.Ended == nil {
		s.Companions = r.companionStatuses()
		s.Limits, s.Unlimited = r.Cgroup.status(), r.Unlimited
	}
	return s
}

func nicStatuses(children []netsetup.Child, learned map[string][]netsetup.Address) []NICStatus {
	nics := []NICStatus{}
	for _, c := range children {
		nics = append(nics, nicStatus(c, learned[c.Name]))
	}
	return nics
}

// nicStatus is what a NIC is to be, and what was learned of it.
func nicStatus(c netsetup.Child, learned []netsetup.Address) NICStatus {
	s := NICStatus{
		Name: c.Name, Parent: c.Parent, VLAN: c.VLAN, Kind: c.Kind, Mode: c.Mode, MAC: c.MAC.String(),
		Index: c.Index, Queues: c.Queues, MTU: c.MTU, Vhost: c.Vhost == configs.VhostOn,
		Multicast: c.Multicast, Trust: c.Trust, Pin: c.Pin, HostAccess: c.HostAccess,
		Addresses: []string{}, Learned: learned,
	}
	if c.Bandwidth != (configs.Bandwidth{}) {
		s.Bandwidth = &c.Bandwidth
	}
	for _, addr := range c.Addresses {
		s.Addresses = append(s.Addresses, addr.String())
		s.Declared = append(s.Declared, addr.String())
	}
	for _, a := range learned {
		if !slices.Contains(c.Addresses, a.IP) {
			s.Addresses = append(s.Addresses, a.IP.String())
		}
	}
	return s
}

// NICs is the guest's NICs as its status will show them.
func (p *Plan) NICs() []NICStatus { return nicStatuses(p.Children, nil) }

// The two that may not answer.
const (
	silentQEMU       = "QEMU"
	silentSupervisor = "its supervisor"
)

// state is what the record says of itself; the kernel may know better.
func (r record) state() State {
	switch {
	case r.Ended != nil && !r.Restarts.Next.IsZero():
		return StateRestarting
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
	case err == nil || s.State.Rests() || s.State == StateRestarting && !alive:
	case alive:
		s.State, s.Silent, s.Why = StateUnresponsive, who, ""
	default:
		s.State, s.Why = StateStopping, ""
	}
}

// found is the situation that a supervisor finds which did not see how it came
// about: QEMU is believed before the record.
func (s situation) found(run qmp.Status, stalled string) situation {
	s.Paused, s.Ran = !run.Running, s.Ran || run.Running
	switch run.Status {
	case "running":
		s.Stalled, s.Held, s.Watchdog = "", false, ""
	case "io-error":
		s.Stalled = stalled
	case "watchdog":
		s.Watchdog = configs.WatchdogPause
	case "paused": // nobody but an owner does that, or a suspend that was cut short
		s.Stalled, s.Held = "", s.Held || s.Suspend == suspendNone
	}
	return s
}

// halted is what QEMU says of a guest whose CPUs do not run. A run state that
// nobody of ours asks for is named (qapi/run-state.json, RunState).
func (s *Status) halted(run qmp.Status, stalled string) {
	s.State = StatePaused
	switch {
	case stalled != "":
		s.Why = situation{Paused: true, Stalled: stalled}.why()
	case run.Status == "watchdog":
		s.Why = situation{Paused: true, Watchdog: configs.WatchdogPause}.why()
	case s.Why == "" && run.Status != "paused" && run.Status != "prelaunch":
		s.Why = "QEMU's run state is " + run.Status
	}
}

// AtRest says how a guest that has no QEMU is brought back, as an ErrState, or returns
// nil for one that has.
func (s Status) AtRest() error {
	switch s.State {
	case StateSuspended:
		return fmt.Errorf("%s: %w: it is suspended: vmrun resume %[1]s", s.Name, ErrState)
	case StateEnded:
		return fmt.Errorf("%s: %w: it has ended: vmrun start %[1]s", s.Name, ErrState)
	}
	return nil
}
