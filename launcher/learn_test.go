package launcher

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup/nettest"
)

// TestLearnedAddresses has guests in every mode get addresses in every way, and
// looks for how long it takes until vmrun knows.
func TestLearnedAddresses(t *testing.T) {
	b := newBench(t)
	b.force = true
	b.lab.ServeAddresses(t)
	b.before = b.lab.Snapshot(t, b.base)
	outside := b.lab.Outside.MAC.String()
	sources := fmt.Sprintf("sources = [%q]", outside)
	for _, mode := range []string{"bridge", "vepa", "private", "passthru", "source"} {
		lines := []string{}
		if mode == "source" {
			lines = append(lines, sources)
		}
		g := b.spec(mode, "", nic(mode, lines...))
		c := b.boot(g)[0]
		began := time.Now()
		b.say(c, "addr eth0 192.0.2.11/24")
		b.say(c, "ping 192.0.2.1 1")
		took := []string{b.learns(g, "arp", began, "192.0.2.11")}
		b.say(c, "addr del eth0 192.0.2.11/24")

		reply := b.say(c, "dhcp eth0 20")
		began = time.Now()
		leased := strings.TrimPrefix(strings.Fields(reply)[0], "address=")
		leased, _, _ = strings.Cut(leased, "/")
		took = append(took, b.learns(g, "dhcp", began, leased))

		b.say(c, "slaac eth0 on")
		var auto []string
		b.eventually(10*time.Second, mode+": SLAAC in the guest", func() string {
			auto = b.autoconfigured(c)
			return other(fmt.Sprint(len(auto) > 0), "true")
		})
		began = time.Now()
		took = append(took, b.learns(g, "nd", began, auto...))
		t.Logf("%-8s static %s, DHCP %s, SLAAC %s", mode, took[0], took[1], took[2])

		b.answers(b.lab.Host, leased) // in some modes nobody hears it
		for _, a := range b.observe(g).NICs[0].Learned {
			own := slices.Contains(append(auto, leased, "192.0.2.11"), a.IP.String()) || a.IP.IsLinkLocalUnicast()
			if !own || a.Conflict != "" || a.Since.IsZero() || time.Since(a.Seen) > time.Minute {
				t.Errorf("%s: learned %+v", mode, a)
			}
		}
		b.say(c, "ping 192.0.2.1 1") // a release that waits for ARP is lost: its address goes
		b.say(c, "dhcp-release eth0")
		b.eventually(2*time.Second, mode+": a released address is forgotten", func() string {
			if slices.Contains(b.observe(g).NICs[0].Addresses, leased) {
				return leased + " is still there"
			}
			return ""
		})
		b.kill(g.Name)
		b.clean(mode)
	}
}

// learns waits until a guest's status has all addresses, and says how long that took.
func (b *bench) learns(g *configs.Guest, source string, began time.Time, want ...string) string {
	b.t.Helper()
	b.eventually(2*time.Second, g.Name+": learned by "+source, func() string {
		n := b.observe(g).NICs[0]
		for _, addr := range want {
			if !slices.Contains(n.Addresses, addr) {
				return fmt.Sprintf("%s is not in %v", addr, n.Addresses)
			}
		}
		return ""
	})
	return time.Since(began).Round(time.Millisecond).String()
}

// autoconfigured are a guest's global IPv6 addresses.
func (b *bench) autoconfigured(c *guesttest.Console) (list []string) {
	b.t.Helper()
	for _, text := range strings.FieldsFunc(b.say(c, "addrs eth0"), func(r rune) bool { return r == ',' || r == '=' || r == ' ' }) {
		if p, err := netip.ParsePrefix(text); err == nil && nettest.OutsideAddr6.Contains(p.Addr()) {
			list = append(list, p.Addr().String())
		}
	}
	return list
}
