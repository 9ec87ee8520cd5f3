package launcher

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup"
)

// soakOr chooses between what make soak does and what make test does.
func soakOr[T any](soak, test T) T {
	if os.Getenv("VMRUN_SOAK") == "1" {
		return soak
	}
	return test
}

// flock is the guests of a churn, and a source of chance.
type flock struct {
	*bench
	rand   *rand.Rand
	guests []*member
	deeds  map[string]int
	listed atomic.Int32
}

// member is a guest as it ought to be.
type member struct {
	*configs.Guest
	boots   bool // it runs, and lets go of cards; the others only stand still
	veteran bool // nobody is killed

	alive, watched, paused bool
	plugged                []string // NICs that were added, by name

	console *guesttest.Console
	viewers []net.Conn
}

// TestChurn has guests started, stopped, adopted, paused, looked at and given
// NICs, and their supervisors and QEMUs killed, in an order that VMRUN_SEED
// chooses. After each round vmrun has to see what the kernel has, and in the end
// nothing is left and nothing has grown.
func TestChurn(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("VMRUN_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("VMRUN_SEED=%d", seed)
	b := newBench(t)
	f := &flock{bench: b, rand: rand.New(rand.NewPCG(seed, 0)), deeds: map[string]int{}}
	for i := range soakOr(40, 8) {
		m := &member{boots: i < soakOr(4, 1), veteran: i == 0}
		m.Guest = b.spec(fmt.Sprintf("g%02d", i), fmt.Sprintf("192.0.2.%d/24", 11+i), nic("bridge"), nic("private", "pin = true", fmt.Sprintf("addresses = [\"192.0.2.%d\"]", 111+i)))
		f.guests = append(f.guests, m)
	}
	f.round(f.each((*flock).start)[1:]) // caches fill, thread pools grow
	f.round(f.each((*flock).end)[1:])
	before := takeUsage(t)
	f.round(f.each((*flock).start))
	veteran := f.guests[0]
	descriptors := openDescriptors(t, b.observe(veteran.Guest))

	rounds := 0
	for end := time.Now().Add(soakOr(10*time.Minute, 15*time.Second)); time.Now().Before(end) && !t.Failed(); rounds++ {
		f.round(f.choose())
	}
	f.rest(veteran)
	b.eventually(5*time.Second, "the veteran's descriptors", func() string {
		now := openDescriptors(t, b.observe(veteran.Guest))
		if now[0] > descriptors[0] || now[1] > descriptors[1] {
			return fmt.Sprintf("%v, were %v", now, descriptors)
		}
		return ""
	})
	f.round(f.each((*flock).end))
	if _, err := Cleanup(t.Context(), b.base); err != nil {
		t.Error(err)
	}
	b.clean("churn")
	if left := entries(t, b.base); len(left) > 0 {
		t.Errorf("left in the run directory: %v", left)
	}
	lives := f.deeds["start"] + f.deeds["adopt"] + 2*f.deeds["crowd"]
	t.Logf("%d rounds with %d guests, %d listings meanwhile: %v", rounds, len(f.guests), f.listed.Load(), f.deeds)
	before.check(t, takeUsage(t), lives)
}

// A deed is something that is done to a guest, and what came of it.
type deed struct {
	name string
	to   *member
	do   func() error
}

// round does all deeds at once while others look on, and compares what vmrun
// says afterwards with the kernel.
func (f *flock) round(deeds []deed) {
	f.t.Helper()
	ctx, done := context.WithCancel(context.Background())
	var doing, looking sync.WaitGroup
	looking.Go(func() { f.look(ctx) })
	for _, d := range deeds {
		f.deeds[d.name]++
		doing.Go(func() {
			if err := d.do(); err != nil {
				f.t.Errorf("%s %s: %v", d.name, d.to.Name, err)
			}
		})
	}
	doing.Wait()
	done()
	looking.Wait()
	if !f.t.Failed() {
		f.eventually(10*time.Second, "vmrun and the kernel agree", f.disagreement)
	}
	if f.t.Failed() {
		var names []string
		for _, d := range deeds {
			names = append(names, d.name+" "+d.to.Name)
		}
		f.t.Logf("in the round of: %s", strings.Join(names, ", "))
	}
}

// look lists the guests until ctx ends.
func (f *flock) look(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		list, err := List(context.Background(), f.base)
		if took := time.Since(began); err != nil || took > observeTimeout+3*time.Second {
			f.t.Errorf("list: %v, after %v", err, took)
		}
		for i, s := range list {
			if i > 0 && s.Name <= list[i-1].Name {
				f.t.Errorf("list: %s after %s", s.Name, list[i-1].Name)
			}
		}
		f.listed.Add(1)
		time.Sleep(20 * time.Millisecond)
	}
}

// each is one deed for every guest.
func (f *flock) each(do func(*flock, *member) deed) (list []deed) {
	for _, m := range f.guests {
		list = append(list, do(f, m))
	}
	return list
}

// choose picks some guests, and for each of them what fits the state it is in.
func (f *flock) choose() (list []deed) {
	for _, i := range f.rand.Perm(len(f.guests))[:1+f.rand.IntN(len(f.guests)/2)] {
		m := f.guests[i]
		kinds := []func(*flock, *member) deed{(*flock).start}
		switch {
		case m.alive && m.watched:
			kinds = []func(*flock, *member) deed{(*flock).view, (*flock).set}
			if len(m.plugged) < sparePorts {
				kinds = append(kinds, (*flock).attach)
			}
			if m.boots && !m.paused && len(m.plugged) > 0 {
				kinds = append(kinds, (*flock).detach, (*flock).detach)
			}
			if m.boots {
				kinds = append(kinds, (*flock).pause)
			}
			if !m.veteran && (!m.boots || f.rand.IntN(4) == 0) { // to boot takes long
				kinds = append(kinds, (*flock).killSupervisor, (*flock).killSupervisor, (*flock).killQEMU, (*flock).killBoth, (*flock).end, (*flock).stop, (*flock).crowd)
			}
		case m.alive:
			kinds = []func(*flock, *member) deed{(*flock).adopt, (*flock).adopt, (*flock).killQEMU, (*flock).end, (*flock).stop}
		}
		list = append(list, kinds[f.rand.IntN(len(kinds))](f, m))
	}
	return list
}

// disagreement says where what is, what vmrun lists, and what ought to be differ.
func (f *flock) disagreement() string {
	list, err := List(context.Background(), f.base)
	if err != nil {
		return err.Error()
	}
	qemus := f.qemus()
	spaces := map[uint64]string{}
	var wrong []string
	for _, m := range f.guests {
		s := Status{State: StateEnded}
		if i := slices.IndexFunc(list, func(s Status) bool { return s.Name == m.Name }); i >= 0 {
			s = list[i]
		}
		is := fmt.Sprintf("%v of QEMU %v, watched %v", s.State, qemus[m.Name], s.Supervisor != 0)
		ought := fmt.Sprintf("%v of QEMU %v, watched %v", m.state(s), qemus[m.Name][:min(1, len(qemus[m.Name]))], m.watched)
		if is != ought || m.alive != (len(qemus[m.Name]) == 1) || m.alive && s.PID != qemus[m.Name][0] {
			wrong = append(wrong, fmt.Sprintf("%s is %s (listed %d), and ought to be alive %v: %s", m.Name, is, s.PID, m.alive, ought))
			continue
		}
		if s.Supervisor != 0 && !guestDir(f.base, m.Name).lockIsOpenIn(s.Supervisor) {
			wrong = append(wrong, fmt.Sprintf("%s: process %d does not have its lock", m.Name, s.Supervisor))
		}
		if m.alive {
			wrong = append(wrong, f.compareNICs(m, s, spaces)...)
		}
	}
	for name := range qemus {
		if !slices.ContainsFunc(f.guests, func(m *member) bool { return m.Name == name }) {
			wrong = append(wrong, "a QEMU of nobody: "+name)
		}
	}
	return strings.Join(wrong, "\n")
}

// state is what the guest's ought to be.
func (m *member) state(s Status) State {
	switch {
	case !m.alive:
		return StateEnded
	case m.boots && !m.paused:
		return StateRunning
	}
	return StatePaused
}

// compareNICs holds what is listed of a guest's NICs against the links in its
// namespace, which is to be no other's.
func (f *flock) compareNICs(m *member, s Status, spaces map[uint64]string) (wrong []string) {
	ns, err := netsetup.NamespaceOf(s.PID)
	if err != nil {
		return []string{err.Error()}
	}
	defer ns.Close()
	id, err := ns.ID()
	if whose := spaces[id]; err != nil || whose != "" {
		wrong = append(wrong, fmt.Sprintf("%s: its network namespace: %v, also %s's", m.Name, err, whose))
	}
	spaces[id] = m.Name
	links, err := ns.Links()
	if err != nil {
		return append(wrong, err.Error())
	}
	var have, listed []string
	for _, l := range links {
		have = append(have, l.Attrs().Name+" "+l.Attrs().HardwareAddr.String())
	}
	for _, n := range s.NICs {
		listed = append(listed, n.Name+" "+n.MAC)
	}
	if !sameSet(have, listed) || len(have) != 2+len(m.plugged) {
		wrong = append(wrong, fmt.Sprintf("%s: links %v, listed %v, added %v", m.Name, have, listed, m.plugged))
	}
	return wrong
}

// qemus are the processes of all guests, by name: those whose standard error is
// below the run directories, as their starter made it.
func (f *flock) qemus() map[string][]int {
	found := map[string][]int{}
	processes, _ := filepath.Glob("/proc/[0-9]*/fd/2")
	for _, path := range processes {
		target, _ := os.Readlink(path)
		rest, ok := strings.CutPrefix(target, f.base+"/")
		name, file, _ := strings.Cut(rest, "/")
		if pid, err := strconv.Atoi(strings.Split(path, "/")[2]); ok && err == nil && (file == fileStderr || file == fileQEMULog) {
			found[name] = append(found[name], pid)
		}
	}
	return found
}
