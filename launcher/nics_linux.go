package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"vmrun/netsetup"
	"vmrun/qmp"
)

// nics looks after the NICs of a guest that runs: one goroutine for each makes
// what the kernel and QEMU have of it what the record says, again whenever
// something may have changed.
type nics struct {
	life     *life
	host     *netsetup.Namespace // where the parents are
	watchers []*netsetup.Watcher
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup
	agent    *agent

	close func() error // takeDown, once

	started chan struct{} // closed by run
	change  chan struct{} // held by whoever adds, removes or changes a NIC
	access  sync.Mutex    // held by whoever sees to the host's way to the guest

	mu       sync.Mutex
	list     []*card
	unrouted map[string]map[netip.Addr]string // by parent: the guest's addresses that the host does not reach, and why
}

func newNICs(l *life) *nics {
	m := &nics{life: l, agent: newAgent(l), started: make(chan struct{}), change: make(chan struct{}, 1), unrouted: map[string]map[netip.Addr]string{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.close = sync.OnceValue(m.takeDown)
	return m
}

// watchNICs listens to everything that the NICs depend on. Nothing is done
// about it before run.
func (l *life) watchNICs(context.Context) error {
	m := l.nics
	l.undo.push("nics", m.close)
	var err error
	if m.host, err = netsetup.CurrentNamespace(); err != nil {
		return err
	}
	outside, err := netsetup.Watch(m.wakeAll)
	if err != nil {
		return err
	}
	m.watchers = append(m.watchers, outside)
	inside, err := l.ns.Watch(m.wakeAll)
	if err != nil {
		return err
	}
	m.watchers = append(m.watchers, inside)
	adopted := l.plan == nil
	for _, c := range l.snapshot().Children {
		n := newCard(l, c)
		n.doubtful.Store(adopted)
		if err := n.listen(); err != nil {
			return err
		}
		m.add(n)
	}
	return nil
}

// run begins to look after the NICs. What a predecessor had begun and not
// finished is finished.
func (m *nics) run() {
	m.pause(m.life.snapshot().Situation.Paused) // that changed while nobody told
	for _, n := range m.all() {
		m.tend(n)
	}
	m.running.Go(func() { m.agent.run(m.ctx) })
	for _, c := range m.life.snapshot().Loose {
		n := newCard(m.life, c)
		m.add(n) // so that it hears of its card
		m.discardLater(n)
	}
	close(m.started)
}

// tend begins to look after a NIC, until its halt is called.
func (m *nics) tend(n *card) {
	ctx, cancel := context.WithCancel(m.ctx)
	done := make(chan struct{})
	n.halt = func() { cancel(); <-done }
	n.touch()
	m.running.Go(func() {
		defer close(done)
		n.run(ctx)
	})
}

// closeSoon begins to close while QEMU ends, of which both take their time. Whoever
// calls it runs, or has run, the rest.
func (m *nics) closeSoon() {
	go func() {
		<-m.started
		_ = m.close() // whose error is for who closes in the end
	}()
}

// takeDown lets go of all NICs and removes what there is of them on the host. To close
// a packet socket and to remove a link both wait for all CPUs (net/packet/af_packet.c,
// packet_release; net/core/dev.c, netdev_run_todo), so all of it is done at once.
func (m *nics) takeDown() error {
	m.halt()
	deaf := make(chan error, 1)
	go func() { deaf <- m.deafen() }()
	err := m.each(func(n *card) error { return m.life.ns.Delete(n.child) })
	shared := func(n *card) bool { return n.child.HostAccess || n.child.VLAN != 0 }
	if slices.ContainsFunc(m.all(), shared) {
		err = errors.Join(err, leaveHost(m.life.owner()))
	}
	return errors.Join(err, <-deaf)
}

// leaveHost takes away all that the host's network has for a guest's sake, under
// whatever name its parents go by now.
func leaveHost(guest int) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	return netsetup.RepairShared(ctx, func(owner int) bool { return owner != guest })
}

// letGo closes everything that is open for the NICs: the sockets in the guest's
// namespace above all, which keep it alive. It is called once.
func (m *nics) letGo() error {
	m.halt()
	return m.deafen()
}

// halt ends what is being done for the NICs.
func (m *nics) halt() {
	m.cancel()
	m.change <- struct{}{} // for good: a change that is under way ends now, and no other begins
	for _, w := range m.watchers {
		w.Close()
	}
	m.running.Wait()
}

func (m *nics) deafen() error { return errors.Join(m.each((*card).deafen), m.host.Close()) }

// each does something with all NICs at once.
func (m *nics) each(do func(*card) error) error {
	var running sync.WaitGroup
	list := m.all()
	errs := make([]error, len(list))
	for i, n := range list {
		running.Go(func() { errs[i] = do(n) })
	}
	running.Wait()
	return errors.Join(errs...)
}

func (m *nics) all() []*card {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.list)
}

func (m *nics) find(name string) *card {
	for _, n := range m.all() {
		if n.name == name {
			return n
		}
	}
	return nil
}

func (m *nics) add(n *card) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, n)
}

func (m *nics) remove(n *card) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = slices.DeleteFunc(m.list, func(other *card) bool { return other == n })
}

func (m *nics) wakeAll() {
	for _, n := range m.all() {
		n.touch()
	}
}

// qmpEvent passes on what QEMU says of a NIC.
func (m *nics) qmpEvent(ev qmp.Event) {
	switch ev.Event {
	case "RESET": // the drivers begin anew
		m.agent.resync()
		for _, n := range m.all() {
			n.filterChanged.Store(true)
			n.touch()
		}
	case "NIC_RX_FILTER_CHANGED":
		name, _ := ev.Data["name"].(string)
		for _, n := range m.all() {
			if n.device() == name {
				n.filterChanged.Store(true)
				n.touch()
			}
		}
	case "VSERPORT_CHANGE":
		m.agent.qmpEvent(ev)
	case "DEVICE_DELETED":
		name, _ := ev.Data["device"].(string) // absent in the second of the two that come
		for _, n := range m.all() {
			if n.device() == name {
				nudge(n.unplugged)
				n.doubt()
			}
		}
	}
}

// pause notes that the guest cannot answer for its addresses now, or can again.
func (m *nics) pause(paused bool) {
	for _, n := range m.all() {
		if ear := n.ear(); ear != nil {
			ear.SetPaused(paused)
		}
	}
}

// resync is for when events were lost: everything is looked at anew.
func (m *nics) resync() {
	m.agent.resync()
	for _, n := range m.all() {
		n.doubt()
	}
}

// settleAccess makes the host's way to the guest on a parent, or ends it where
// no NIC is to have one.
func (m *nics) settleAccess(ctx context.Context, parent string) error {
	for _, n := range m.all() {
		if c := n.current(); c.HostAccess && c.Lower() == parent && !n.isLoose() {
			return m.reach(ctx, parent)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return netsetup.Unreach(ctx, m.life.owner(), parent)
}

func releaseVLAN(c netsetup.Child) error {
	if c.VLAN == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	return netsetup.ReleaseVLAN(ctx, owner(c), c.Parent, c.VLAN)
}

// owner is the guest's number on this host.
func (l *life) owner() int { return userOf(l.snapshot().Slot) }

// reach makes the host's routes to the guest through a parent what they should
// be: to the addresses of the spec, or else to those that were learned. close
// takes them back, once nobody looks after them any more.
func (m *nics) reach(ctx context.Context, parent string) error {
	m.access.Lock()
	defer m.access.Unlock()
	addresses := map[netip.Addr]net.HardwareAddr{}
	for _, n := range m.all() {
		if c := n.current(); c.HostAccess && c.Lower() == parent && !n.isLoose() {
			for _, addr := range n.reachable() {
				addresses[addr] = n.mac()
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	refused, err := netsetup.Reach(ctx, m.life.owner(), parent, addresses)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unrouted[parent] = refused
	return err
}

// unreached are those of a NIC's addresses that the host does not reach.
func (m *nics) unreached(parent string, addresses []netip.Addr) map[netip.Addr]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := map[netip.Addr]string{}
	for _, addr := range addresses {
		if why, ok := m.unrouted[parent][addr]; ok {
			list[addr] = why
		}
	}
	return list
}

// event tells everybody on the control socket what became of a NIC, and the log.
func (n *card) event(change, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	n.log(slog.LevelInfo, change, text)
	n.life.announce(newEvent(EventNIC, map[string]any{"nic": n.name, "change": change, "text": text}))
}

// RepairNetwork removes what dead guests left in the host's network namespace.
func RepairNetwork(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return netsetup.RepairShared(ctx, uidInUse) // an owner is its guest's uid
}

// statuses are the NICs as they are now.
func (m *nics) statuses() []NICStatus {
	list := []NICStatus{}
	for _, n := range m.all() {
		list = append(list, n.status())
	}
	slices.SortFunc(list, func(a, b NICStatus) int { return a.Index - b.Index })
	return list
}

// settle is how often a NIC is looked at, at most.
const settle = 100 * time.Millisecond

func closeFiles(files map[string]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// nudge leaves word in a channel that holds one, where there is none yet.
func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
