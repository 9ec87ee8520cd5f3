package launcher

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
	"vmrun/netsetup"
)

func TestPlaceAll(t *testing.T) {
	host := netsetup.Host{Parents: map[string]netsetup.Parent{
		"eth0": {Name: "eth0", Kind: "device", MTU: 9000, Up: true, Carrier: true, Addresses: []string{"192.0.2.2/24"},
			Children: []netsetup.Sibling{{Name: "vmrun2", Mode: configs.ModeBridge, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}},
		"eth0.100": {Name: "eth0.100", Kind: "vlan", MTU: 1500, Up: true},
	}}
	list := []Status{
		{Name: "a", State: StateRunning, NICs: []NICStatus{{Name: "net0", Parent: "eth0", Mode: configs.ModePrivate}, {Name: "net1", Parent: "eth0", VLAN: 100, Mode: configs.ModeBridge}}},
		{Name: "b", State: StatePaused, NICs: []NICStatus{{Name: "net0", Parent: "eth9", Mode: configs.ModeBridge}, {Name: "net1", Parent: "eth0", Mode: configs.ModeBridge}}},
		{Name: "c", State: StateRunning},
	}
	got := placeAll(list, host, map[string]map[string]Rate{"a": {"net0": {Inbound: 8, Outbound: 16}}})
	want := []Parent{
		{Name: "eth0", Kind: "device", MTU: 9000, Up: true, Carrier: true, Addresses: []string{"192.0.2.2/24"},
			Links: []HostLink{{Name: "vmrun2", Mode: configs.ModeBridge, MAC: "02:00:00:00:00:01"}},
			NICs: []PlacedNIC{
				{Guest: "b", State: StatePaused, NICStatus: list[1].NICs[1]},
				{Guest: "a", State: StateRunning, NICStatus: list[0].NICs[0], Rate: &Rate{Inbound: 8, Outbound: 16}},
			},
			VLANs: []Parent{{Name: "eth0.100", VLAN: 100, Kind: "vlan", MTU: 1500, Up: true,
				NICs: []PlacedNIC{{Guest: "a", State: StateRunning, NICStatus: list[0].NICs[1]}}}}},
		{Name: "eth9", Gone: true, NICs: []PlacedNIC{{Guest: "b", State: StatePaused, NICStatus: list[1].NICs[0]}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := got[0].Guests(); n != 2 {
		t.Errorf("%d guests on eth0, want 2", n)
	}
}

func TestRatesOf(t *testing.T) {
	count := func(name string, rx, tx uint64) NICStats {
		return NICStats{Name: name, Counters: netsetup.Counters{RxBytes: rx, TxBytes: tx}}
	}
	before := []NICStats{count("net0", 1000, 0), count("net1", 1000, 0)}
	after := []NICStats{count("net0", 2000, 500), count("net1", 10, 0), count("net2", 5, 5)} // net1 was made anew, net2 is new
	want := map[string]Rate{"net0": {Inbound: 16000, Outbound: 8000}}
	if diff := cmp.Diff(want, ratesOf(before, after, 500*time.Millisecond)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The tree of a guest that is pinged has its parent, its addresses and its traffic.
func TestParents(t *testing.T) {
	b := newBench(t)
	g := b.spec("tree", "192.0.2.11/24", nic("bridge"))
	b.boot(g)
	ctx, cancel := context.WithCancel(b.within(30 * time.Second))
	pinged := make(chan struct{})
	go func() {
		defer close(pinged)
		b.lab.Outside.Ping(ctx, netip.MustParseAddr("192.0.2.11"), 200, 20*time.Millisecond)
	}()
	defer func() { cancel(); <-pinged }()
	deadline := time.Now().Add(10 * time.Second)
	for {
		parents := b.parents(300 * time.Millisecond)
		if len(parents) != 1 || parents[0].Name != "lab0" || !parents[0].Carrier || parents[0].Guests() != 1 || len(parents[0].NICs) != 1 {
			t.Fatalf("parents: %+v", parents)
		}
		n := parents[0].NICs[0]
		if n.Guest != "tree" || n.State != StateRunning || n.Rate == nil {
			t.Fatalf("NIC: %+v", n)
		}
		// 50 echoes of 98 bytes or so in a second, both ways.
		if n.Rate.Inbound > 10_000 && n.Rate.Outbound > 10_000 && len(n.Learned) > 0 && n.Rate.Inbound < 1_000_000 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("NIC %+v with rate %+v", n, n.Rate)
		}
	}
	if n := b.parents(0)[0].NICs[0]; n.Rate != nil {
		t.Errorf("measured without being asked: %+v", n.Rate)
	}
	b.lab.SetCarrier("lab0", false)
	defer b.lab.SetCarrier("lab0", true)
	if p := b.parents(0)[0]; p.Carrier || !p.Up {
		t.Errorf("of an unplugged parent: %+v", p)
	}
}

func (b *bench) parents(interval time.Duration) []Parent {
	b.t.Helper()
	var parents []Parent
	err := b.lab.Host.Do(func() (err error) {
		parents, err = Parents(b.within(10*time.Second), b.base, interval)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return parents
}
