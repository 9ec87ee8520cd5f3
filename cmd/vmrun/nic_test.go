package main

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
	"vmrun/netsetup"
)

// web1 is a guest about which there is a lot to say.
func web1() launcher.Status {
	now := time.Now()
	return launcher.Status{
		Name: "web1", State: launcher.StateRunning, PID: 20, Supervisor: 10, Started: now,
		NICs: []launcher.NICStatus{{
			Name: "net0", Parent: "eth0", Mode: configs.ModeBridge, Kind: configs.KindMacvtap, MAC: "52:54:00:00:00:01", MTU: 1500, Queues: 2,
			Index: 7, Vhost: true, Addresses: []string{"192.0.2.11", "192.0.2.12", "2001:db8::11"},
			Learned: []netsetup.Address{
				{IP: netip.MustParseAddr("192.0.2.12"), Source: netsetup.SourceARP, Seen: now, Conflict: "52:54:00:00:00:99"},
				{IP: netip.MustParseAddr("2001:db8::11"), Source: netsetup.SourceND, Seen: now.Add(-time.Hour * 3)},
				{IP: netip.MustParseAddr("fe80::1"), Source: netsetup.SourceND, Seen: now},
			},
			Link: launcher.LinkUp, Multicast: configs.MulticastGuest, Groups: []string{"33:33:00:00:00:01"}, Trust: configs.TrustNone,
			HostAccess: true, Unrouted: map[netip.Addr]string{netip.MustParseAddr("2001:db8::11"): "it is the gateway's"},
			Bandwidth: &configs.Bandwidth{Inbound: 100_000_000},
			Refused:   "the guest set its MAC\x1b[2J", Note: "the MTU",
		}, {
			Name: "net1", Parent: "eth0", VLAN: 100, Kind: configs.KindIPvtap, MAC: "52:54:00:00:00:02", Queues: 1, Link: launcher.LinkNoCarrier,
			Multicast: configs.MulticastAll, Trust: configs.TrustNone, Pin: configs.PinAll, Dropped: &netsetup.Refusals{MAC: 2, DHCP: 1},
			Addresses: []string{"198.51.100.1"},
		}},
	}
}

func lines(t *testing.T, print func(*bytes.Buffer) error) string {
	t.Helper()
	var out bytes.Buffer
	if err := print(&out); err != nil {
		t.Fatal(err)
	}
	var trimmed []string
	for line := range strings.Lines(out.String()) {
		trimmed = append(trimmed, strings.TrimRight(line, " \n"))
	}
	return strings.Join(trimmed, "\n")
}

// Everything about a NIC is said, what is urgent first, and nothing of it moves
// the cursor.
func TestPrintStatus(t *testing.T) {
	got := lines(t, func(b *bytes.Buffer) error { return printStatus(b, web1()) })
	_, got, _ = strings.Cut(got, "supervisor")
	want := `   pid 10
nic net0     bridge on eth0, MAC 52:54:00:00:00:01, MTU 1500, 2 queues, vhost, ifindex 7
  !          the guest set its MAC\x1b[2J
  !          to allow it: vmrun nic web1 set net0 trust=mac
  !          the MTU
  !          192.0.2.12 is claimed by 52:54:00:00:00:99 too: give one of the two another address
  link       up
  address    192.0.2.11, by the spec, not seen so far
  address    2001:db8::11, by nd, seen 3h0m ago
  address    192.0.2.12, by arp, seen 0s ago, 52:54:00:00:00:99 claims it too!
  address    fe80::1, by nd, seen 0s ago, link-local
  multicast  guest: 1 group joined
  trust      none
  host       does not reach 2001:db8::11: it is the gateway's
  bandwidth  100mbit to the guest, no limit from it
nic net1     ipvtap on eth0.100, MAC 52:54:00:00:00:02, 1 queue, ifindex 0
  link       no carrier: eth0.100 is down, or its cable is out: ip link show eth0.100
  address    198.51.100.1, by the spec, not seen so far
  multicast  all is let in
  trust      none
  pin        to its MAC and addresses, dropped: MAC 2, DHCP 1`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestPrintNICs(t *testing.T) {
	got := lines(t, func(b *bytes.Buffer) error { return printNICs(b, web1()) })
	want := `NIC   PARENT    MODE    MAC                MTU   LINK        ADDRESSES
net0  eth0      bridge  52:54:00:00:00:01  1500  up          192.0.2.11 2001:db8::11 +1
net1  eth0.100  ipvtap  52:54:00:00:00:02  -     no carrier  198.51.100.1`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestPrintAddresses(t *testing.T) {
	got := lines(t, func(b *bytes.Buffer) error { return printAddresses(b, useful(web1().GuestAddresses(), false)) })
	want := `NIC   ADDRESS       SOURCE  SEEN      NOTE
net0  192.0.2.11    spec    never
net1  198.51.100.1  spec    never
net0  2001:db8::11  nd      3h0m ago
net0  192.0.2.12    arp     0s ago    52:54:00:00:00:99 claims it too!`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// Link-local addresses are for who asks for them, and better than nothing.
func TestUseful(t *testing.T) {
	addr := func(texts ...string) (list []launcher.GuestAddress) {
		for _, text := range texts {
			list = append(list, launcher.GuestAddress{IP: netip.MustParseAddr(text)})
		}
		return list
	}
	for _, tt := range []struct {
		name string
		list []launcher.GuestAddress
		all  bool
		want int
	}{
		{"none", nil, false, 0},
		{"global alone", addr("192.0.2.1", "2001:db8::1"), false, 2},
		{"both", addr("192.0.2.1", "fe80::1"), false, 1},
		{"both, all", addr("192.0.2.1", "fe80::1"), true, 2},
		{"link-local alone", addr("169.254.0.1", "fe80::1"), false, 2},
	} {
		if got := useful(tt.list, tt.all); len(got) != tt.want {
			t.Errorf("%s: %v, want %d", tt.name, got, tt.want)
		}
	}
}

func TestMetric(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 9949: "9.9 kB", 9950: "10 kB", 999_499: "999 kB", 999_500: "1.0 MB", 1 << 63: "9.2 EB",
	} {
		if got := metric(n, "B"); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

// No text from elsewhere reaches the terminal as anything but letters.
func TestSafe(t *testing.T) {
	for text, want := range map[string]string{
		"plain text, äöü": "plain text, äöü", "\x1b]0;x\a": `\x1b]0;x\a`, "a\r\nb\tc": `a\r\nb\tc`, "\u009b31m": `\u009b31m`,
		"\u202etxt": `\u202etxt`, "\xff": "\uFFFD", "it's": "it's",
	} {
		if got := safe(text); got != want && want != "\uFFFD" || strings.ContainsAny(got, "\x1b\r\n\t\u009b\u202e") {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

// Words are checked each for itself: what they need of the NIC, it may have.
func TestCheckSet(t *testing.T) {
	for _, tt := range []struct {
		words string
		wrong string // a key, or "" where nothing is
	}{
		{"link=up", ""}, {"link=down trust=mac", ""}, {"pin=true", ""}, {"pin=false", ""}, {"addresses=192.0.2.1,2001:db8::1", ""}, {"addresses=", ""},
		{"mode=private", ""}, {"mode=source", ""}, {"bandwidth.inbound=10mbit bandwidth.outbound=", ""}, {"host_access=true", ""}, {"multicast=off", ""}, {"trust=all", ""},
		{"link=sideways", "link"}, {"link=", "link"}, {"mtu=1400", "mtu"}, {"parent=eth1", "parent"}, {"mode=privat", "mode"}, {"pin=tru", "pin"},
		{"bandwidth.inbound=10", "bandwidth.inbound"}, {"addresses=192.0.2.300", "addresses"}, {"host_access=1", "host_access"}, {"colour=red", "colour"}, {"colour", ""},
	} {
		err := checkSet(strings.Fields(tt.words))
		var errs configs.Errors
		switch {
		case tt.words == "colour":
			if err == nil {
				t.Error("a word without a value was taken")
			}
		case tt.wrong == "" && err != nil:
			t.Errorf("%s: %v", tt.words, err)
		case tt.wrong != "" && (!errors.As(err, &errs) || len(errs) != 1 || !strings.HasPrefix(errs[0].Key, tt.wrong) && !strings.Contains(errs[0].Msg, tt.wrong)):
			t.Errorf("%s: %v, want one error about %s", tt.words, err, tt.wrong)
		}
	}
}

func TestCompleteWord(t *testing.T) {
	any := func(string) bool { return true }
	words, directive := completeWord("", []string{"mode=vepa"}, any)
	if len(words) != len(nicKeys())-1 || directive&cobra.ShellCompDirectiveNoSpace == 0 {
		t.Errorf("%d keys with %v, want those not given, and no space after them", len(words), directive)
	}
	words, directive = completeWord("pin=", nil, any)
	if strings.Join(words, " ") != "pin=true pin=false pin=mac" || directive&cobra.ShellCompDirectiveNoSpace != 0 {
		t.Errorf("pin= gives %v with %v", words, directive)
	}
}

func TestReached(t *testing.T) {
	running := web1()
	silent := launcher.Status{Name: "web1", State: launcher.StateRunning, NICs: []launcher.NICStatus{{Addresses: []string{"192.0.2.1"}}}}
	paused := launcher.Status{Name: "web1", State: launcher.StatePaused}
	ended := launcher.Status{Name: "web1", State: launcher.StateEnded, Ended: &launcher.Outcome{Reason: launcher.ReasonPoweroff}}
	for _, tt := range []struct {
		name        string
		goal        goal
		status      launcher.Status
		there, seen bool
		said        string
		done        bool
		fails       bool
	}{
		{"running", goalRunning, running, true, false, "running", true, false},
		{"paused", goalRunning, paused, true, true, "paused", false, false},
		{"not there yet", goalRunning, launcher.Status{}, false, false, "", false, false},
		{"ended before", goalRunning, ended, false, false, "", false, false},
		{"ended meanwhile", goalRunning, ended, false, true, "", false, true},
		{"gone meanwhile", goalIP, launcher.Status{}, false, true, "", false, true},
		{"has an address", goalIP, running, true, true, "2001:db8::11", true, false},
		{"spec's address alone", goalIP, silent, true, true, "", false, false},
		{"stopped", goalStopped, ended, false, true, "the guest powered itself off", true, false},
		{"never there", goalStopped, launcher.Status{}, false, false, "stopped", true, false},
		{"still there", goalStopped, running, true, true, "", false, false},
	} {
		said, done, err := tt.goal.reached(tt.status, tt.there, tt.seen)
		if done != tt.done || (err != nil) != tt.fails || done && said != tt.said {
			t.Errorf("%s: %q, %t, %v", tt.name, said, done, err)
		}
	}
}
