package launcher

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
)

// Parent is a NIC of the host, or one of its VLAN devices, with what is on it.
type Parent struct {
	Name      string      `json:"name"`
	VLAN      int         `json:"vlan,omitempty"` // of a VLAN device
	Gone      bool        `json:"gone,omitempty"` // the host has no such link now
	Kind      string      `json:"kind,omitempty"` // as ip -d link says it, "device" for a physical NIC
	MAC       string      `json:"mac,omitempty"`
	MTU       int         `json:"mtu,omitempty"` // bytes
	Up        bool        `json:"up"`
	Carrier   bool        `json:"carrier"`
	Addresses []string    `json:"addresses,omitempty"` // the host's own, in CIDR form
	Default   bool        `json:"default"`             // a default route of the host leads through it
	Links     []HostLink  `json:"links,omitempty"`     // the host's own children of it
	NICs      []PlacedNIC `json:"nics"`                // the guests', by mode
	VLANs     []Parent    `json:"vlans,omitempty"`
}

// HostLink is a child of a parent in the host's own namespace: the one by which
// the host reaches guests, or somebody else's.
type HostLink struct {
	Name string       `json:"name"`
	Mode configs.Mode `json:"mode,omitempty"`
	MAC  string       `json:"mac"`
}

// PlacedNIC is a guest's NIC in its place.
type PlacedNIC struct {
	Guest string `json:"guest"`
	State State  `json:"state"`
	NICStatus
	Rate *Rate `json:"rate,omitempty"` // nil when it was not measured
}

// Rate is how much comes to a guest and leaves it, in bits per second.
type Rate struct {
	Inbound  uint64 `json:"inbound"`
	Outbound uint64 `json:"outbound"`
}

// Guests is how many guests have a NIC on the parent or on its VLANs.
func (p Parent) Guests() int {
	names := map[string]bool{}
	for _, place := range append([]Parent{p}, p.VLANs...) {
		for _, n := range place.NICs {
			names[n.Guest] = true
		}
	}
	return len(names)
}

// Parents are the NICs of the host that the guests below base are on, by name,
// with the traffic of interval; an interval of 0 measures none. Guests that the
// caller may not look at are missing, as List has it.
func Parents(ctx context.Context, base string, interval time.Duration) ([]Parent, error) {
	list, err := List(ctx, base)
	list = slices.DeleteFunc(list, func(s Status) bool { return s.State.Rests() })
	rates := map[string]map[string]Rate{}
	if interval > 0 {
		rates = measureAll(ctx, base, list, interval)
	}
	var names []string
	for _, s := range list {
		for _, n := range s.NICs {
			names = append(names, n.Parent, n.Lower())
		}
	}
	host, surveyErr := netsetup.Survey(names...)
	return placeAll(list, host, rates), errors.Join(err, surveyErr)
}

// measureAll measures the guests at once, by guest and NIC. One that does not
// answer has no rates.
func measureAll(ctx context.Context, base string, list []Status, interval time.Duration) map[string]map[string]Rate {
	var wg sync.WaitGroup
	var mu sync.Mutex
	all := map[string]map[string]Rate{}
	for _, s := range list {
		if s.Supervisor == 0 || len(s.NICs) == 0 {
			continue
		}
		wg.Go(func() {
			rates, err := measure(ctx, base, s.Name, interval)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all[s.Name] = rates
		})
	}
	wg.Wait()
	return all
}

// measure counts a guest's bytes twice.
func measure(ctx context.Context, base, name string, interval time.Duration) (map[string]Rate, error) {
	ctx, cancel := context.WithTimeout(ctx, interval+2*observeTimeout)
	defer cancel()
	client, err := Control(ctx, base, name)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var before, after Stats
	if err := client.Execute(ctx, CommandStats, nil, &before); err != nil {
		return nil, err
	}
	start := time.Now()
	select {
	case <-time.After(interval):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := client.Execute(ctx, CommandStats, nil, &after); err != nil {
		return nil, err
	}
	return ratesOf(before.NICs, after.NICs, time.Since(start)), nil
}

// ratesOf are the rates between two counts. A NIC that was made anew in between
// has none.
func ratesOf(before, after []NICStats, elapsed time.Duration) map[string]Rate {
	rates := map[string]Rate{}
	perSecond := func(bytes uint64) uint64 { return uint64(float64(bytes) * 8 / elapsed.Seconds()) }
	for _, now := range after {
		i := slices.IndexFunc(before, func(s NICStats) bool { return s.Name == now.Name })
		if i < 0 || now.RxBytes < before[i].RxBytes || now.TxBytes < before[i].TxBytes {
			continue
		}
		rates[now.Name] = Rate{Inbound: perSecond(now.RxBytes - before[i].RxBytes), Outbound: perSecond(now.TxBytes - before[i].TxBytes)}
	}
	return rates
}

// placeAll puts the NICs of all guests on their parents.
func placeAll(list []Status, host netsetup.Host, rates map[string]map[string]Rate) []Parent {
	parents := []Parent{}
	for _, s := range list {
		for _, n := range s.NICs {
			placed := PlacedNIC{Guest: s.Name, State: s.State, NICStatus: n}
			if r, ok := rates[s.Name][n.Name]; ok {
				placed.Rate = &r
			}
			place := findParent(&parents, host, n.Parent, 0)
			if n.VLAN != 0 {
				place = findParent(&place.VLANs, host, n.Lower(), n.VLAN)
			}
			place.NICs = append(place.NICs, placed)
		}
	}
	sortParents(parents)
	return parents
}

// findParent returns the parent of that name in a list, and adds it if it is new.
func findParent(list *[]Parent, host netsetup.Host, name string, vlan int) *Parent {
	for i := range *list {
		if p := &(*list)[i]; p.Name == name {
			return p
		}
	}
	*list = append(*list, parentOf(host, name, vlan))
	return &(*list)[len(*list)-1]
}

func parentOf(host netsetup.Host, name string, vlan int) Parent {
	seen, ok := host.Parents[name]
	if !ok {
		return Parent{Name: name, VLAN: vlan, Gone: true, NICs: []PlacedNIC{}}
	}
	p := Parent{
		Name: name, VLAN: vlan, Kind: seen.Kind, MAC: seen.MAC.String(), MTU: seen.MTU,
		Up: seen.Up, Carrier: seen.Carrier, Addresses: seen.Addresses, Default: seen.Default, NICs: []PlacedNIC{},
	}
	for _, c := range seen.Children {
		p.Links = append(p.Links, HostLink{Name: c.Name, Mode: c.Mode, MAC: c.MAC.String()})
	}
	return p
}

func sortParents(list []Parent) {
	slices.SortFunc(list, func(a, b Parent) int {
		if a.VLAN != b.VLAN {
			return a.VLAN - b.VLAN
		}
		return strings.Compare(a.Name, b.Name)
	})
	for _, p := range list {
		slices.SortStableFunc(p.NICs, func(a, b PlacedNIC) int { return strings.Compare(string(a.Mode), string(b.Mode)) })
		sortParents(p.VLANs)
	}
}
