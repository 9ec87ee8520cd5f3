package launcher

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vmrun/netsetup"
)

// TestKnobs has a guest tell what became of its NIC's settings.
func TestKnobs(t *testing.T) {
	b := newBench(t)
	g := b.spec("knobs", "192.0.2.11/24", nic("bridge", "txqueuelen = 1234", "mtu = 1400", `bandwidth = { inbound = "20mbit", outbound = "10mbit" }`),
		nic("vepa", "host_offload = false", "guest_offload = false", "queues = 1"))
	b.rewrite(g, "cpus = 2")
	c := b.boot(mustLoad(t, g.Path))[0]
	for _, ask := range []struct{ command, want string }{
		{"queues eth0", "2"}, {"queues eth1", "1"}, {"mtu eth0", "1400"}, {"mtu eth1", "1500"},
	} {
		if got := b.say(c, "%s", ask.command); !strings.Contains(got, ask.want) {
			t.Errorf("%s: %s, want %s", ask.command, got, ask.want)
		}
	}
	with, without := b.say(c, "offload eth0"), b.say(c, "offload eth1")
	t.Logf("offloads: by default %s; without %s", with, without)
	if with == without {
		t.Error("offloads that were taken away are there")
	}
	b.inNamespace(g, func(ns *netsetup.Namespace, rec *record) error {
		links, err := ns.Links()
		for _, l := range links {
			if a := l.Attrs(); a.Name == "net0" && (a.TxQLen != 1234 || a.MTU != 1400) {
				t.Errorf("net0 has txqueuelen %d and MTU %d", a.TxQLen, a.MTU)
			}
			if m, ok := l.(*netlink.Macvtap); ok && m.Name == "net1" && m.Mode != netlink.MACVLAN_MODE_VEPA {
				t.Errorf("net1 has mode %v", m.Mode)
			}
		}
		return err
	})
	b.lab.Outside.ServeDiscard(9)
	var mbit float64
	reply := b.say(c, "tcp send 192.0.2.1 9 3")
	if _, err := fmt.Sscanf(reply[strings.Index(reply, "mbit="):], "mbit=%f", &mbit); err != nil || mbit > 12 || mbit < 5 {
		t.Errorf("a NIC limited to 10mbit sends %s (%v)", reply, err)
	}
	var stats Stats
	b.must(b.command(g, CommandStats, nil, &stats))
	if len(stats.NICs) != 2 || stats.NICs[0].TxBytes < 1_000_000 || stats.NICs[0].RxPackets == 0 || stats.CPUTime < 1 || stats.Memory < 50<<20 {
		t.Errorf("counters: %+v", stats)
	}
}
