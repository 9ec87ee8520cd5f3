package launcher

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmrun/configs"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

// TestNICStorm has twenty clients change a guest's NICs at once, and some of
// them leave in the middle, while the parent goes and comes back.
func TestNICStorm(t *testing.T) {
	b := newBench(t)
	g := b.spec("storm", "192.0.2.11/24", nic("bridge"))
	b.boot(g)
	ctx, end := context.WithTimeout(t.Context(), 3*time.Second)
	defer end()
	var wg sync.WaitGroup
	var done atomic.Int32
	for range 20 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if b.meddle(ctx, g) == nil {
					done.Add(1)
				}
			}
		})
	}
	time.Sleep(time.Second)
	b.lab.RemoveNIC("lab0")
	time.Sleep(300 * time.Millisecond)
	b.bringBack()
	wg.Wait()
	t.Logf("%d changes", done.Load())
	b.eventually(25*time.Second, "record, kernel and QEMU agree", func() string { return b.disagree(g) })
	for _, n := range b.observe(g).NICs {
		b.must(b.detach(g, n.Name))
	}
	b.wantNICs(g)
	if err := b.detach(g, "net0"); err == nil || !strings.Contains(err.Error(), "it has none") {
		t.Errorf("detach of the last NIC, again: %v", err)
	}
	if _, err := b.attach(g, hotNIC...); err != nil {
		t.Errorf("attach to a guest without NICs: %v", err)
	}
	b.eventually(5*time.Second, "the one NIC", func() string { return b.disagree(g) })
}

// meddle does one thing or other to a guest's NICs, as a client of its own.
func (b *bench) meddle(ctx context.Context, g *configs.Guest) error {
	limit := 10 * time.Second
	if rand.N(4) == 0 {
		limit = rand.N(20 * time.Millisecond) // a client that leaves
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	client, err := Control(ctx, b.base, g.Name)
	if err != nil {
		return err
	}
	defer client.Close()
	name := fmt.Sprintf("net%d", rand.N(4))
	switch rand.N(6) {
	case 0, 1:
		return client.Execute(ctx, CommandAttach, NICArguments{Words: hotNIC, Force: true}, nil)
	case 2:
		return client.Execute(ctx, CommandDetach, NICArguments{Name: name}, nil)
	case 3:
		words := []string{"link=down", "mode=vepa", "pin=mac"}
		if rand.N(2) == 0 {
			words = []string{"link=up", "mode=bridge", "pin=false", "host_access=true"}
		}
		return client.Execute(ctx, CommandSet, NICArguments{Name: name, Words: words}, nil)
	case 4:
		return client.Execute(ctx, CommandStats, nil, nil)
	}
	began := time.Now()
	err = client.Execute(ctx, CommandStatus, nil, nil)
	if took := time.Since(began); took > 2*time.Second {
		b.t.Errorf("a status took %v", took)
	}
	return err
}

// disagree says where the record, the kernel and QEMU have different NICs.
func (b *bench) disagree(g *configs.Guest) (found string) {
	b.t.Helper()
	rec, err := guestDir(b.base, g.Name).readRecord()
	b.must(err)
	if len(rec.Loose)+len(rec.Lost) > 0 {
		return fmt.Sprintf("loose %+v, lost %v", rec.Loose, rec.Lost)
	}
	var want, links, cards, shown []string
	for _, c := range rec.Children {
		want = append(want, fmt.Sprintf("%s %s %s", c.Name, c.MAC, c.Mode))
	}
	b.inNamespace(g, func(ns *netsetup.Namespace, _ *record) error {
		list, err := ns.Links()
		for _, l := range list {
			mode := strings.ToLower(map[netlink.MacvlanMode]string{netlink.MACVLAN_MODE_BRIDGE: "bridge", netlink.MACVLAN_MODE_VEPA: "vepa"}[l.(*netlink.Macvtap).Mode])
			links = append(links, fmt.Sprintf("%s %s %s", l.Attrs().Name, l.Attrs().HardwareAddr, mode))
		}
		return err
	})
	client := b.control(g.Name)
	for i := range maxNICs {
		var filter []any
		if client.Execute(b.within(5*time.Second), "query-rx-filter", map[string]any{"name": nicID(i)}, &filter) == nil {
			cards = append(cards, fmt.Sprint("net", i))
		}
	}
	var names []string
	for _, c := range rec.Children {
		names = append(names, c.Name)
	}
	for _, n := range b.observe(g).NICs {
		shown = append(shown, n.Name)
	}
	if !sameSet(want, links) {
		found += fmt.Sprintf("recorded %v, in the kernel %v; ", want, links)
	}
	if !sameSet(names, cards) || !sameSet(names, shown) {
		found += fmt.Sprintf("recorded %v, in QEMU %v, shown %v", names, cards, shown)
	}
	return found
}

func sameSet(a, b []string) bool {
	count := map[string]int{}
	for _, s := range a {
		count[s]++
	}
	for _, s := range b {
		count[s]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// TestEndAmidChange ends QEMU while a guest is waited for that is to let go of a
// card, and others wait for that. Nobody waits long, and nothing is left.
func TestEndAmidChange(t *testing.T) {
	b := newBench(t)
	g := b.spec("ending", "", nic("bridge"))
	attach := func() error { _, err := b.attach(g, append(hotNIC, "host_access=true")...); return err }
	detach := func() error { return b.detach(g, "net0") }
	set := func() error {
		return b.command(g, CommandSet, NICArguments{Name: "net0", Words: []string{"mode=vepa", "link=down"}}, nil)
	}
	r := b.mustStart(g, order{Paused: true})
	b.must(attach())
	var wg sync.WaitGroup
	for _, change := range []func() error{detach, attach, set, set} {
		wg.Go(func() { change() })
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	began := time.Now()
	b.signalQEMU(r, syscall.SIGKILL)
	b.waitState(g, StateEnded, 3*time.Second)
	wg.Wait()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("QEMU killed while a guest was to let go of a card: over after %v", took)
	}
	b.clean("QEMU killed amid detach, with a NIC that was attached")
}

// TestClientLeaves has a client leave while another's change is under way: what
// it wanted does not happen.
func TestClientLeaves(t *testing.T) {
	b := newBench(t)
	g := b.spec("left", "", nic("bridge"))
	r := b.mustStart(g, order{Paused: true})
	b.signalQEMU(r, syscall.SIGSTOP)
	first := make(chan error, 1)
	go func() { _, err := b.attach(g, hotNIC...); first <- err }()
	time.Sleep(300 * time.Millisecond)
	client, err := Control(b.within(5*time.Second), b.base, g.Name)
	b.must(err)
	client.Execute(b.within(200*time.Millisecond), CommandSet, NICArguments{Name: "net0", Words: []string{"mode=vepa"}}, nil)
	client.Close()
	if s := b.observe(g); s.State != StateUnresponsive || len(s.NICs) == 0 {
		t.Errorf("status meanwhile: %+v", s)
	}
	time.Sleep(300 * time.Millisecond)
	b.signalQEMU(r, syscall.SIGCONT)
	<-first
	b.eventually(15*time.Second, "the first change", func() string { return b.disagree(g) })
	if n := b.observe(g).NICs[0]; n.Mode != "bridge" {
		t.Errorf("a client that had left had its way: %+v", n)
	}
}

// TestCardThatStays has two paused guests not let go of a card: what was to be
// taken back is, when they are reset.
func TestCardThatStays(t *testing.T) {
	b := newBench(t)
	g1 := b.spec("attached", "", nic("bridge"))
	g2 := b.spec("detached", "", nic("bridge"), nic("vepa"))
	b.mustStart(g1, order{Paused: true})
	b.mustStart(g2, order{Paused: true})
	b.setFault(fault{"after", "net1 device add", "fail"})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := b.attach(g1, hotNIC...); err == nil {
			t.Error("an attach that was made to fail did not")
		}
	})
	wg.Go(func() {
		if err := b.detach(g2, "net0"); err == nil || !strings.Contains(err.Error(), "has not let go") {
			t.Errorf("detach from a paused guest: %v", err)
		}
	})
	time.Sleep(time.Second)
	if s := b.observe(g2); len(s.NICs) != 2 {
		t.Errorf("status meanwhile: %+v", s.NICs)
	}
	wg.Wait()
	b.setFault(fault{})
	for _, g := range []*configs.Guest{g1, g2} {
		b.must(b.control(g.Name).SystemReset(t.Context()))
		b.eventually(3*time.Second, g.Name, func() string { return b.disagree(g) })
	}
	b.wantNICs(g1, "net0")
	b.wantNICs(g2, "net1")
	if _, err := b.attach(g1, hotNIC...); err != nil {
		t.Errorf("attach where the last one failed: %v", err)
	}
	for _, g := range []*configs.Guest{g1, g2} {
		b.kill(g.Name)
	}
	b.clean("both")
}

// TestAdoptWithoutParent takes the parent away while no supervisor is there, and
// brings it back before and after there is one.
func TestAdoptWithoutParent(t *testing.T) {
	b := newBench(t)
	g := b.spec("deserted", "", nic("bridge", "host_access = true"))
	b.mustStart(g, order{Paused: true})
	for _, early := range []bool{true, false} {
		b.killSupervisor(g.Name)
		b.lab.RemoveNIC("lab0")
		if early {
			b.bringBack()
		}
		if report, err := b.startSoon(g.Path); err != nil || !report.Adopted {
			t.Fatalf("adoption: %+v, %v", report, err)
		}
		if !early {
			b.eventually(2*time.Second, "the parent is missed", func() string { return other(string(b.observe(g).NICs[0].Link), string(LinkParentGone)) })
			err := b.command(g, CommandSet, NICArguments{Name: "net0", Words: []string{"mode=vepa"}}, nil)
			if err == nil || b.observe(g).NICs[0].Mode != "bridge" {
				t.Errorf("mode=vepa without a child: %v, %+v", err, b.observe(g).NICs[0])
			}
			b.bringBack()
		}
		time.Sleep(500 * time.Millisecond)
		b.must(b.control(g.Name).SystemReset(t.Context())) // by which a paused guest lets go of the old card
		b.eventually(5*time.Second, "the NIC is plugged in again", func() string { return b.disagree(g) })
	}
	b.kill(g.Name)
}

// TestUnattended has a guest change what it wants, and who it is, while no
// supervisor is there; plugs another NIC in where one was; and has the guest
// give both up by itself.
func TestUnattended(t *testing.T) {
	b := newBench(t)
	script := filepath.Join(t.TempDir(), "eject")
	b.must(os.WriteFile(script, []byte("#!/bin/sh\nfor slot in /sys/bus/pci/slots/*; do echo 0 > $slot/power; done\n"), 0o755))
	b.files = guesttest.Options{Files: map[string]string{"/bin/sh": "/bin/dash", "/bin/eject": script,
		"/lib64/ld-linux-x86-64.so.2": "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6": "/lib/x86_64-linux-gnu/libc.so.6"}}.Image(t)
	g := b.spec("heard", "192.0.2.11/24", nic("bridge", `trust = "mac"`))
	c := b.boot(g)[0]
	const mac, later = "02:00:00:00:00:1a", "02:00:00:00:00:1b"
	b.say(c, "mac eth0 %s", mac)
	b.eventually(2*time.Second, "the MAC", func() string { return other(b.observe(g).NICs[0].MAC, mac) })
	b.killSupervisor(g.Name)
	if report, err := b.startSoon(g.Path); err != nil || !report.Adopted {
		t.Fatalf("adoption: %+v, %v", report, err)
	}
	c = b.console(g)
	if got := b.pinged(c, "192.0.2.1"); got != "" || b.observe(g).NICs[0].MAC != mac {
		t.Errorf("after adoption: ping %s, MAC %s, want %s", got, b.observe(g).NICs[0].MAC, mac)
	}
	b.say(c, "mac eth0 %s", mac) // no news for QEMU
	b.killSupervisor(g.Name)
	time.Sleep(100 * time.Millisecond)
	direct, err := guesttest.Dial(b.within(5*time.Second), guestDir(b.base, g.Name).path(fileSerial))
	b.must(err)
	b.say(direct, "mac eth0 %s", later)
	b.say(direct, "join 239.1.2.3 eth0")
	direct.Close()
	if report, err := b.startSoon(g.Path); err != nil || !report.Adopted {
		t.Fatalf("adoption: %+v, %v", report, err)
	}
	b.eventually(2*time.Second, "a MAC and a group that nobody saw", func() string {
		n := b.observe(g).NICs[0]
		return other(fmt.Sprint(n.MAC, strings.Contains(strings.Join(n.Groups, " "), "01:00:5e:01:02:03")), later+"true")
	})

	c = b.console(g)
	n, err := b.attach(g, "parent=lab0", "mode=bridge")
	b.must(err)
	b.eventually(5*time.Second, "the card", func() string { return b.guestHas(c, n.MAC, true) })
	b.say(c, "up eth1")
	b.say(c, "gratuitous eth1 192.0.2.77")
	b.eventually(3*time.Second, "learned", func() string { return other(fmt.Sprint(b.observe(g).NICs[1].Addresses), "[192.0.2.77]") })
	b.must(b.detach(g, n.Name))
	if n, err = b.attach(g, "parent=lab0", "mode=bridge"); err != nil || len(n.Addresses) > 0 {
		t.Errorf("a new NIC has addresses %v, %v", n.Addresses, err)
	}

	b.eventually(5*time.Second, "the card", func() string { return b.guestHas(c, n.MAC, true) })
	b.say(c, "exec /bin/eject")
	b.eventually(3*time.Second, "what the guest ejected is detached", func() string { return b.disagree(g) })
	b.wantNICs(g)
	if _, err := b.attach(g, hotNIC...); err != nil {
		t.Errorf("attach after the guest ejected its NICs: %v", err)
	}
}

// TestRefusedAddresses claims address after address that the host must not
// route. Those of yesterday are forgotten.
func TestRefusedAddresses(t *testing.T) {
	nettest.Root(t)
	lab := nettest.New(t)
	l := newLife(&configs.Guest{Name: "liar"}, Options{RunDir: t.TempDir()})
	l.rec.Slot = 4000
	c := netsetup.Child{Name: "net0", NIC: configs.NIC{Parent: "lab0", Mode: configs.ModeBridge, HostAccess: true, MAC: []byte{2, 0, 0, 0, 0, 9}}}
	n := newCard(l, c)
	l.nics.list = []*card{n}
	for i := range 50 {
		c.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})}
		n.set(c)
		if err := lab.Host.Do(func() error { return l.nics.reach(t.Context(), "lab0") }); err != nil {
			t.Fatal(err)
		}
	}
	if list := n.status().Unrouted; len(list) != 1 {
		t.Errorf("unrouted: %v", list)
	}
	if kept := len(l.nics.unrouted["lab0"]); kept != 1 {
		t.Errorf("%d refusals are remembered, want 1", kept)
	}
	if err := lab.Host.Do(func() error { return netsetup.Unreach(t.Context(), l.owner(), "lab0") }); err != nil {
		t.Error(err)
	}
}

// TestStatusWhileStarting asks for the status from the first moment on.
func TestStatusWhileStarting(t *testing.T) {
	b := newBench(t)
	g := b.spec("asked", "", nic("bridge"))
	ctx, end := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				Observe(ctx, b.base, g.Name)
			}
		})
	}
	b.mustStart(g, order{Paused: true})
	end()
	wg.Wait()
}

// bringBack makes the lab's first NIC anew.
func (b *bench) bringBack() {
	b.lab.AddNIC("lab0", nettest.NIC{MAC: b.lab.Host.MAC, Addresses: []netip.Prefix{nettest.HostAddr4, nettest.HostAddr6}})
}

// TestHostileMAC has a guest change its MACs for ever, one that it may change
// and one that it may not.
func TestHostileMAC(t *testing.T) {
	b := newBench(t)
	g := b.spec("hostile", "192.0.2.11/24", nic("bridge", `trust = "mac"`), nic("bridge"))
	c := b.boot(g)[0]
	b.say(c, "up eth1")
	supervisor := b.observe(g).Supervisor
	cpu, began := cpuTime(supervisor), time.Now()
	var wg sync.WaitGroup
	for _, dev := range []string{"eth0", "eth1"} {
		c := b.console(g)
		wg.Go(func() {
			if _, _, err := c.Run(b.within(20*time.Second), "macstorm "+dev+" 4"); err != nil {
				t.Error(err)
			}
		})
	}
	var slowest time.Duration
	for time.Since(began) < 4*time.Second {
		asked := time.Now()
		b.observe(g)
		slowest = max(slowest, time.Since(asked))
		time.Sleep(50 * time.Millisecond)
	}
	wg.Wait()
	share := float64(cpuTime(supervisor)-cpu) / float64(time.Since(began))
	log, err := os.ReadFile(guestDir(b.base, g.Name).path(fileSupervisorLog))
	b.must(err)
	for _, kind := range []string{"mac-changed", "refused"} {
		lines := strings.Count(string(log), "change="+kind)
		t.Logf("%s: %d lines logged", kind, lines)
		if lines == 0 || lines > hourly {
			t.Errorf("%s: %d lines logged, want 1 to %d", kind, lines, hourly)
		}
	}
	t.Logf("%.1f %% of a core, slowest status %v", 100*share, slowest)
	if slowest > 2*time.Second || share > 0.3 {
		t.Errorf("a status took %v, and the supervisor %.1f %% of a core", slowest, 100*share)
	}
}
