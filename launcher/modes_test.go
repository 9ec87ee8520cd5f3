package launcher

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// frames is how many frames each cell of the matrix sends.
const frames = 5

// reach is who gets what in one mode on one kind of switch; true is every
// frame once, false is none.
type reach struct {
	SiblingUnicast   bool // from the sibling, to the guest's MAC
	SiblingBroadcast bool // from the sibling, to everybody
	Echo             bool // the sibling's broadcast, back to the sibling
	OutsideUnicast   bool
	OutsideBroadcast bool
	UnknownUnicast   bool // from outside, to a MAC that nobody has
}

// column is a mode as the matrix knows it.
type column struct {
	name   string
	nic    func(sources []string) string
	alone  bool // no sibling is possible
	plain  reach
	mirror reach // with a switch that reflects
}

func plainNIC(mode string, lines ...string) func([]string) string {
	return func([]string) string { return nic(mode, lines...) }
}

func sourceNIC(sources []string) string {
	return nic("source", `sources = ["`+strings.Join(sources, `", "`)+`"]`)
}

// columns is what drivers/net/macvlan.c does; the test names each cell that is
// another on the kernel it runs on.
var columns = []column{
	{name: "bridge", nic: plainNIC("bridge"),
		plain:  reach{SiblingUnicast: true, SiblingBroadcast: true, OutsideUnicast: true, OutsideBroadcast: true},
		mirror: reach{SiblingUnicast: true, SiblingBroadcast: true, OutsideUnicast: true, OutsideBroadcast: true}},
	{name: "vepa", nic: plainNIC("vepa"),
		plain:  reach{OutsideUnicast: true, OutsideBroadcast: true},
		mirror: reach{SiblingUnicast: true, SiblingBroadcast: true, OutsideUnicast: true, OutsideBroadcast: true}},
	{name: "private", nic: plainNIC("private"),
		plain:  reach{OutsideUnicast: true, OutsideBroadcast: true},
		mirror: reach{SiblingUnicast: true, Echo: true, OutsideUnicast: true, OutsideBroadcast: true}},
	{name: "passthru", nic: plainNIC("passthru"), alone: true,
		plain:  reach{OutsideUnicast: true, OutsideBroadcast: true, UnknownUnicast: true},
		mirror: reach{Echo: true, OutsideUnicast: true, OutsideBroadcast: true, UnknownUnicast: true}},
	{name: "passthru, nopromisc", nic: plainNIC("passthru", "promisc = false"), alone: true,
		plain:  reach{OutsideUnicast: true, OutsideBroadcast: true, UnknownUnicast: true},
		mirror: reach{Echo: true, OutsideUnicast: true, OutsideBroadcast: true, UnknownUnicast: true}},
	{name: "source, listed", nic: sourceNIC,
		plain:  reach{OutsideUnicast: true, OutsideBroadcast: true, UnknownUnicast: true},
		mirror: reach{SiblingUnicast: true, SiblingBroadcast: true, Echo: true, OutsideUnicast: true, OutsideBroadcast: true, UnknownUnicast: true}},
	// Whatever its list says, the sender of a broadcast gets it back: the kernel
	// knows it by its source MAC and sends it there alone.
	{name: "source, not listed", nic: plainNIC("source", `sources = ["02:00:00:00:00:99"]`), mirror: reach{Echo: true}},
}

// TestModes boots two guests in every mode, on a plain wire and on one whose
// switch reflects, and counts who receives what.
func TestModes(t *testing.T) {
	got := map[string][]reach{}
	for _, hairpin := range []bool{false, true} {
		var opts []nettest.Option
		if hairpin {
			opts = append(opts, nettest.Hairpin)
		}
		b := newBench(t, opts...)
		b.force = true
		for _, c := range columns {
			want := c.plain
			if hairpin {
				want = c.mirror
			}
			r := b.measure(c, want)
			got[c.name] = append(got[c.name], r)
			if r != want {
				t.Errorf("%s, hairpin %v:\n got  %+v\n want %+v", c.name, hairpin, r, want)
			}
			b.clean(c.name)
		}
	}
	table := modeTable(got)
	t.Logf("who receives what:\n%s", table)
	readme, err := os.ReadFile("../README.md")
	if err != nil || !strings.Contains(string(readme), table) {
		t.Errorf("README.md does not hold this table (%v)", err)
	}
}

// measure boots the guests of a column and counts.
func (b *bench) measure(c column, want reach) reach {
	b.t.Helper()
	const macA, macB, unknown = "02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:77"
	outside := b.lab.Outside.MAC.String()
	guestB := b.spec("b", "192.0.2.12/24", c.nic([]string{macA, outside}), fmt.Sprintf("mac = %q", macB))
	guests := []*configs.Guest{guestB}
	if !c.alone {
		guests = append(guests, b.spec("a", "192.0.2.11/24", c.nic([]string{macB, outside}), fmt.Sprintf("mac = %q", macA)))
	}
	consoles := b.boot(guests...)
	receiver, sender := consoles[0], consoles[len(consoles)-1] // alone: the same
	for _, tag := range []string{"sib-uni", "sib-all", "out-uni", "out-all", "unknown"} {
		b.say(receiver, "count eth0 start %s", tag)
	}
	b.say(sender, "count eth0 start %s", "echo")
	for _, console := range consoles {
		b.say(console, "promisc eth0 on") // QEMU's own filter shall not hide what the mode delivers
	}
	b.checkPromiscuity(c)
	if !c.alone {
		b.say(sender, "sendtag eth0 %s sib-uni %s %d", macB, macA, frames)
		b.say(sender, "sendtag eth0 %s sib-all %s %d", wire.Broadcast, macA, frames)
	}
	own := macA
	if c.alone {
		own = macB
	}
	b.say(sender, "sendtag eth0 %s echo %s %d", wire.Broadcast, own, frames)
	b.sendOutside(macB, "out-uni")
	b.sendOutside(wire.Broadcast.String(), "out-all")
	b.sendOutside(unknown, "unknown")

	var r reach
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(300 * time.Millisecond) {
		r = reach{
			SiblingUnicast:   b.counted(receiver, "sib-uni"),
			SiblingBroadcast: b.counted(receiver, "sib-all"),
			Echo:             b.counted(sender, "echo"),
			OutsideUnicast:   b.counted(receiver, "out-uni"),
			OutsideBroadcast: b.counted(receiver, "out-all"),
			UnknownUnicast:   b.counted(receiver, "unknown"),
		}
		if r == want || time.Now().After(deadline) {
			break
		}
	}
	if c.name == "bridge" {
		b.pingIPv6(sender, macB)
	}
	for _, g := range guests {
		b.kill(g.Name)
	}
	return r
}

// pingIPv6 pings a sibling's link-local address, which nobody has configured.
func (b *bench) pingIPv6(from *guesttest.Console, mac string) {
	b.t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		b.t.Fatal(err)
	}
	addr := eui64(hw)
	var reply string
	for range 15 { // the guest's own duplicate address detection takes a second or two
		reply, _, err = from.Run(b.within(30*time.Second), fmt.Sprintf("ping %s%%eth0 3", addr))
		if err == nil && reply == "sent=3 received=3" {
			return
		}
		time.Sleep(time.Second)
	}
	b.t.Errorf("IPv6 between siblings: %s, %v", reply, err)
}

// checkPromiscuity holds the parent against what the two kinds of passthru ask
// of it. Other modes raise it too on a veth, which filters no unicast.
func (b *bench) checkPromiscuity(c column) {
	b.t.Helper()
	if !c.alone {
		return
	}
	parent, err := b.lab.Host.Link("lab0")
	if err != nil {
		b.t.Fatal(err)
	}
	want := 1
	if strings.Contains(c.name, "nopromisc") {
		want = 0
	}
	if got := parent.Attrs().Promisc; got != want {
		b.t.Errorf("%s: the parent's promiscuity is %d, want %d", c.name, got, want)
	}
}

func (b *bench) sendOutside(dst, tag string) {
	b.t.Helper()
	mac, err := net.ParseMAC(dst)
	if err != nil {
		b.t.Fatal(err)
	}
	for range frames {
		if err := b.lab.Outside.Send(b.lab.Outside.NIC, wire.Tagged(mac, b.lab.Outside.MAC, tag)); err != nil {
			b.t.Fatal(err)
		}
	}
}

// counted reports whether a guest has received all frames with a tag, each
// once. Anything but all or none fails the test.
func (b *bench) counted(c *guesttest.Console, tag string) bool {
	b.t.Helper()
	reply := b.say(c, "count eth0 read %s", tag)
	var n wire.Counts
	_, err := fmt.Sscanf(reply, "unicast=%d broadcast=%d multicast=%d other=%d outgoing=%d",
		&n.Unicast, &n.Broadcast, &n.Multicast, &n.Other, &n.Outgoing)
	if err != nil {
		b.t.Fatalf("count: %q: %v", reply, err)
	}
	if n.Received() > frames {
		b.t.Errorf("%s: %d frames arrived, %d were sent", tag, n.Received(), frames)
	}
	return n.Received() >= frames
}

// modeTable is the matrix as it stands in the README.
func modeTable(got map[string][]reach) string {
	rows := []struct {
		name    string
		hairpin int
		cell    func(reach) bool
		sibling bool
	}{
		{"sibling, unicast, plain switch", 0, func(r reach) bool { return r.SiblingUnicast }, true},
		{"sibling, broadcast, plain switch", 0, func(r reach) bool { return r.SiblingBroadcast }, true},
		{"sibling, unicast, hairpin switch", 1, func(r reach) bool { return r.SiblingUnicast }, true},
		{"sibling, broadcast, hairpin switch", 1, func(r reach) bool { return r.SiblingBroadcast }, true},
		{"its own broadcast, hairpin switch", 1, func(r reach) bool { return r.Echo }, false},
		{"outside, unicast", 0, func(r reach) bool { return r.OutsideUnicast }, false},
		{"outside, broadcast", 0, func(r reach) bool { return r.OutsideBroadcast }, false},
		{"outside, unicast to nobody's MAC", 0, func(r reach) bool { return r.UnknownUnicast }, false},
	}
	var b strings.Builder
	b.WriteString("| a guest receives from |")
	for _, c := range columns {
		b.WriteString(" " + c.name + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, row := range rows {
		b.WriteString("| " + row.name + " |")
		for _, c := range columns {
			word := "no"
			switch {
			case row.sibling && c.alone:
				word = "–"
			case row.cell(got[c.name][row.hairpin]):
				word = "yes"
			}
			b.WriteString(" " + word + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}
