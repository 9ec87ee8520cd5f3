package launcher

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vmrun/netsetup"
	"vmrun/qmp"
)

// When the agent in a guest is asked.
const (
	agentTimeout = time.Second      // for all that it has to say
	agentFresh   = 10 * time.Second // a status has an older answer asked for anew
	agentPace    = time.Second      // between two questions
	agentPoll    = 5 * time.Second  // while the guest has no address
	agentSilence = 30 * time.Second // at most, after it did not answer
	agentMemory  = time.Minute      // its last word, while it does not answer
)

// agent is what talks to the agent in the guest, where there is one. Its goroutine
// asks for the guest's addresses, and does what must be done sooner or later; others
// wake it. A guest without costs nothing: QEMU tells when somebody in the guest
// opens the port.
type agent struct {
	life *life
	wake chan struct{} // holds one
	turn chan struct{} // held by who talks to the agent

	freezing sync.Mutex // held while the guest's file systems are frozen, or thawed

	mu      sync.Mutex    // guards what follows
	looked  bool          // QEMU was asked whether the port is open
	opened  bool          // somebody in the guest has it open
	changes int           // that QEMU has told of opened
	said    agentWord     // while it is open
	silent  int           // questions without an answer, since the last one
	stood   time.Time     // when the guest went on with a clock that has to be set; zero when it is right
	next    time.Time     // it is not asked before then
	round   chan struct{} // closed at the end of the goroutine's present round; nil without a goroutine
}

func newAgent(l *life) *agent {
	return &agent{life: l, wake: make(chan struct{}, 1), turn: make(chan struct{}, 1)}
}

// touch has the agent asked soon.
func (a *agent) touch() { nudge(a.wake) }

// qmpEvent takes QEMU's word of who is at the guest's end of a port
// (VSERPORT_CHANGE, qapi/char.json).
func (a *agent) qmpEvent(ev qmp.Event) {
	if id, _ := ev.Data["id"].(string); id != agentPort {
		return
	}
	a.mu.Lock()
	a.opened, _ = ev.Data["open"].(bool)
	a.changes++
	a.silent, a.next = 0, time.Time{}
	a.mu.Unlock()
	a.touch()
}

// resync is for when events were lost.
func (a *agent) resync() {
	a.mu.Lock()
	a.looked = false
	a.mu.Unlock()
	a.touch()
}

// word is what the agent has said.
func (a *agent) word() agentWord {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.said
}

// refresh has an agent asked whose last word is old, and waits for its answer
// until ctx ends. It reports whether there may be one.
func (a *agent) refresh(ctx context.Context) bool {
	a.mu.Lock()
	round := a.round
	due := a.mayAsk() && time.Since(a.said.at) >= agentFresh
	a.mu.Unlock()
	if !due || round == nil {
		return false
	}
	a.touch()
	select {
	case <-round:
	case <-ctx.Done():
	}
	return true
}

// mayAsk reports whether there is an agent, and it may answer. The caller holds
// the lock.
func (a *agent) mayAsk() bool { return a.opened && !time.Now().Before(a.next) }

// run asks until ctx ends.
func (a *agent) run(ctx context.Context) {
	a.endRound(make(chan struct{}))
	defer a.endRound(nil)
	a.touch()
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		case <-again:
		}
		asked := a.tend(ctx)
		a.endRound(make(chan struct{}))
		again = nil
		if wait := a.wanted(); wait > 0 {
			again = time.After(wait)
		}
		if !asked {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(agentPace):
		}
	}
}

// endRound tells those who wait for the present round, and begins the next.
func (a *agent) endRound(next chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.round != nil {
		close(a.round)
	}
	a.round = next
}

// wanted is when the goroutine is to look again by itself, 0 for never: something
// is left to do; or nobody tells when a guest that does not use its network gets an
// address, and somebody may wait for that.
func (a *agent) wanted() time.Duration {
	a.mu.Lock()
	looked, opened, stood := a.looked, a.opened, !a.stood.IsZero()
	a.mu.Unlock()
	cards := a.life.nics.all()
	switch {
	case opened && (stood || a.life.snapshot().Frozen):
		return agentPace
	case !looked || stood || opened && len(cards) > 0 && !slices.ContainsFunc(cards, (*card).hasAddress):
		return agentPoll
	}
	return 0
}

func (n *card) hasAddress() bool {
	return slices.ContainsFunc(n.addresses(), func(a netsetup.Address) bool { return !a.IP.IsLinkLocalUnicast() })
}

// tend asks the agent, if there is one, and reports whether it did.
func (a *agent) tend(ctx context.Context) (asked bool) {
	if err := a.look(ctx); err != nil {
		return false // QEMU does not answer, which others say
	}
	a.mu.Lock()
	opened, may, before := a.opened, a.mayAsk(), a.said
	a.mu.Unlock()
	switch {
	case !opened:
		a.change(func() { a.said = agentWord{} })
		return false
	case a.life.snapshot().Situation.Paused || !a.keepThawed(ctx):
		return false
	}
	a.keepTime(ctx)
	if !may {
		return false
	}
	interfaces, err := a.interfaces(ctx)
	now := time.Now()
	switch {
	case errors.Is(err, errAgentBusy):
		return true
	case err != nil:
		a.change(func() { a.keepSilence(now) })
		return true
	}
	word := newAgentWord(now, interfaces, before)
	a.change(func() { a.said, a.silent, a.next = word, 0, time.Time{} })
	return true
}

// keepSilence notes that the agent did not answer. The caller holds the lock.
func (a *agent) keepSilence(now time.Time) {
	a.silent++
	a.next = now.Add(min(time.Duration(a.silent)*agentPoll, agentSilence))
	if now.Sub(a.said.at) > agentMemory {
		a.said = agentWord{}
	}
}

// look asks QEMU whether the guest has the port open, once.
func (a *agent) look(ctx context.Context) error {
	a.mu.Lock()
	looked, changes := a.looked, a.changes
	a.mu.Unlock()
	if looked {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	mon, err := a.life.reach(ctx)
	if err != nil {
		return err
	}
	var list []struct { // qapi/char.json, ChardevInfo
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := mon.Execute(ctx, "query-chardev", nil, &list); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.looked = true
	if a.changes != changes {
		return nil // QEMU has told meanwhile
	}
	a.opened = false
	for _, c := range list {
		a.opened = a.opened || c.Label == agentPort && c.Open
	}
	return nil
}

// interfaces asks for the guest's interfaces.
func (a *agent) interfaces(ctx context.Context) (list []agentInterface, err error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	err = a.converse(ctx, agentTimeout, func(c *conversation) error {
		return c.ask("guest-network-get-interfaces", nil, &list)
	})
	return list, err
}

// change changes what is known from the agent, and tells of each NIC whose
// addresses are others for it. fn has the lock.
func (a *agent) change(fn func()) {
	cards := a.life.nics.all()
	before := make([][]netip.Addr, len(cards))
	for i, n := range cards {
		before[i] = ips(n.addresses())
	}
	a.mu.Lock()
	fn()
	a.mu.Unlock()
	for i, n := range cards {
		if !slices.Equal(before[i], ips(n.addresses())) {
			n.tellAddresses()
		}
	}
}

func ips(list []netsetup.Address) (ips []netip.Addr) {
	for _, a := range list {
		ips = append(ips, a.IP)
	}
	return ips
}
