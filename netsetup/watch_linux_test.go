package netsetup_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

// A watch ends at once, whatever the kernel is just telling.
func TestWatchEnds(t *testing.T) {
	nettest.Root(t)
	for range 200 {
		w, err := netsetup.Watch(func() {})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		w.Close()
		if d := time.Since(start); d > time.Second {
			t.Fatalf("the watch took %v to end", d)
		}
	}
}

// A watch ends, and calls nobody afterwards, while the kernel has news all the
// time and whoever is called is slow.
func TestWatchEndsAmidNews(t *testing.T) {
	lab := nettest.New(t)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_ = lab.Host.Do(func() error {
			link, err := netlink.LinkByName("lab0")
			for i := 0; err == nil; i++ {
				select {
				case <-end:
					return nil
				default:
					err = netlink.LinkSetMTU(link, 1400+i%2)
				}
			}
			return err
		})
	}()
	defer func() { close(end); <-ended }()
	for range 20 {
		var calls atomic.Int32
		var w *netsetup.Watcher
		must(t, lab.Host.Do(func() (err error) {
			w, err = netsetup.Watch(func() { calls.Add(1); time.Sleep(time.Millisecond) })
			return err
		}))
		for deadline := time.Now().Add(2 * time.Second); calls.Load() == 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		start := time.Now()
		w.Close()
		after := calls.Load()
		if d := time.Since(start); d > time.Second || after == 0 {
			t.Fatalf("the watch took %v to end, after %d calls", d, after)
		}
		time.Sleep(2 * time.Millisecond)
		if now := calls.Load(); now != after {
			t.Fatalf("%d calls after the end", now-after)
		}
	}
}

// A parent's other children are no news, and its MTU is.
func TestWatchNews(t *testing.T) {
	lab := nettest.New(t)
	calls := make(chan struct{}, 100)
	var w *netsetup.Watcher
	must(t, lab.Host.Do(func() (err error) {
		w, err = netsetup.Watch(func() { calls <- struct{}{} })
		return err
	}))
	defer w.Close()
	setMTU := func(mtu int) {
		t.Helper()
		must(t, lab.Host.Do(func() error {
			link, err := netlink.LinkByName("lab0")
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(link, mtu)
		}))
		select {
		case <-calls:
		case <-time.After(time.Second):
			t.Fatalf("nobody was told of MTU %d", mtu)
		}
	}
	setMTU(1400)
	ns := newNamespace(t)
	first := testChild(configs.ModeBridge, 91)
	must(t, create(t, lab, ns, first))
	must(t, ns.Up(first))
	setMTU(1450) // and that it is promiscuous from now on, should it be
	for len(calls) > 0 {
		<-calls
	}
	for n := 92; n < 97; n++ {
		c := testChild(configs.ModeBridge, n)
		c.Name = "net1"
		must(t, create(t, lab, ns, c))
		must(t, ns.Up(c))
		must(t, ns.SetFilter(c, netsetup.Filter{AllMulticast: true}))
		must(t, ns.Delete(c))
	}
	setMTU(1500)
	if n := len(calls); n > 0 {
		t.Errorf("%d calls more than for the MTU", n)
	}
}

// TestLook has a parent lose its cable, its name and its place.
func TestLook(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	c := testChild(configs.ModeBridge, 90)
	must(t, create(t, lab, ns, c))
	must(t, ns.Up(c))
	look := func(c netsetup.Child) (cond netsetup.Condition) {
		t.Helper()
		must(t, lab.Host.Do(func() (err error) {
			cond, err = ns.Look(c)
			return err
		}))
		return cond
	}
	type condition struct{ parent, carrier, child, attached, up bool }
	want := func(what string, want condition) {
		t.Helper()
		var got condition
		for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			cond := look(c)
			if got = (condition{cond.Parent, cond.Carrier, cond.Child, cond.Attached, cond.Up}); got == want {
				return
			}
		}
		t.Errorf("%s: %+v, want %+v", what, got, want)
	}
	well := condition{true, true, true, true, true}
	want("at first", well)
	if cond := look(c); cond.MAC.String() != c.MAC.String() || cond.MTU != 1500 || cond.ParentMTU != 1500 || cond.Mode != configs.ModeBridge {
		t.Errorf("at first: %+v", cond)
	}
	lab.SetCarrier("lab0", false)
	want("without a cable", condition{true, false, true, true, true})
	lab.SetCarrier("lab0", true)
	want("with a cable", well)
	lab.RenameNIC("lab0", "other")
	want("renamed", condition{child: true, up: true})
	lab.RenameNIC("other", "lab0")
	want("renamed back", well)
	lab.MoveNIC("lab0", lab.Host, lab.Outside)
	want("moved", condition{child: true, up: true})
	lab.MoveNIC("lab0", lab.Outside, lab.Host)
	want("moved back", well)
	must(t, ns.Delete(c))
	want("without the child", condition{parent: true, carrier: true})
	lab.RemoveNIC("lab0")
	want("without the parent", condition{})
	lab.AddNIC("lab0", nettest.NIC{})
	must(t, create(t, lab, ns, c))
	want("made anew, down", condition{parent: true, carrier: true, child: true, attached: true})
	lab.RemoveNIC("lab0")
	want("gone with the parent", condition{})
	lab.AddNIC("lab0", nettest.NIC{})
	want("the parent made anew", condition{parent: true, carrier: true})
}

// TestLookOnMacvlan has a child of a macvlan, which is its parent's parent's.
func TestLookOnMacvlan(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	must(t, lab.Host.Do(func() error {
		lower, err := netlink.LinkByName("lab0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = "mv0", lower.Attrs().Index
		return netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE})
	}))
	c := testChild(configs.ModeBridge, 91)
	c.Parent = "mv0"
	must(t, create(t, lab, ns, c))
	must(t, lab.Host.Do(func() error {
		cond, err := ns.Look(c)
		if err == nil && !cond.Attached {
			t.Errorf("a child of a macvlan: %+v", cond)
		}
		return err
	}))
}

// TestLookAtPeer puts a veth in the parent's place whose far end, elsewhere, has
// the number that the parent had.
func TestLookAtPeer(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	veth := func(name string, index int) *netlink.Veth {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = name, index
		return &netlink.Veth{LinkAttrs: attrs, PeerName: name + "-peer"}
	}
	const index = testIndex + 1000
	must(t, lab.Host.Do(func() error { return netlink.LinkAdd(veth("was", index)) }))
	c := testChild(configs.ModeBridge, 92)
	c.Parent = "was"
	must(t, create(t, lab, ns, c))
	must(t, lab.Outside.Do(func() error { return netlink.LinkAdd(veth("far", index)) }))
	lab.MoveNIC("far-peer", lab.Outside, lab.Host)
	lab.RenameNIC("was", "away")
	lab.RenameNIC("far-peer", "was")
	must(t, lab.Host.Do(func() error {
		cond, err := ns.Look(c)
		if err == nil && (!cond.Parent || !cond.Child || cond.Attached) {
			t.Errorf("a child of another link: %+v", cond)
		}
		return err
	}))
}

// TestSetLink changes children's modes, addresses and MTUs.
func TestSetLink(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	c := testChild(configs.ModeBridge, 93)
	must(t, create(t, lab, ns, c))
	must(t, ns.Up(c))
	look := func() (cond netsetup.Condition) {
		t.Helper()
		must(t, lab.Host.Do(func() (err error) {
			cond, err = ns.Look(c)
			return err
		}))
		return cond
	}
	for _, mode := range []configs.Mode{configs.ModeVEPA, configs.ModePrivate, configs.ModeBridge} {
		c.Mode = mode
		must(t, ns.SetMode(c))
		if got := look().Mode; got != mode {
			t.Errorf("mode %q, want %q", got, mode)
		}
	}
	wrong := c
	wrong.Mode = configs.ModePassthru
	if err := ns.SetMode(wrong); !errors.Is(err, unix.EINVAL) {
		t.Errorf("to passthru: %v", err)
	}
	c.MAC = mac(0x77)
	must(t, ns.SetMAC(c))
	wrong = c
	wrong.MAC = lab.Host.MAC
	if err := ns.SetMAC(wrong); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("the parent's MAC: %v", err)
	}
	wrong.MAC = mac(0x77)
	wrong.MAC[0] |= 1
	if err := ns.SetMAC(wrong); err == nil {
		t.Error("a group's MAC was taken")
	}
	c.MTU = 1400
	must(t, ns.SetMTU(c))
	wrong = c
	wrong.MTU = 1501
	if err := ns.SetMTU(wrong); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an MTU above the parent's: %v", err)
	}
	if cond := look(); cond.MAC.String() != mac(0x77).String() || cond.MTU != 1400 || !cond.Up {
		t.Errorf("after all: %+v", cond)
	}
	must(t, ns.Delete(c))
	for what, act := range map[string]func(netsetup.Child) error{"mode": ns.SetMode, "MAC": ns.SetMAC, "MTU": ns.SetMTU, "up": ns.Up} {
		if err := act(c); err == nil {
			t.Errorf("set %s of a child that is gone: no error", what)
		}
	}
}
