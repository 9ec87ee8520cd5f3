package launcher

import (
	"encoding/json"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

// TestPermit has guests wish for everything, under every policy.
func TestPermit(t *testing.T) {
	own, other := mustMAC("02:00:00:00:00:01"), mustMAC("02:00:00:00:00:02")
	group, second := mustMAC("01:00:5e:00:00:01"), mustMAC("33:33:00:00:00:01")
	groups := qmp.RxFilter{MainMAC: own.String(), Multicast: "normal", MulticastTable: []string{group.String(), second.String()}}
	with := func(change func(*qmp.RxFilter)) *qmp.RxFilter {
		wish := groups
		change(&wish)
		return &wish
	}
	promiscuous := with(func(w *qmp.RxFilter) { w.Promiscuous = true })
	renamed := with(func(w *qmp.RxFilter) { w.MainMAC = other.String() })
	further := with(func(w *qmp.RxFilter) { w.UnicastTable = []string{other.String()} })
	tooMany := with(func(w *qmp.RxFilter) { w.UnicastOverflow = true })
	odd := with(func(w *qmp.RxFilter) {
		w.MulticastTable = []string{"", "x", other.String(), "00:00:00:00:00:00", "01:00:5e:00:00:00:00:01", group.String()}
		w.UnicastTable = []string{group.String(), "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "02:00:00:00:00:00:00:01", other.String()}
	})
	list := netsetup.Filter{Multicast: []net.HardwareAddr{group, second}}
	all := netsetup.Filter{AllMulticast: true}
	none := netsetup.Filter{}
	for _, test := range []struct {
		name      string
		multicast configs.Multicast
		trust     configs.Trust
		mode      configs.Mode
		wish      *qmp.RxFilter
		want      netsetup.Filter
		mac       net.HardwareAddr
		refused   string
	}{
		{"nobody knows", "guest", "none", "bridge", nil, all, own, ""},
		{"nobody knows, all", "all", "none", "bridge", nil, all, own, ""},
		{"nobody knows, off", "off", "all", "passthru", nil, none, own, ""},
		{"groups", "guest", "none", "bridge", &groups, list, own, ""},
		{"groups, all", "all", "none", "bridge", &groups, all, own, ""},
		{"groups, off", "off", "none", "bridge", &groups, none, own, ""},
		{"no groups", "guest", "none", "bridge", with(func(w *qmp.RxFilter) { w.Multicast = "none" }), none, own, ""},
		{"all groups", "guest", "none", "bridge", with(func(w *qmp.RxFilter) { w.Multicast = "all" }), all, own, ""},
		{"more groups than fit", "guest", "none", "bridge", with(func(w *qmp.RxFilter) { w.MulticastOverflow = true }), all, own, ""},
		{"more groups than fit, off", "off", "none", "bridge", with(func(w *qmp.RxFilter) { w.MulticastOverflow = true }), none, own, ""},
		{"promiscuous", "guest", "none", "bridge", promiscuous, all, own, ""},
		{"promiscuous, off", "off", "none", "bridge", promiscuous, none, own, ""},
		{"promiscuous, trusted, bridge", "guest", "all", "bridge", promiscuous, all, own, ""},
		{"promiscuous, passthru", "guest", "none", "passthru", promiscuous, all, own, ""},
		{"promiscuous, MAC trusted, passthru", "guest", "mac", "passthru", promiscuous, all, own, ""},
		{"promiscuous, trusted, passthru", "guest", "all", "passthru", promiscuous, netsetup.Filter{AllMulticast: true, Promisc: true}, own, ""},
		{"promiscuous, trusted, passthru, off", "off", "all", "passthru", promiscuous, netsetup.Filter{Promisc: true}, own, ""},
		{"another MAC", "guest", "none", "bridge", renamed, list, own, `trust = "mac" allows it`},
		{"another MAC, trusted", "guest", "mac", "vepa", renamed, list, other, ""},
		{"another MAC, all trusted", "guest", "all", "bridge", renamed, list, other, ""},
		{"another MAC, trusted, passthru", "guest", "mac", "passthru", renamed, list, other, ""},
		{"a group's MAC", "guest", "mac", "bridge", with(func(w *qmp.RxFilter) { w.MainMAC = group.String() }), list, own, "nobody can have"},
		{"no MAC", "guest", "mac", "bridge", with(func(w *qmp.RxFilter) { w.MainMAC = "00:00:00:00:00:00" }), list, own, "nobody can have"},
		{"everybody's MAC", "guest", "all", "passthru", with(func(w *qmp.RxFilter) { w.MainMAC = "ff:ff:ff:ff:ff:ff" }), list, own, "nobody can have"},
		{"a long MAC", "guest", "mac", "bridge", with(func(w *qmp.RxFilter) { w.MainMAC = "02:00:00:00:00:00:00:01" }), list, own, "nobody can have"},
		{"words as MAC", "guest", "mac", "bridge", with(func(w *qmp.RxFilter) { w.MainMAC = "x\nlevel=ERROR" }), list, own, ""},
		{"further MACs", "guest", "mac", "passthru", further, list, own, ""},
		{"further MACs, trusted, bridge", "guest", "all", "bridge", further, list, own, ""},
		{"further MACs, trusted, passthru", "guest", "all", "passthru", further, netsetup.Filter{Multicast: list.Multicast, Unicast: []net.HardwareAddr{other}}, own, ""},
		{"too many MACs", "guest", "mac", "passthru", tooMany, list, own, ""},
		{"too many MACs, trusted", "guest", "all", "passthru", tooMany, netsetup.Filter{Multicast: list.Multicast, Promisc: true}, own, ""},
		{"a list longer than QEMU's", "guest", "none", "bridge", with(func(w *qmp.RxFilter) { w.MulticastTable = slices.Repeat(w.MulticastTable, 33) }), all, own, ""},
		{"what is no group", "guest", "none", "bridge", odd, netsetup.Filter{Multicast: []net.HardwareAddr{group}}, own, ""},
		{"what is no station", "guest", "all", "passthru", odd, netsetup.Filter{Multicast: []net.HardwareAddr{group}, Unicast: []net.HardwareAddr{other}}, own, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := netsetup.Child{NIC: configs.NIC{Mode: test.mode, MAC: own, Multicast: test.multicast, Trust: test.trust}}
			filter, mac, refused := permit(c, test.wish)
			if diff := cmp.Diff(test.want, filter); diff != "" {
				t.Errorf("filter (-want +got):\n%s", diff)
			}
			if mac.String() != test.mac.String() {
				t.Errorf("MAC %s, want %s", mac, test.mac)
			}
			if (refused == "") != (test.refused == "") || !strings.Contains(refused, test.refused) || strings.Contains(refused, "\n") {
				t.Errorf("refused %q, want %q", refused, test.refused)
			}
		})
	}
	ipvtap := netsetup.Child{NIC: configs.NIC{Kind: configs.KindIPvtap, MAC: own, Multicast: "all"}}
	if _, mac, refused := permit(ipvtap, renamed); mac.String() != own.String() || refused != "" {
		t.Errorf("an ipvtap, which has its parent's MAC: %s, %q", mac, refused)
	}
}

// FuzzPermit has a QEMU answer anything to query-rx-filter, under every policy.
func FuzzPermit(f *testing.F) {
	const answer = `[{"promiscuous":true,"name":"nic0","main-mac":"02:00:00:00:00:02","unicast":"normal","vlan":"none","vlan-table":[],` +
		`"unicast-table":["02:00:00:00:00:03"],"multicast":"normal","multicast-overflow":false,"unicast-overflow":false,` +
		`"multicast-table":["01:00:5e:00:00:01","33:33:00:00:00:01"],"broadcast-allowed":true}]`
	for policy := range byte(45) {
		f.Add(policy, []byte(answer))
	}
	f.Add(byte(0), []byte(strings.Replace(answer, "true", "false", 1)))
	f.Add(byte(44), []byte(`[{"main-mac":"ff:ff:ff:ff:ff:ff","multicast-table":["x","`+strings.Repeat(`01:00:5e:00:00:01","`, 100)+`"]}]`))
	f.Fuzz(func(t *testing.T, policy byte, answer []byte) {
		var list []qmp.RxFilter
		if json.Unmarshal(answer, &list) != nil || len(list) != 1 {
			return // as QueryRxFilter refuses it
		}
		own := mustMAC("02:00:00:00:00:01")
		c := netsetup.Child{NIC: configs.NIC{
			MAC:       own,
			Multicast: []configs.Multicast{configs.MulticastGuest, configs.MulticastAll, configs.MulticastOff}[policy%3],
			Trust:     []configs.Trust{configs.TrustNone, configs.TrustMAC, configs.TrustAll}[policy/3%3],
			Mode:      []configs.Mode{configs.ModeBridge, configs.ModePrivate, configs.ModeVEPA, configs.ModePassthru, configs.ModeSource}[policy/9%5],
		}}
		filter, mac, refused := permit(c, &list[0])
		if configs.CheckMAC(mac) != nil || c.Trust == configs.TrustNone && !slices.Equal(mac, own) {
			t.Errorf("trust %q: MAC %s", c.Trust, mac)
		}
		if all := c.Trust == configs.TrustAll && c.Mode == configs.ModePassthru; !all && (filter.Promisc || filter.Unicast != nil) {
			t.Errorf("trust %q, mode %s: %+v", c.Trust, c.Mode, filter)
		}
		if c.Multicast == configs.MulticastOff && (filter.AllMulticast || filter.Multicast != nil) || c.Multicast == configs.MulticastAll && !filter.AllMulticast {
			t.Errorf("multicast %q: %+v", c.Multicast, filter)
		}
		if len(filter.Multicast) > maxListed || len(filter.Unicast) > maxListed || len(refused) > 200 || strings.ContainsAny(refused, "\n\x1b") {
			t.Errorf("%d groups, %d addresses, refused %.300q", len(filter.Multicast), len(filter.Unicast), refused)
		}
		for _, group := range filter.Multicast {
			if len(group) != 6 || group[0]&1 == 0 {
				t.Errorf("group %s", group)
			}
		}
		for _, station := range filter.Unicast {
			if configs.CheckMAC(station) != nil {
				t.Errorf("station %s", station)
			}
		}
	})
}

func mustMAC(text string) net.HardwareAddr {
	mac, err := net.ParseMAC(text)
	if err != nil {
		panic(err)
	}
	return mac
}
