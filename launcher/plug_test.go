package launcher

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup"
)

// hotNIC is a NIC that tests plug into a running guest.
var hotNIC = []string{"parent=lab0", "mode=bridge", "pin=mac", "bandwidth.outbound=1gbit"}

// TestAttach plugs a NIC in and out while another has traffic, fifty times.
func TestAttach(t *testing.T) {
	b := newBench(t)
	g := b.spec("hot", "192.0.2.11/24", nic("bridge"))
	c := b.boot(g)[0]
	const cycles = 50
	lost := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		sent, received := 0, 0
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
				s, r, err := b.lab.Outside.Ping(context.Background(), netip.MustParseAddr("192.0.2.11"), 20, 50*time.Millisecond)
				if err != nil {
					lost <- err.Error()
					return
				}
				sent, received = sent+s, received+r
			}
		}
		lost <- fmt.Sprintf("%d of %d answered", received, sent)
		if received == sent {
			close(lost)
		}
	}()
	descriptors := openDescriptors(t, b.observe(g))
	b.eventually(5*time.Second, "what a boot has left is closed", func() string {
		time.Sleep(200 * time.Millisecond)
		before := descriptors
		if descriptors = openDescriptors(t, b.observe(g)); descriptors != before {
			return fmt.Sprintf("%v, were %v", descriptors, before)
		}
		return ""
	})
	var slowest time.Duration
	for i := range cycles {
		began := time.Now()
		n, err := b.attach(g, hotNIC...)
		if err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
		if i == 0 {
			b.eventually(5*time.Second, "the guest sees the card", func() string { return b.guestHas(c, n.MAC, true) })
		}
		if err := b.detach(g, n.Name); err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
		slowest = max(slowest, time.Since(began))
	}
	close(done)
	t.Logf("%d cycles, the slowest %v; meanwhile on the other NIC: %s", cycles, slowest.Round(time.Millisecond), <-lost)
	if _, whole := <-lost; whole {
		t.Error("frames were lost on the other NIC")
	}
	b.eventually(5*time.Second, "descriptors", func() string {
		if now := openDescriptors(t, b.observe(g)); now != descriptors {
			return fmt.Sprintf("%v, were %v", now, descriptors)
		}
		return ""
	})
	b.wantNICs(g, "net0")
}

// leftovers says what there is of a second NIC in the kernel or QEMU.
func (b *bench) leftovers(g *configs.Guest) (found string) {
	b.t.Helper()
	b.inNamespace(g, func(ns *netsetup.Namespace, _ *record) error {
		links, err := ns.Links()
		for _, l := range links {
			if l.Attrs().Name != "net0" {
				found += " link " + l.Attrs().Name
			}
		}
		return err
	})
	client, err := Control(b.within(5*time.Second), b.base, g.Name)
	b.must(err)
	defer client.Close()
	var pci json.RawMessage
	b.must(client.Execute(b.within(5*time.Second), "query-pci", nil, &pci))
	if strings.Contains(string(pci), `"qdev_id": "nic1"`) || strings.Contains(string(pci), `"qdev_id":"nic1"`) {
		found += " card nic1"
	}
	return found
}

// TestNICSet changes a plugged NIC, and has the next supervisor find what was set.
func TestNICSet(t *testing.T) {
	b := newBench(t)
	g := b.spec("changing", "192.0.2.11/24", nic("bridge"))
	c := b.boot(g)[0]
	set := func(words ...string) error {
		return b.command(g, CommandSet, NICArguments{Name: "net0", Words: words}, nil)
	}
	b.must(set("link=down"))
	if got := b.say(c, "carrier eth0"); got != "down" {
		t.Errorf("carrier after link=down: %s", got)
	}
	if got := b.pinged(c, "192.0.2.1"); got == "" {
		t.Error("a guest without link was answered")
	}
	b.must(set("link=up"))
	b.eventually(5*time.Second, "ping after link=up", func() string { return b.pinged(c, "192.0.2.1") })

	all := []string{"mode=vepa", "multicast=all", "pin=true", "addresses=192.0.2.11", "bandwidth.outbound=10mbit", "link=down"}
	b.must(set(all...))
	b.killSupervisor(g.Name)
	if report, err := b.startSoon(g.Path); err != nil || !report.Adopted {
		t.Fatalf("adoption: %+v, %v", report, err)
	}
	b.eventually(2*time.Second, "what was set is there after adoption", func() string {
		n := b.observe(g).NICs[0]
		if n.Mode != "vepa" || n.Multicast != "all" || n.Pin != configs.PinAll || n.Bandwidth == nil || n.Link != LinkDown || !b.filter(g).AllMulticast {
			return fmt.Sprintf("%+v", n)
		}
		return ""
	})
	for _, wrong := range [][]string{{"mode=passthru"}, {"parent=lab1"}, {"queues=4"}, {"mode=brigde"}, {"pin=perhaps"}} {
		if err := set(wrong...); err == nil {
			t.Errorf("set %v: no error", wrong)
		}
	}
}

func (b *bench) command(g *configs.Guest, command string, args, result any) error {
	b.t.Helper()
	client, err := Control(b.within(5*time.Second), b.base, g.Name)
	b.must(err)
	defer client.Close()
	return client.Execute(b.within(40*time.Second), command, args, result)
}

func (b *bench) attach(g *configs.Guest, words ...string) (n NICStatus, err error) {
	b.t.Helper()
	err = b.command(g, CommandAttach, NICArguments{Words: words, Force: true}, &n)
	return n, err
}

func (b *bench) detach(g *configs.Guest, name string) error {
	b.t.Helper()
	return b.command(g, CommandDetach, NICArguments{Name: name}, nil)
}

func (b *bench) wantNICs(g *configs.Guest, want ...string) {
	b.t.Helper()
	var got []string
	for _, n := range b.observe(g).NICs {
		got = append(got, n.Name)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		b.t.Errorf("%s has the NICs %v, want %v", g.Name, got, want)
	}
}

// guestHas asks a guest whether it has a NIC with this MAC.
func (b *bench) guestHas(c *guesttest.Console, mac string, want bool) string {
	b.t.Helper()
	nics := b.say(c, "nics")
	if strings.Contains(nics, mac) != want {
		return "it has " + nics
	}
	return ""
}

// openDescriptors counts those of the guest's supervisor and of its QEMU.
func openDescriptors(t *testing.T, s Status) [2]int {
	t.Helper()
	var n [2]int
	for i, pid := range []int{s.Supervisor, s.PID} {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		n[i] = len(entries)
	}
	return n
}
