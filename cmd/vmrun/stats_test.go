package main

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmrun/launcher"
	"vmrun/netsetup"
)

func TestPrintStats(t *testing.T) {
	list := []guestStats{{Name: "web1", Stats: launcher.Stats{CPUTime: 3.14159, Memory: 268_435_456,
		Disks: []launcher.DiskStats{{Name: "disk0", ReadBytes: 5000, Reads: 9, WriteBytes: 12, Writes: 1, Flushes: 2}},
		NICs: []launcher.NICStats{
			{Name: "net0", Counters: netsetup.Counters{RxBytes: 1_250_000, RxPackets: 900, RxDropped: 3, RxPoliced: 4, TxBytes: 12, TxPackets: 1, TxDropped: 5, TxShaped: 6}},
			{Name: "net1", Pinned: &netsetup.Refusals{MAC: 1, Router: 2}},
		}}}, {Name: "web2", Stats: launcher.Stats{CPUTime: 7322}}}
	got := lines(t, func(b *bytes.Buffer) error { return printStats(b, list) })
	want := `GUEST  CPU TIME  MEMORY
web1   3.14s     268 MB
web2   2h2m      0 B

GUEST  DISK   READ    READS  WRITTEN  WRITES  FLUSHES
web1   disk0  5.0 kB  9      12 B     1       2

GUEST  NIC   RX      PACKETS  DROPPED  LIMITED  TX    PACKETS  DROPPED  LIMITED  FORGED
web1   net0  1.2 MB  900      3        4        12 B  1        5        6        -
web1   net1  0 B     0        0        0        0 B   0        0        0        3`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// Of what a guest may use, the most that can be shown fits into 80 columns.
func TestRatesFit(t *testing.T) {
	p := newPaper(t, 80, 24)
	w := newStatsWatch(&app{}, nil, time.Second, "cpu")
	w.screen = p.screen()
	most := launcher.Rates{CPU: 16, Read: 999e6, Write: 999e6, Rate: launcher.Rate{Inbound: 999e9, Outbound: 999e9}, Lost: 999_999}
	list := []guestStats{
		{Name: "node-with-a-long-name-01", Stats: launcher.Stats{Memory: 999e9, Disks: []launcher.DiskStats{}}, Rates: &most},
		{Name: "web1", Stats: launcher.Stats{Memory: 1e9}, Rates: &launcher.Rates{}},
		{Name: "web2", Stats: launcher.Stats{Memory: 1e9, Disks: []launcher.DiskStats{}}},
	}
	if err := w.show(list); err != nil {
		t.Fatal(err)
	}
	p.want(
		"GUEST                   CPU  MEMORY  READ/s  WRITE/s      RX/s      TX/s  LOST/s",
		"node-with-a-long…  1600.0 %  999 GB  999 MB   999 MB  999 Gbit  999 Gbit  999999",
		"web1                  0.0 %  1.0 GB       ?        ?     0 bit     0 bit       0",
		"web2                      -  1.0 GB       -        -         -         -       -")
}

// The most is first, and what is the same goes by name.
func TestStatsOrder(t *testing.T) {
	names := func(order string) (names []string) {
		list := []guestStats{
			{Name: "c", Stats: launcher.Stats{Memory: 3}},
			{Name: "b", Stats: launcher.Stats{Memory: 1}, Rates: &launcher.Rates{CPU: 1, Read: 1}},
			{Name: "a", Stats: launcher.Stats{Memory: 2}, Rates: &launcher.Rates{CPU: 0.5, Lost: 1, Rate: launcher.Rate{Inbound: 9}}},
		}
		sortStats(list, order)
		for _, g := range list {
			names = append(names, g.Name)
		}
		return names
	}
	for order, want := range map[string][]string{
		"cpu": {"b", "a", "c"}, "memory": {"c", "a", "b"}, "read": {"b", "a", "c"}, "write": {"a", "b", "c"}, "rx": {"a", "b", "c"},
		"tx": {"a", "b", "c"}, "lost": {"a", "b", "c"}, "name": {"a", "b", "c"},
	} {
		if diff := cmp.Diff(want, names(order)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", order, diff)
		}
	}
	for order := range statsOrders {
		if !slices.Contains(statsOrderNames, order) {
			t.Errorf("%s is not offered", order)
		}
	}
}
