package netsetup_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

// testIndex is where the indexes of the children of these tests begin; the
// launcher's own begin far below.
const testIndex = 3 << 24

func testChild(mode configs.Mode, n int) netsetup.Child {
	c := netsetup.Child{
		Name: "net0", Index: testIndex + n,
		NIC: configs.NIC{Parent: "lab0", Mode: mode, MAC: mac(0x10 + byte(n)), Queues: 1, Promisc: true},
	}
	if mode == configs.ModeSource {
		c.Sources = append(c.Sources, mac(0xaa), mac(0xbb))
	}
	return c
}

func newNamespace(t testing.TB) *netsetup.Namespace {
	t.Helper()
	nettest.Root(t)
	ns, err := netsetup.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// create makes a child of one of the lab's NICs.
func create(t testing.TB, lab *nettest.Lab, ns *netsetup.Namespace, c netsetup.Child) error {
	t.Helper()
	return lab.Host.Do(func() error { return ns.Create(c) })
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openTaps(t testing.TB, ns *netsetup.Namespace, c netsetup.Child) []*os.File {
	t.Helper()
	taps, err := ns.OpenTaps(c)
	must(t, err)
	t.Cleanup(func() {
		for _, tap := range taps {
			tap.Close()
		}
	})
	return taps
}

// macvtap reads the child back from the kernel.
func macvtap(t testing.TB, ns *netsetup.Namespace) *netlink.Macvtap {
	t.Helper()
	links, err := ns.Links()
	must(t, err)
	if len(links) != 1 {
		t.Fatalf("%d children, want 1: %v", len(links), links)
	}
	link, ok := links[0].(*netlink.Macvtap)
	if !ok {
		t.Fatalf("a %s, want a macvtap", links[0].Type())
	}
	return link
}

// details is what ip says of the link, which knows the macvlan flags.
func details(t testing.TB, ns *netsetup.Namespace) string {
	t.Helper()
	out, err := inside(ns, "ip", "-d", "link", "show", "net0")
	must(t, err)
	return out
}

func TestChildInEveryMode(t *testing.T) {
	bits := map[configs.Mode]netlink.MacvlanMode{
		configs.ModePrivate: netlink.MACVLAN_MODE_PRIVATE, configs.ModeVEPA: netlink.MACVLAN_MODE_VEPA,
		configs.ModeBridge: netlink.MACVLAN_MODE_BRIDGE, configs.ModePassthru: netlink.MACVLAN_MODE_PASSTHRU,
		configs.ModeSource: netlink.MACVLAN_MODE_SOURCE,
	}
	for mode, bit := range bits {
		t.Run(string(mode), func(t *testing.T) {
			lab := nettest.New(t)
			before := lab.Snapshot(t)
			ns := newNamespace(t)
			must(t, ns.Quiet())
			c := testChild(mode, 1)
			c.MTU, c.Queues = 1400, 3
			must(t, create(t, lab, ns, c))
			link := macvtap(t, ns)
			a := link.Attrs()
			if link.Mode != bit || a.Index != c.Index || a.Name != c.Name || a.MTU != 1400 || a.HardwareAddr.String() != c.MAC.String() {
				t.Errorf("made %s mode %d, index %d, MTU %d, MAC %s; want %+v", a.Name, link.Mode, a.Index, a.MTU, a.HardwareAddr, c)
			}
			if a.RawFlags&unix.IFF_UP != 0 {
				t.Error("it was created up")
			}
			var sources []string
			for _, s := range link.MACAddrs {
				sources = append(sources, s.String())
			}
			var want []string
			for _, s := range c.Sources {
				want = append(want, s.String())
			}
			if diff := cmp.Diff(want, sources); diff != "" {
				t.Errorf("sources (-want +got):\n%s", diff)
			}
			if taps := openTaps(t, ns, c); len(taps) != c.Queues {
				t.Errorf("%d queues, want %d", len(taps), c.Queues)
			}
			must(t, ns.Up(c))
			if flags := macvtap(t, ns).Attrs().RawFlags; flags&unix.IFF_UP == 0 || flags&unix.IFF_ALLMULTI != 0 {
				t.Errorf("flags %#x, want up and not all multicast", flags)
			}
			must(t, ns.Delete(c))
			if links, err := ns.Links(); err != nil || len(links) != 0 {
				t.Errorf("left after Delete: %v, %v", links, err)
			}
			must(t, ns.Delete(c)) // again
			must(t, ns.Close())
			before.Check(t)
		})
	}
}

// The parent takes on a passthru child's MAC, and has its own back afterwards.
func TestPassthruMAC(t *testing.T) {
	for _, tt := range []struct {
		name string
		own  bool
	}{{"the parent's", true}, {"another", false}} {
		t.Run(tt.name, func(t *testing.T) {
			lab := nettest.New(t)
			ns := newNamespace(t)
			c := testChild(configs.ModePassthru, 1)
			if tt.own {
				c.MAC = lab.Host.MAC
			}
			must(t, create(t, lab, ns, c))
			must(t, ns.Up(c))
			for who, ns := range map[string]*netsetup.Namespace{"the child": ns, "the parent": lab.Host.Namespace} {
				name := map[string]string{"the child": "net0", "the parent": "lab0"}[who]
				if got := linkIn(t, ns, name).Attrs().HardwareAddr; got.String() != c.MAC.String() {
					t.Errorf("%s has %s, want %s", who, got, c.MAC)
				}
			}
			must(t, ns.Delete(c))
			if got := linkIn(t, lab.Host.Namespace, "lab0").Attrs().HardwareAddr; got.String() != lab.Host.MAC.String() {
				t.Errorf("the parent has %s afterwards, want its own %s", got, lab.Host.MAC)
			}
		})
	}
}

func linkIn(t testing.TB, ns *netsetup.Namespace, name string) (link netlink.Link) {
	t.Helper()
	must(t, ns.Do(func() (err error) {
		link, err = netlink.LinkByName(name)
		return err
	}))
	return link
}

// A NIC without unicast filtering, as veth, is promiscuous with any other child
// that is up; so these are alone on theirs.
func TestPromiscuity(t *testing.T) {
	for _, tt := range []struct {
		name             string
		promisc          bool
		flag             bool
		promiscuity, all int // while up
	}{
		{name: "passthru", promisc: true, promiscuity: 1, all: 0},
		{name: "passthru without promisc", promisc: false, flag: true, promiscuity: 0, all: 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := nettest.New(t)
			ns := newNamespace(t)
			c := testChild(configs.ModePassthru, 1)
			c.MAC, c.Promisc = lab.Host.MAC, tt.promisc
			must(t, create(t, lab, ns, c))
			if got := strings.Contains(details(t, ns), "nopromisc"); got != tt.flag {
				t.Errorf("nopromisc flag: %t\n%s", got, details(t, ns))
			}
			parent := func(when string, promiscuity, all int) {
				out, err := inside(lab.Host.Namespace, "ip", "-d", "link", "show", "lab0")
				must(t, err)
				if want := fmt.Sprintf("promiscuity %d", promiscuity); !strings.Contains(out, want) {
					t.Errorf("%s: want the parent at %s:\n%s", when, want, out)
				}
				if want := fmt.Sprintf("allmulti %d", all); strings.Contains(out, "allmulti") && !strings.Contains(out, want) {
					t.Errorf("%s: want the parent at %s:\n%s", when, want, out)
				}
			}
			parent("down", 0, 0)
			must(t, ns.Up(c))
			parent("up", tt.promiscuity, tt.all)
			must(t, ns.Delete(c))
			parent("deleted", 0, 0)
		})
	}
}

// The kernel keeps a parent at all multicast for a child without promisc that
// nobody took it back for. When this fails, Up and Delete can do without their
// care for it.
func TestKernelForgetsAllMulticast(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	c := testChild(configs.ModePassthru, 1)
	c.MAC, c.Promisc = lab.Host.MAC, false
	must(t, create(t, lab, ns, c))
	must(t, ns.Up(c))
	must(t, ns.SetFilter(c, netsetup.Filter{AllMulticast: true}))
	link := linkIn(t, ns, "net0")
	must(t, ns.Do(func() error { return netlink.LinkDel(link) }))
	out, err := inside(lab.Host.Namespace, "ip", "-d", "link", "show", "lab0")
	must(t, err)
	if !strings.Contains(out, "allmulti 1") {
		t.Errorf("the parent no longer hears all multicast:\n%s", out)
	}
}

func TestCreateErrors(t *testing.T) {
	lab := nettest.New(t)
	lab.AddNIC("port0", nettest.NIC{Bridge: "br0"})
	ns, other := newNamespace(t), newNamespace(t)
	must(t, create(t, lab, ns, testChild(configs.ModeBridge, 1)))
	must(t, ns.Up(testChild(configs.ModeBridge, 1)))

	edit := func(change func(*netsetup.Child)) netsetup.Child {
		c := testChild(configs.ModeBridge, 2)
		change(&c)
		return c
	}
	for _, tt := range []struct {
		name  string
		child netsetup.Child
		want  error
		link  string
	}{
		{"no such parent", edit(func(c *netsetup.Child) { c.Parent = "eth9" }), nil, "net0@eth9"},
		{"bridge port", edit(func(c *netsetup.Child) { c.Parent = "port0" }), unix.EBUSY, "net0@port0"},
		{"loopback", edit(func(c *netsetup.Child) { c.Parent = "lo" }), unix.EINVAL, "net0@lo"},
		{"MTU above", edit(func(c *netsetup.Child) { c.MTU = 9000 }), unix.EINVAL, "net0@lab0"},
		{"passthru beside others", edit(func(c *netsetup.Child) { c.Mode = configs.ModePassthru }), unix.EINVAL, "net0@lab0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := create(t, lab, other, tt.child)
			var typed *netsetup.LinkError
			if !errors.As(err, &typed) || typed.Link != tt.link || typed.Op == "" {
				t.Fatalf("%v (%#v), want a LinkError of %s", err, err, tt.link)
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if links, err := other.Links(); err != nil || len(links) != 0 {
				t.Errorf("left: %v, %v", links, err)
			}
		})
	}
	t.Run("MAC in use", func(t *testing.T) {
		c := edit(func(c *netsetup.Child) { c.MAC = testChild(configs.ModeBridge, 1).MAC })
		must(t, create(t, lab, other, c)) // down, it does no harm
		if err := other.Up(c); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%v, want EADDRINUSE", err)
		}
		must(t, other.Delete(c))
	})
	t.Run("index in use", func(t *testing.T) {
		c := testChild(configs.ModeBridge, 1)
		c.MAC = mac(0x77)
		if err := create(t, lab, ns, c); !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBUSY) {
			t.Errorf("%v, want EEXIST or EBUSY", err)
		}
	})
}

// The name of a link that was made again is not enough to open its tap.
func TestOpenTapsOfAnotherLink(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	c := testChild(configs.ModeBridge, 1)
	must(t, create(t, lab, ns, c))
	wrong := c
	wrong.Index++
	taps, err := ns.OpenTaps(wrong)
	want := fmt.Sprintf("net0@lab0: open tap: the link has index %d, not %d: it is not the one that was made", c.Index, wrong.Index)
	if err == nil || err.Error() != want || taps != nil {
		t.Errorf("%v, %v; want %s", taps, err, want)
	}
	missing := c
	missing.Name = "net9"
	if _, err := ns.OpenTaps(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want that it does not exist", err)
	}
}

func TestTooManyQueues(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	c := testChild(configs.ModeBridge, 1)
	must(t, create(t, lab, ns, c))
	c.Queues = netsetup.MaxQueues + 1
	if _, err := ns.OpenTaps(c); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "256 queues") {
		t.Errorf("%v, want EBUSY and why", err)
	}
	c.Queues = netsetup.MaxQueues // all were closed again
	openTaps(t, ns, c)
}

func TestTry(t *testing.T) {
	nettest.Root(t)
	if err := netsetup.Try(); err != nil {
		t.Error(err)
	}
}

// inside runs a program in a namespace and returns what it wrote.
func inside(ns *netsetup.Namespace, words ...string) (string, error) {
	var out strings.Builder
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Do(cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}
