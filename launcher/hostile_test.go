package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmrun/configs"
	"vmrun/netsetup"
)

// TestAdoptFromVersion2 adopts a guest by the state file that the release before
// would have left, without all that it did not know.
func TestAdoptFromVersion2(t *testing.T) {
	b := newBench(t)
	g := b.spec("old", "", nic("bridge", "host_access = true", "pin = true", `addresses = ["192.0.2.11"]`), nic("private"))
	before := b.mustStart(g, order{Paused: true}).Status
	b.killSupervisor(g.Name)
	var old, now map[string]any
	b.must(json.Unmarshal(readFile(t, "testdata/state-2.json"), &old))
	state := guestDir(b.base, g.Name).path(fileState)
	b.must(json.Unmarshal(readFile(t, state), &now))
	dropped := prune(now, old)
	now["version"] = 2
	if !strings.Contains(strings.Join(dropped, " "), "Confine") {
		t.Errorf("of a record only %v is new since version 2", dropped)
	}
	b.must(os.WriteFile(state, encode(t, now), 0o600))

	if s := b.observe(g); s.State != StatePaused || s.PID != before.PID {
		t.Errorf("without a supervisor: %+v", s)
	}
	report, err := b.startSoon(g.Path)
	if err != nil || !report.Adopted || report.Status.PID != before.PID || report.Status.State != StatePaused {
		t.Fatalf("%+v, %v", report, err)
	}
	b.eventually(5*time.Second, "record, kernel and QEMU agree", func() string { return b.disagreeInNames(g) })
	if r := b.record(g); r.Version != recordVersion || r.Guest.Confine != (configs.Confine{User: true, Seccomp: true}) || r.Guest.Restart.Policy != configs.RestartNo {
		t.Errorf("the record by now: %+v", r)
	}
	if n := b.observe(g).NICs; len(n) != 2 || n[0].MAC != before.NICs[0].MAC || n[0].Pin != configs.PinAll || !n[0].HostAccess || b.shim() == "" {
		t.Errorf("the NICs by now: %+v", n)
	}
	b.stop(g, RungQuit)
	b.clean("a guest of version 2")
}

// prune takes out of a value what another like it does not have, and returns the
// keys.
func prune(value, like any) (dropped []string) {
	switch value := value.(type) {
	case map[string]any:
		like, ok := like.(map[string]any)
		for key := range value {
			inside, known := like[key]
			if ok && !known && !strings.HasPrefix(key, "net") { // which would be a NIC's name
				delete(value, key)
				dropped = append(dropped, key)
				continue
			}
			dropped = append(dropped, prune(value[key], inside)...)
		}
	case []any:
		like, _ := like.([]any)
		for _, v := range value {
			if len(like) > 0 {
				dropped = append(dropped, prune(v, like[0])...)
			}
		}
	}
	return dropped
}

// disagreeInNames says where record and kernel have different NICs.
func (b *bench) disagreeInNames(g *configs.Guest) (found string) {
	b.t.Helper()
	var want, links []string
	for _, c := range b.record(g).Children {
		want = append(want, c.Name+" "+c.MAC.String())
	}
	b.inNamespace(g, func(ns *netsetup.Namespace, _ *record) error {
		list, err := ns.Links()
		for _, l := range list {
			links = append(links, l.Attrs().Name+" "+l.Attrs().HardwareAddr.String())
		}
		return err
	})
	if !sameSet(want, links) {
		return fmt.Sprintf("recorded %v, links %v", want, links)
	}
	return ""
}

// A forgery is a change to a guest's record, and what is said about it.
type forgery struct {
	name   string
	change func(victim, neighbour *record, bystander processID)
	want   string
}

var forgeries = []forgery{
	{"of another boot", func(r, _ *record, _ processID) { r.BootID = "0e2c1b9a-8c0f-4f7e-9e53-0a1b2c3d4e5f" }, "the state file is of another boot"},
	{"a bystander's pid", func(r, _ *record, p processID) { r.QEMU = p }, "the state file names another process (pid "},
	{"a bystander's pid, of any start time", func(r, _ *record, p processID) { r.QEMU = processID{PID: p.PID} }, "the state file names another process (pid "},
	{"the neighbour's pid", func(r, n *record, _ processID) { r.QEMU = n.QEMU }, "the state file names another process (pid "},
	{"a bystander's pid, of a start that was not finished", func(r, _ *record, p processID) { r.QEMU, r.Committed = p, false }, "no state file says that it has run"},
	{"half started", func(r, _ *record, _ processID) { r.Committed = false }, "no state file says that it has run"},
	{"ended", func(r, _ *record, _ processID) { r.Ended = &Outcome{Reason: ReasonStopped} }, "no state file says that it has run"},
	{"the neighbour's name", func(r, n *record, _ processID) { r.Guest.Name = n.Guest.Name }, "the state file of victim is that of guest neighbour"},
	{"a name outside", func(r, _ *record, _ processID) { r.Guest.Name = "../neighbour" }, "cannot be vmrun's: the guest's name: "},
	{"the neighbour's record", func(r, n *record, _ processID) { *r = *n; r.Guest.Name = "victim" }, "the state file names another process (pid "},
	{"the neighbour's children", func(r, n *record, _ processID) { r.Children = n.Children }, "cannot be vmrun's: NIC \"net0\": index "},
	{"the neighbour's slot and children", func(r, n *record, _ processID) { r.Slot, r.Children = n.Slot, n.Children }, "as the state file has it"},
	{"another uuid", func(r, _ *record, _ processID) { r.UUID = uuid.New() }, "it has the uuid "},
	{"another MAC", func(r, _ *record, _ processID) { r.Children[0].MAC[5] ^= 1 }, "QEMU's card for net0 has the MAC "},
	{"another kind", func(r, _ *record, _ processID) { r.Children[0].Kind = configs.KindIPvtap }, "is macvtap net0, and the state file has ipvtap net0"},
	{"a child outside", func(r, _ *record, _ processID) { r.Children[0].Name = "../../../etc" }, "a NIC has no such name"},
	{"a parent outside", func(r, _ *record, _ processID) { r.Children[0].Parent = "../../lo" }, "is not an interface's name"},
	{"numbers without end", func(r, _ *record, _ processID) { r.Slot, r.Ports = 1<<62, 1<<62 }, "there is no slot"},
}

// TestHostileRecord forges the record of a guest that has lost its supervisor.
// Whatever it says, nobody but the guest's own QEMU is ended, and even that by
// kill alone; no link and no file of others is touched; and the words say why.
func TestHostileRecord(t *testing.T) {
	b := newBench(t)
	victim := b.spec("victim", "", nic("bridge", `mac = "02:00:00:00:00:0a"`))
	neighbour := b.spec("neighbour", "", nic("bridge", "host_access = true", `addresses = ["192.0.2.12"]`))
	r := b.mustStart(neighbour, order{Paused: true})
	b.killSupervisor(neighbour.Name)
	bystander, end := b.bystander()
	b.startHeld(victim)
	good := readFile(t, guestDir(b.base, victim.Name).path(fileState))

	for _, f := range forgeries {
		b.forge(victim, good, f.change, neighbour, bystander)
		b.refused(victim, f.name, f.want)
		b.untouched(f.name, b.record(neighbour), bystander)
	}
	for name, text := range map[string]string{
		"torn":                string(good[:len(good)/2]),
		"empty":               "",
		"of a newer vmrun":    strings.Replace(string(good), `"version": 3`, `"version": 99`, 1),
		"of an older vmrun":   strings.Replace(string(good), `"version": 3`, `"version": 1`, 1),
		"a million children":  `{"version":3,"guest":{"Name":"victim"},"children":[{}` + strings.Repeat(",{}", 1_000_000) + "]}",
		"larger than allowed": strings.Repeat(" ", maxRecord+1),
	} {
		b.must(os.WriteFile(guestDir(b.base, victim.Name).path(fileState), []byte(text), 0o600))
		b.refused(victim, name, "the guest") // TestDecodeRecordRefuses has the words
		b.untouched(name, b.record(neighbour), bystander)
	}

	b.must(os.WriteFile(guestDir(b.base, victim.Name).path(fileState), good, 0o600))
	report, err := b.startSoon(victim.Path)
	if err != nil || !report.Adopted || report.Status.State != StatePaused {
		t.Errorf("by its own record again: %+v, %v", report, err)
	}
	b.kill(victim.Name)

	for _, f := range forgeries {
		b.startHeld(victim)
		pid := b.record(victim).QEMU
		b.forge(victim, readFile(t, guestDir(b.base, victim.Name).path(fileState)), f.change, neighbour, bystander)
		_, err := Kill(context.Background(), b.base, victim.Name)
		if _, gone := findProcess(pid); !errors.Is(gone, errGone) {
			t.Fatalf("%s: kill: %v, and QEMU lives", f.name, err)
		}
		b.untouched("kill of one "+f.name, b.record(neighbour), bystander)
	}
	if report, err := b.startSoon(neighbour.Path); err != nil || !report.Adopted || report.Status.PID != r.Status.PID {
		t.Errorf("the neighbour after all of it: %+v, %v", report, err)
	}
	b.kill(neighbour.Name)
	end()
	b.clean("hostile records")
}

// bystander is a process that no guest has to do with.
func (b *bench) bystander() (id processID, end func()) {
	b.t.Helper()
	cmd := exec.Command("sleep", "600")
	b.must(cmd.Start())
	end = sync.OnceFunc(func() { cmd.Process.Kill(); cmd.Wait() })
	b.t.Cleanup(end)
	start, err := startTime(cmd.Process.Pid)
	b.must(err)
	return processID{PID: cmd.Process.Pid, Start: start}, end
}

// startHeld starts a guest, pauses it and kills its supervisor.
func (b *bench) startHeld(g *configs.Guest) {
	b.t.Helper()
	b.mustStart(mustLoad(b.t, g.Path), order{})
	b.must(b.control(g.Name).Stop(b.within(5 * time.Second)))
	b.waitState(g, StatePaused, 5*time.Second)
	b.killSupervisor(g.Name)
}

// forge writes a guest's record with a change.
func (b *bench) forge(g *configs.Guest, good []byte, change func(_, _ *record, _ processID), neighbour *configs.Guest, bystander processID) {
	b.t.Helper()
	var r record
	b.must(json.Unmarshal(good, &r))
	change(&r, b.record(neighbour), bystander)
	b.must(os.WriteFile(guestDir(b.base, g.Name).path(fileState), encode(b.t, r), 0o600))
}

// refused has every command that could change something look at a guest whose
// record was forged.
func (b *bench) refused(g *configs.Guest, what, want string) {
	b.t.Helper()
	qemu, err := findOrphan(guestDir(b.base, g.Name))
	if err != nil {
		b.t.Fatalf("%s: the guest is gone: %v", what, err)
	}
	qemu.pidfd.Close()
	if _, err := b.start(g, order{}); KindOf(err) != KindState || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "vmrun kill "+g.Name) {
		b.t.Errorf("%s: start: %v; want %q", what, err, want)
	}
	if cleaned, err := Cleanup(context.Background(), b.base); len(cleaned) != 0 || err != nil && !errors.Is(err, ErrState) {
		b.t.Errorf("%s: cleanup: %v, %v", what, cleaned, err)
	}
	if list, err := List(context.Background(), b.base); err != nil || len(list) != 2 {
		b.t.Errorf("%s: list: %+v, %v", what, list, err)
	}
	if s := b.observe(g); s.PID != qemu.id.PID && s.Ended == nil {
		b.t.Errorf("%s: status: %+v, QEMU is %d", what, s, qemu.id.PID)
	}
	if _, err := startTime(qemu.id.PID); err != nil {
		b.t.Fatalf("%s: the guest was ended: %v", what, err)
	}
}

// untouched makes sure that bystander and neighbour live, and that the latter
// has its links.
func (b *bench) untouched(what string, neighbour *record, bystander processID) {
	b.t.Helper()
	for who, id := range map[string]processID{"the bystander": bystander, "the neighbour": neighbour.QEMU} {
		if start, err := startTime(id.PID); err != nil || start != id.Start {
			b.t.Fatalf("%s: %s is gone: %v", what, who, err)
		}
	}
	if got := b.disagreeInNames(neighbour.Guest); got != "" || b.shim() == "" {
		b.t.Fatalf("%s: the neighbour's links: %s, shim %q", what, got, b.shim())
	}
}
