package nettest_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// TestMain makes the test's binary a child process that waits to be killed.
func TestMain(m *testing.M) {
	if os.Getenv("NETTEST_WAIT") != "" {
		time.Sleep(time.Minute)
		return
	}
	os.Exit(nettest.M{M: m}.Run())
}

func waiting(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "NETTEST_WAIT=1")
	return cmd
}

var wires = []struct {
	name string
	opts []nettest.Option
}{
	{"plain", nil},
	{"switch", []nettest.Option{nettest.Switch}},
	{"hairpin", []nettest.Option{nettest.Hairpin}},
	{"jumbo", []nettest.Option{nettest.Hairpin, nettest.MTU(9000)}},
}

func TestPing(t *testing.T) {
	for _, tt := range wires {
		t.Run(tt.name, func(t *testing.T) {
			lab := nettest.New(t, tt.opts...)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			zoned, err := lab.Outside.LinkLocal(lab.Outside.NIC)
			if err != nil {
				t.Fatal(err)
			}
			for _, ping := range []struct {
				name string
				from *nettest.Host
				to   netip.Addr
			}{
				{"to the host", lab.Outside, nettest.HostAddr4.Addr()},
				{"to the host, IPv6", lab.Outside, nettest.HostAddr6.Addr()},
				{"to the outside", lab.Host, nettest.OutsideAddr4.Addr()},
				{"to the outside, IPv6", lab.Host, nettest.OutsideAddr6.Addr()},
				{"to the outside, link-local", lab.Host, zoned.WithZone(lab.Host.NIC)},
			} {
				sent, received, err := ping.from.Ping(ctx, ping.to, 3, 10*time.Millisecond)
				if err != nil || sent != 3 || received != 3 {
					t.Errorf("ping %s: %d sent, %d received, %v", ping.name, sent, received, err)
				}
			}
		})
	}
}

func TestPingNobody(t *testing.T) {
	lab := nettest.New(t)
	err := lab.Host.Do(func() error {
		p := wire.Pinger{Interval: time.Millisecond, Wait: 50 * time.Millisecond}
		_, received, err := p.Ping(t.Context(), netip.MustParseAddr("192.0.2.99"), 2)
		if received != 0 {
			t.Errorf("%d answers from nobody", received)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if _, _, err := lab.Host.Ping(t.Context(), netip.MustParseAddr("198.51.100.1"), 1, 0); err == nil {
		t.Error("a ping without a route succeeded")
	}
}

// Only the hairpin switch shows the host its own frames again.
func TestReflection(t *testing.T) {
	for _, tt := range wires {
		t.Run(tt.name, func(t *testing.T) {
			lab := nettest.New(t, tt.opts...)
			here := lab.Host.Capture(lab.Host.NIC, "reflect-me")
			there := lab.Outside.Capture(lab.Outside.NIC, "reflect-me")
			if err := lab.Host.Send(lab.Host.NIC, wire.Tagged(wire.Broadcast, lab.Host.MAC, "reflect-me")); err != nil {
				t.Fatal(err)
			}
			want := 0
			if strings.Contains("hairpin jumbo", tt.name) {
				want = 1
			}
			if got := there.Wait(1, time.Second); got.Broadcast != 1 {
				t.Errorf("the outside saw %+v", got)
			}
			// The switch has sent both copies before the outside had its own.
			if got := here.Wait(want, 100*time.Millisecond); got.Broadcast != want || got.Outgoing != 1 {
				t.Errorf("the host saw %+v, want %d reflected", got, want)
			}
		})
	}
}

func TestAddNIC(t *testing.T) {
	lab := nettest.New(t)
	lab.AddNIC("lab1", nettest.NIC{MTU: 1400, Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.2/24")}})
	lab.AddNIC("lab2", nettest.NIC{Bridge: "br0"})
	lab.AddNIC("lab3", nettest.NIC{Unplugged: true})
	link := func(name string) *netlink.LinkAttrs {
		t.Helper()
		l, err := lab.Host.Link(name)
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs()
	}
	if got := link("lab1").MTU; got != 1400 {
		t.Errorf("lab1 has MTU %d", got)
	}
	if link("lab2").MasterIndex != link("br0").Index {
		t.Error("lab2 is no port of br0")
	}
	if got := link("lab3").OperState; got == netlink.OperUp {
		t.Errorf("lab3 is %v without a cable", got)
	}
	lab.SetCarrier("lab3", true)
	if got := link("lab3").OperState; got != netlink.OperUp {
		t.Errorf("lab3 is %v with a cable", got)
	}
	lab.RemoveNIC("lab3")
	if _, err := lab.Host.Link("lab3"); err == nil {
		t.Error("lab3 is still there")
	}
}

func TestRun(t *testing.T) {
	lab := nettest.New(t)
	out, err := lab.Host.Run(exec.Command("cat", "/proc/self/net/dev"))
	if err != nil || !strings.Contains(string(out), "lab0") {
		t.Errorf("a process on the host sees:\n%s%v", out, err)
	}
}

// Whatever keeps a child or a namespace is found, and no longer when it is gone.
func TestSnapshot(t *testing.T) {
	const grace = 0 // one look
	for _, tt := range []struct {
		name string
		// leak leaves something behind until undo.
		leak func(t *testing.T, lab *nettest.Lab) (undo func())
		want string
	}{
		{"a child on the host", func(t *testing.T, lab *nettest.Lab) func() {
			link := addChild(t, lab, lab.Host.Namespace)
			return func() { deleteChild(t, lab.Host.Namespace, link) }
		}, "+ macvlan child0"},
		{"a namespace held by a descriptor", func(t *testing.T, _ *nettest.Lab) func() {
			ns := newNamespace(t)
			return func() { ns.Close() }
		}, "descriptor"},
		{"a child in a namespace held by a descriptor", func(t *testing.T, lab *nettest.Lab) func() {
			ns := newNamespace(t)
			addChild(t, lab, ns)
			return func() { ns.Close() }
		}, "+ macvlan child0"},
		{"a child in a namespace held by a socket", func(t *testing.T, lab *nettest.Lab) func() {
			ns := newNamespace(t)
			addChild(t, lab, ns)
			fd := -1
			if err := ns.Do(func() (err error) {
				fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			ns.Close()
			return func() { unix.Close(fd) }
		}, "a child of lab0 in a namespace that nobody can enter"},
		{"a process with a child", func(t *testing.T, lab *nettest.Lab) func() {
			ns := newNamespace(t)
			addChild(t, lab, ns)
			cmd := waiting()
			if err := ns.Do(cmd.Start); err != nil {
				t.Fatal(err)
			}
			ns.Close()
			return func() { cmd.Process.Kill(); cmd.Wait() }
		}, "lives with child0"},
		{"a process on the host", func(t *testing.T, lab *nettest.Lab) func() {
			cmd := waiting()
			if err := lab.Host.Start(cmd); err != nil {
				t.Fatal(err)
			}
			return func() { cmd.Process.Kill(); cmd.Wait() }
		}, "lives on host"},
		{"a process elsewhere", func(t *testing.T, _ *nettest.Lab) func() {
			cmd := waiting("/run/of/this/test")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			return func() { cmd.Process.Kill(); cmd.Wait() }
		}, "/run/of/this/test"},
		{"another MAC", func(t *testing.T, lab *nettest.Lab) func() {
			setMAC(t, lab.Host, net.HardwareAddr{2, 0, 0, 0, 0, 9})
			return func() { setMAC(t, lab.Host, lab.Host.MAC) }
		}, "mac=02:00:00:00:00:09"},
		{"an address", undone("ip addr add 192.0.2.9/24 dev lab0", "ip addr del 192.0.2.9/24 dev lab0"),
			"+ host: address 192.0.2.9/24"},
		{"an address less", undone("ip addr del 2001:db8::2/64 dev lab0", "ip addr add 2001:db8::2/64 dev lab0 nodad"),
			"- host: address 2001:db8::2/64"},
		{"an altname", undone("ip link property add dev lab0 altname other", "ip link property del dev lab0 altname other"),
			"+ host: altname other of lab0"},
		{"a route of another table", undone("ip route add 198.51.100.0/24 dev lab0 table 7", "ip route flush table 7"),
			"+ host: route 198.51.100.0/24"},
		{"a rule", undone("ip rule add from 192.0.2.9 table 7", "ip rule del from 192.0.2.9 table 7"),
			"+ host: ip rule"},
		{"a proxied neighbour", undone("ip neigh add proxy 2001:db8::9 dev lab0", "ip neigh del proxy 2001:db8::9 dev lab0"),
			"+ host: proxied neighbour 2001:db8::9 on lab0"},
		{"a permanent neighbour", undone("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev lab0", "ip neigh del 192.0.2.9 dev lab0"),
			"+ host: permanent neighbour 192.0.2.9"},
		{"a sysctl", undone("sysctl -qw net.ipv6.conf.lab0.proxy_ndp=1", "sysctl -qw net.ipv6.conf.lab0.proxy_ndp=0"),
			"+ host: /proc/sys/net/ipv6/conf/lab0/proxy_ndp = 1"},
		{"an nftables table", addTable, "+ host: nftables table leaked"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := nettest.New(t)
			s := lab.Snapshot(t, "/run/of/this/test")
			undo := tt.leak(t, lab)
			diff := s.Wait(grace)
			undo()
			if !strings.Contains(diff, tt.want) {
				t.Errorf("lacks %q:\n%s", tt.want, diff)
			}
			s.Check(t)
		})
	}
}

// undone is a leak that a command on the host makes, and another takes back.
func undone(do, takeBack string) func(*testing.T, *nettest.Lab) func() {
	return func(t *testing.T, lab *nettest.Lab) func() {
		run := func(line string) {
			words := strings.Fields(line)
			if out, err := lab.Host.Run(exec.Command(words[0], words[1:]...)); err != nil {
				t.Errorf("%s: %v: %s", line, err, out)
			}
		}
		run(do)
		return func() { run(takeBack) }
	}
}

func addTable(t *testing.T, lab *nettest.Lab) func() {
	table := &nftables.Table{Name: "leaked", Family: nftables.TableFamilyNetdev}
	change := func(do func(c *nftables.Conn)) {
		if err := lab.Host.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			do(c)
			return c.Flush()
		}); err != nil {
			t.Error(err)
		}
	}
	change(func(c *nftables.Conn) { c.AddTable(table) })
	return func() { change(func(c *nftables.Conn) { c.DelTable(table) }) }
}

// What another lab makes at the same time is not this one's.
func TestSnapshotMindsItsOwn(t *testing.T) {
	lab, other := nettest.New(t), nettest.New(t)
	s := lab.Snapshot(t)
	link := addChild(t, other, other.Host.Namespace)
	if diff := s.Wait(0); diff != "" {
		t.Errorf("another lab's child counts:\n%s", diff)
	}
	deleteChild(t, other.Host.Namespace, link)
}

// A lab ends with its test, and takes along who is still in it.
func TestCleanup(t *testing.T) {
	lab := nettest.New(t)
	s := lab.Snapshot(t)
	cmd := waiting()
	t.Run("inner", func(t *testing.T) {
		lab := nettest.New(t, nettest.Hairpin)
		addChild(t, lab, lab.Host.Namespace)
		if err := lab.Host.Start(cmd); err != nil {
			t.Fatal(err)
		}
	})
	if err := cmd.Process.Signal(unix.Signal(0)); err == nil {
		t.Error("the process lives on")
	}
	s.Check(t)
}

func newNamespace(t *testing.T) *netsetup.Namespace {
	t.Helper()
	ns, err := netsetup.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// addChild makes a macvlan child0 of the lab's NIC straight into ns. It is a
// macvlan for a test of ours: a macvtap would make a node in /dev as well.
func addChild(t *testing.T, lab *nettest.Lab, ns *netsetup.Namespace) netlink.Link {
	t.Helper()
	fd := -1
	if err := ns.Do(func() (err error) {
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	parent, err := lab.Host.Link(lab.Host.NIC)
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.Namespace = "child0", parent.Attrs().Index, netlink.NsFd(fd)
	link := &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}
	if err := lab.Host.Do(func() error { return netlink.LinkAdd(link) }); err != nil {
		t.Fatal(err)
	}
	return link
}

func deleteChild(t *testing.T, ns *netsetup.Namespace, link netlink.Link) {
	t.Helper()
	if err := ns.Do(func() error {
		found, err := netlink.LinkByName(link.Attrs().Name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(found)
	}); err != nil {
		t.Error(err)
	}
}

func setMAC(t *testing.T, h *nettest.Host, mac net.HardwareAddr) {
	t.Helper()
	link, err := h.Link(h.NIC)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Do(func() error { return netlink.LinkSetHardwareAddr(link, mac) }); err != nil {
		t.Fatal(err)
	}
}
