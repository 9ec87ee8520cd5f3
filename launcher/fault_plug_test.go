package launcher

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

// alteration is something that is done to the NICs of a guest that runs.
type alteration struct {
	do            func() error
	back          func() error // nil where before and after are the same
	before, after string       // all that there is of the guest
}

// hotNICs are the words of a NIC that has everything.
var everything = append([]string{"queues=2", "host_access=true", "addresses=192.0.2.12"}, hotNIC...)

func (l *trial) attach() error {
	return l.coaxed(CommandAttach, NICArguments{Words: everything, Force: true})
}

func (l *trial) detach() error { return l.coaxed(CommandDetach, NICArguments{Name: "net1"}) }

// attachCells end, at each step, the adding and the removal of a NIC.
func (l *trial) attachCells() {
	l.revive()
	in := alteration{do: l.attach, back: l.detach, before: l.settled()}
	steps := l.steps(func() { l.must(l.attach()) })
	in.after = l.settled()
	out := alteration{do: l.detach, back: l.attach, before: in.after, after: in.before}
	removal := l.steps(func() { l.must(l.detach()) })
	l.reaches(in.before)

	rec, err := guestDir(l.base, l.g.Name).readRecord()
	l.must(err)
	n, err := configs.NICFromWords(2, everything)
	l.must(err)
	added := newCard(lifeOf(rec), newChild(l.g, 1, n, Facts{}))
	l.wantSteps(steps, changeNames(added, attaching(added)))
	l.wantSteps(removal, changeNames(added, (&nics{}).discarding(added)))
	l.alter("attach", in, steps)

	failing := fault{"after", "net1 record", "fail"} // the last
	l.setFault(failing)
	undos := l.steps(func() { l.attach() })
	l.setFault()
	l.reaches(in.before)
	l.alter("failed attach", in, undos[slices.Index(undos, "net1 record")+1:], failing)

	l.must(l.attach())
	l.reaches(out.before)
	l.alter("detach", out, removal)
	l.alter("failed detach", out, []string{"undo net1 mark"}, fails.fault("net1 unplug"))
}

// setCells end a change of a NIC at each of its steps.
func (l *trial) setCells() {
	set := func(words ...string) func() error {
		return func() error { return l.ask(CommandSet, NICArguments{Name: "net0", Words: words}) }
	}
	l.revive()
	a := alteration{
		do:   set("mode=vepa", "multicast=all", "pin=mac", "bandwidth.outbound=10mbit", "host_access=false", "link=down"),
		back: set("mode=bridge", "multicast=guest", "pin=true", "bandwidth.outbound=1gbit", "host_access=true", "link=up"),
	}
	a.before = l.settled()
	steps := l.steps(func() { l.must(a.do()) })
	a.after = l.settled()
	l.must(a.back())
	l.reaches(a.before)
	l.alter("set", a, steps)

	failing := fault{"after", "net0 record", "fail"}
	l.setFault(failing)
	undos := l.steps(func() { a.do() })
	l.setFault()
	l.reaches(a.before)
	l.alter("failed set", a, undos[slices.Index(undos, "net0 record")+1:], failing)
}

// replugCells end, at each step, what is done when a parent is there again.
func (l *trial) replugCells() {
	l.revive()
	a := alteration{before: l.settled()}
	a.do = func() error {
		l.lab.RemoveNIC("lab0")
		l.bringBack()
		return nil
	}
	steps := l.steps(func() { a.do(); time.Sleep(200 * time.Millisecond); l.reaches(a.before) })
	rec, err := guestDir(l.base, l.g.Name).readRecord()
	l.must(err)
	n := newCard(lifeOf(rec), rec.Children[0])
	l.wantSteps(steps, changeNames(n, n.replugging()))
	l.alter("replug", a, steps)
	l.alter("failed replug", a, []string{"undo net0 open"}, fails.fault("net0 pass"))
}

// lifeOf is a guest's life as far as its record tells of it.
func lifeOf(rec *record) *life {
	l := newLife(rec.Guest, Options{})
	l.rec = *rec
	return l
}

func changeNames(n *card, changes []change) (list []string) {
	for _, c := range changes {
		list = append(list, n.name+" "+c.name)
	}
	return list
}

// alter makes each of the steps the last one of a change.
func (l *trial) alter(kind string, a alteration, steps []string, besides ...fault) {
	l.t.Helper()
	for _, step := range steps {
		for _, how := range manners {
			l.cell(kind, step, how, func(how manner, faults ...fault) string { return l.alterOnce(a, step, how, faults...) }, besides...)
		}
	}
}

func (l *trial) alterOnce(a alteration, step string, how manner, faults ...fault) string {
	pid := l.observe(l.g).PID
	l.newSteps()
	l.setFault(faults...)
	err := a.do()
	if a.back == nil {
		l.comeTo(step, how)
	}
	if how != fails {
		l.awaitUnlocked(l.g.Name)
	}
	l.setFault()
	told := fmt.Sprint(err)
	switch {
	case how == qemuKilled:
		if left := l.left(3 * time.Second); left != "" {
			return l.wrong("left behind:\n%s", left)
		}
		l.restore(a)
		return "ended" // whether or not that was noticed before the change was done
	case how != fails:
		l.adopt()
	case a.back != nil && !strings.Contains(told, errMade.Error()):
		l.wrong("the client was told: %s", told)
	}
	switch l.reaches(a.before, a.after) {
	case -1:
		l.end("")
		l.restore(a)
		return "WRONG"
	case 1:
		l.must(a.back())
		l.reaches(a.before)
	case 0:
		if got := l.observe(l.g).PID; got != pid {
			return l.wrong("the guest has pid %d, had %d", got, pid)
		}
		if a.back != nil {
			return "undone"
		}
	}
	return "finished"
}

// restore has the guest there again, as it was before a change.
func (l *trial) restore(a alteration) {
	l.t.Helper()
	l.revive()
	if a.back != nil && l.reaches(a.before, a.after) == 1 {
		l.must(a.back())
		l.reaches(a.before)
	}
}

// revive has the guest there, as an adopted one, whose NICs are those of its spec.
func (l *trial) revive() {
	l.t.Helper()
	l.mustStart(l.g, order{Paused: true})
	l.killSupervisor(l.g.Name)
	l.adopt()
}

// coaxed has the supervisor do something that a guest has to let go of a card
// for. One that is paused does when it is reset (QEMU, hw/acpi/pcihp.c).
func (l *trial) coaxed(command string, args NICArguments) error {
	done := make(chan error, 1)
	go func() { done <- l.ask(command, args) }()
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(30 * time.Millisecond):
			l.ask("system_reset", nil)
		}
	}
}

// patience is for machines with much else to do: a card that is let go of late costs
// unplugTimeout, and each failure a longer pause.
const patience = 45 * time.Second

// comeTo waits until the supervisor has come to a step, or by that to its end.
func (l *trial) comeTo(step string, how manner) {
	l.t.Helper()
	var steps []string
	for end := time.Now().Add(patience); ; time.Sleep(30 * time.Millisecond) {
		steps = append(steps, l.newSteps()...)
		if _, alive := guestDir(l.base, l.g.Name).supervisor(); !alive || how == fails && slices.Contains(steps, step) {
			return
		}
		if time.Now().After(end) {
			l.wrong("never came to it, but to %s", steps)
			return
		}
		l.ask("system_reset", nil)
	}
}

// settled is all that there is of the guest, once that stays.
func (l *trial) settled() string {
	l.t.Helper()
	before, same := "", 0
	for range 200 {
		now := l.state()
		if same++; now != before {
			same = 0
		}
		if same == 3 {
			return now
		}
		before = now
		time.Sleep(60 * time.Millisecond)
	}
	l.t.Fatal("the guest does not settle")
	return ""
}

// reaches waits until all that there is of the guest is one of these, and
// returns which, or -1.
func (l *trial) reaches(want ...string) int {
	l.t.Helper()
	want = slices.DeleteFunc(want, func(w string) bool { return w == "" })
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		now := l.state()
		if i := slices.Index(want, now); i >= 0 {
			return i
		}
		if time.Now().After(end) {
			least := difference(want[0], now)
			for _, w := range want[1:] {
				if d := difference(w, now); len(d) < len(least) {
					least = d
				}
			}
			l.wrong("lost (-) or too much (+):\n%s", least)
			return -1
		}
		if strings.Contains(now, "\nloose") || strings.Contains(now, "\nlost") {
			l.ask("system_reset", nil)
		}
	}
}

func difference(before, now string) string {
	a, b := strings.Split(before, "\n"), strings.Split(now, "\n")
	var out []string
	for _, line := range a {
		if !slices.Contains(b, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			out = append(out, "+ "+line)
		}
	}
	return strings.Join(out, "\n")
}

// state is all that there is of the guest: what is recorded and shown, what
// QEMU, the kernel and the host's network have, descriptors and locks.
func (l *trial) state() string {
	l.t.Helper()
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	rec, err := guestDir(l.base, l.g.Name).readRecord()
	l.must(err)
	for _, c := range rec.Children {
		say("recorded %+v", c)
	}
	for _, c := range rec.Loose {
		say("loose %s", c.Name)
	}
	for _, name := range rec.Lost {
		say("lost %s", name)
	}
	s := l.observe(l.g)
	say("state %s", s.State)
	for _, n := range s.NICs {
		say("shown %s %s %s %s link %s, %s %s", n.Name, n.Parent, n.Mode, n.MAC, n.Link, n.Refused, n.Note)
	}
	lines = append(lines, l.cards()...)
	settings := func(where string, do func(func() error) error) {
		err := do(func() error {
			list, err := nettest.Settings()
			for _, line := range list {
				say("%s: %s", where, line)
			}
			return err
		})
		if err != nil {
			say("%s: %v", where, err)
		}
	}
	settings("host", l.lab.Host.Do)
	if ns, err := netsetup.NamespaceOf(rec.QEMU.PID); err == nil {
		settings("guest", ns.Do)
		for _, c := range slices.Concat(rec.Children, rec.Loose) {
			filter, _ := ns.Filter(c)
			rate, _ := ns.Shaped(c)
			_, pinned, _ := ns.Pinned(c)
			cond, _ := ns.Look(c)
			say("%s: mode %s, filter %v, limits %v, pinned %v", c.Name, cond.Mode, filter, rate, pinned)
		}
		ns.Close()
	}
	for who, pid := range map[string]int{"supervisor": s.Supervisor, "QEMU": s.PID} {
		for what, n := range descriptorsOf(pid) {
			say("%s has %d × %s", who, n, what)
		}
	}
	lines = append(lines, l.locks()...)
	slices.Sort(lines)
	return passing.ReplaceAllString(strings.Join(lines, "\n"), "N")
}

// cards lists what QEMU calls by names of ours.
func (l *trial) cards() (list []string) {
	client, err := Control(context.Background(), l.base, l.g.Name)
	if err != nil {
		return []string{err.Error()}
	}
	defer client.Close()
	var items []struct{ Name, Type string }
	if err := client.Execute(context.Background(), "qom-list", map[string]any{"path": "/machine/peripheral"}, &items); err != nil {
		return []string{err.Error()}
	}
	for _, i := range items {
		list = append(list, fmt.Sprintf("device %s, %s", i.Name, i.Type))
	}
	return list
}

// passing are numbers that are others when things are made again: of shims, and
// all that follow from the guest's slot.
var passing = regexp.MustCompile("vmrun-user-[0-9-]+|vmrun[0-9]+|[0-9]{6,}")

var digits = regexp.MustCompile("[0-9]+")

// descriptorsOf counts what a process has open, by its kind.
func descriptorsOf(pid int) map[string]int {
	count := map[string]int{}
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if target, err := os.Readlink(dir + e.Name()); err == nil {
			count[digits.ReplaceAllString(target, "N")]++
		}
	}
	return count
}
