package configs

import (
	"fmt"
	"net"
	"strings"
	"unicode"
)

const (
	maxQueues = 8
	minMTU    = 68 // RFC 791
	maxMTU    = 65535

	defaultModel = "virtio-net-pci"
)

// models are the QEMU network devices that guests have drivers for. Only the
// virtio ones have more than one queue.
var models = []string{defaultModel, "e1000e", "e1000", "vmxnet3", "rtl8139"}

// nic resolves one [[nic]].
func (c *resolver) nic(key string, raw *rawNIC) NIC {
	n := NIC{
		Parent:    c.parent(key+".parent", raw.Parent),
		Mode:      oneOf(c, key+".mode", "a mode", raw.Mode, ModeBridge, modes),
		MAC:       c.mac(key+".mac", raw.MAC, "leave mac out to have one derived"),
		Queues:    int(c.integer(key+".queues", raw.Queues, 1, 1, maxQueues)),
		MTU:       int(c.integer(key+".mtu", raw.MTU, 0, minMTU, maxMTU)),
		Model:     oneOf(c, key+".model", "a NIC model", raw.Model, defaultModel, models),
		Promisc:   raw.Promisc == nil || *raw.Promisc,
		BootIndex: c.bootIndex(key+".boot_index", raw.BootIndex),

		Kind: KindMacvtap, Multicast: MulticastGuest, Trust: TrustNone, Vhost: VhostAuto,
		HostOffload: true, GuestOffload: true,
	}
	if n.Queues > 1 && n.Model != "" && !strings.HasPrefix(n.Model, "virtio-") {
		c.addf(key+".queues", "%s has one queue only: use model = %q, or remove queues", n.Model, defaultModel)
	}
	if raw.Promisc != nil && n.Mode != ModePassthru && n.Mode != "" {
		c.addf(key+".promisc", `only mode "passthru" makes the parent promiscuous, not %q: remove promisc`, n.Mode)
	}
	n.Sources = c.sources(key+".sources", raw.Sources, n.Mode)
	return n
}

func (c *resolver) parent(key string, text *string) string {
	if text == nil {
		c.addf(key, `missing: name the host's NIC, as parent = "eth0" (ip link lists them)`)
		return ""
	}
	if err := CheckInterface(*text); err != nil {
		c.addf(key, "%v", err)
		return ""
	}
	return *text
}

// CheckInterface says why a text cannot be the name of a Linux network
// interface that has macvtap children, or returns nil. The rules are those of
// dev_valid_name (net/core/dev.c), and no control characters.
func CheckInterface(name string) error {
	const hint = "ip link lists the host's NICs"
	switch {
	case name == "":
		return fmt.Errorf("an interface's name cannot be empty: %s", hint)
	case name == "." || name == "..":
		return fmt.Errorf("%s is not an interface's name: %s", quote(name), hint)
	case len(name) > 15:
		return fmt.Errorf("%s is longer than the 15 bytes of an interface's name: %s", quote(name), hint)
	case strings.ContainsFunc(name, notInName):
		return fmt.Errorf("%s is not an interface's name, which has no '/', ':', blank or control character: %s", quote(name), hint)
	case name == "lo":
		return fmt.Errorf(`"lo" is the loopback interface and has no children: %s`, hint)
	}
	return nil
}

func notInName(r rune) bool {
	return r == '/' || r == ':' || unicode.IsSpace(r) || unicode.IsControl(r)
}

func (c *resolver) mac(key string, text *string, hint string) net.HardwareAddr {
	if text == nil {
		return nil
	}
	mac, err := ParseMAC(*text)
	if err != nil {
		c.addf(key, "%v: %s", err, hint)
	}
	return mac
}

// sources checks the list of senders, which is source mode's alone.
func (c *resolver) sources(key string, texts []string, mode Mode) []net.HardwareAddr {
	switch {
	case mode == ModeSource && len(texts) == 0:
		c.addf(key, `missing: mode "source" lets in only the senders listed, as sources = ["52:54:00:12:34:56"]`)
	case mode != ModeSource && mode != "" && texts != nil:
		c.addf(key, `only mode "source" filters by sender, not %q: remove sources, or set mode = "source"`, mode)
	}
	var macs []net.HardwareAddr
	seen := map[string]int{}
	for i, text := range texts {
		mac := c.mac(indexKey(key, i), &text, "list each sender's own address")
		if mac == nil {
			continue
		}
		if first, ok := seen[mac.String()]; ok {
			c.addf(indexKey(key, i), "%s is sources[%d] already: remove one", mac, first)
		}
		seen[mac.String()] = i
		macs = append(macs, mac)
	}
	return macs
}

// nicsTogether checks the rules between NICs, of as many as there is room for.
func (c *resolver) nicsTogether(nics []NIC) {
	for i := range min(len(nics), maxPCI) {
		for j := range i {
			c.nicPair(i, j, &nics[i], &nics[j])
		}
	}
}

// nicPair compares a NIC with an earlier one.
func (c *resolver) nicPair(i, j int, n, earlier *NIC) {
	key := indexKey("nic", i)
	if n.MAC != nil && n.MAC.String() == earlier.MAC.String() {
		c.addf(key+".mac", "%s is nic[%d]'s already: give each NIC its own, or leave it out", n.MAC, j)
	}
	if n.Parent == "" || n.Parent != earlier.Parent {
		return
	}
	if n.Mode == ModePassthru || earlier.Mode == ModePassthru {
		c.addf(key+".parent", `%s is nic[%d]'s already, and mode "passthru" shares it with nobody: use another parent, or another mode for both`, quote(n.Parent), j)
	}
}
