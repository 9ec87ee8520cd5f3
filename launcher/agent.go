package launcher

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"vmrun/netsetup"
)

// SourceAgent is the source of an address that only the agent in the guest has
// told of: no frame has borne it out.
const SourceAgent netsetup.Source = "agent"

// agentPort is the id of the agent's port and of QEMU's end of it.
const agentPort = "agent"

// agentDevices are the options that give a guest a channel for its agent, where
// every agent looks for it (qemu-ga(8), --path). QEMU tells of its port only
// when that has an id (hw/char/virtio-console.c, set_guest_connected).
func (c *commandLine) addAgent(fd int) {
	c.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", agentPort, fd), "-device", "virtio-serial-pci",
		"-device", fmt.Sprintf("virtserialport,id=%s,chardev=%[1]s,name=org.qemu.guest_agent.0", agentPort))
}

// maxAgentAddresses bounds those that an agent tells of one MAC.
const maxAgentAddresses = 64

// agentGrace is how long before the agent's word an address may have been seen
// on the wire to be there in spite of it: a guest may not have put it on its
// interface yet.
const agentGrace = 5 * time.Second

// agentWord is what a guest's agent has said. The zero value is nothing.
type agentWord struct {
	at        time.Time
	addresses map[string][]netsetup.Address // by the interface's MAC, sorted
}

// agentInterface is what is read of an interface in the answer to
// guest-network-get-interfaces (QEMU, qga/qapi-schema.json,
// GuestNetworkInterface).
type agentInterface struct {
	MAC       string `json:"hardware-address"`
	Addresses []struct {
		IP string `json:"ip-address"`
	} `json:"ip-addresses"`
}

// newAgentWord is what the agent has said at a time, after what it said before.
// What can be no machine's address is left out.
func newAgentWord(at time.Time, interfaces []agentInterface, before agentWord) agentWord {
	word := agentWord{at: at, addresses: map[string][]netsetup.Address{}}
	for _, i := range interfaces {
		mac, err := net.ParseMAC(i.MAC)
		if err != nil {
			continue
		}
		key := mac.String()
		list := slices.Clip(word.addresses[key]) // a bridge has the MAC of its port
		for _, a := range i.Addresses {
			ip, err := netip.ParseAddr(a.IP)
			ip = ip.WithZone("")
			if err != nil || !netsetup.Learnable(ip) || hasAddress(list, ip) || len(list) == maxAgentAddresses {
				continue
			}
			since := at
			if k := indexAddress(before.addresses[key], ip); k >= 0 {
				since = before.addresses[key][k].Since
			}
			list = append(list, netsetup.Address{IP: ip, Source: SourceAgent, Since: since, Seen: at})
		}
		word.addresses[key] = list
	}
	return word
}

// over is what is known of the addresses of the NIC with a MAC, sorted, when
// learned is what its frames have told. The agent knows of addresses that the
// guest never used, and of those that are gone. It says nothing about a NIC that
// it does not name.
func (w agentWord) over(learned []netsetup.Address, mac net.HardwareAddr) []netsetup.Address {
	told, ok := w.addresses[mac.String()]
	if !ok {
		return learned
	}
	list := slices.DeleteFunc(slices.Clone(learned), func(a netsetup.Address) bool {
		return !hasAddress(told, a.IP) && a.Seen.Before(w.at.Add(-agentGrace))
	})
	for _, a := range told {
		if !hasAddress(learned, a.IP) {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, func(a, b netsetup.Address) int { return a.IP.Compare(b.IP) })
	return list
}

func hasAddress(list []netsetup.Address, ip netip.Addr) bool { return indexAddress(list, ip) >= 0 }

func indexAddress(list []netsetup.Address, ip netip.Addr) int {
	return slices.IndexFunc(list, func(a netsetup.Address) bool { return a.IP == ip })
}
