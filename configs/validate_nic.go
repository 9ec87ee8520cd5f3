package configs

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"unicode"
)

const (
	maxQueues = 8
	minMTU    = 68 // RFC 791
	maxMTU    = 65535
	maxVLAN   = 4094 // IEEE 802.1Q: 0 and 4095 are reserved

	maxInterface = 15 // IFNAMSIZ less its NUL

	// An entry of a tap's ring is a pointer; the kernel's defaults are 500
	// and 1000 frames (drivers/net/tap.c, drivers/net/macvlan.c).
	minQueueLen = 16
	maxQueueLen = 65536

	defaultModel = "virtio-net-pci"
)

// models are the QEMU network devices that guests have drivers for. Only the
// virtio ones have more than one queue.
var models = []string{defaultModel, "e1000e", "e1000", "vmxnet3", "rtl8139"}

// nic resolves one [[nic]], whose keys' paths start with at.
func (c *resolver) nic(at string, raw *rawNIC, cpus int) NIC {
	n := NIC{
		Parent:    c.parent(at+"parent", raw.Parent),
		Kind:      oneOf(c, at+"kind", "a kind of NIC", raw.Kind, KindMacvtap, kinds),
		Mode:      oneOf(c, at+"mode", "a mode", raw.Mode, ModeBridge, modes),
		MAC:       c.mac(at+"mac", raw.MAC, "leave mac out to have one derived"),
		MTU:       int(c.integer(at+"mtu", raw.MTU, 0, minMTU, maxMTU)),
		Model:     oneOf(c, at+"model", "a NIC model", raw.Model, defaultModel, models),
		Promisc:   notFalse(raw.Promisc),
		BootIndex: c.bootIndex(at+"boot_index", raw.BootIndex),

		Multicast:  oneOf(c, at+"multicast", "a multicast policy", raw.Multicast, MulticastGuest, multicasts),
		Trust:      oneOf(c, at+"trust", "a degree of trust", raw.Trust, TrustNone, trusts),
		HostAccess: isTrue(raw.HostAccess),
		Pin:        c.pin(at+"pin", raw.Pin),

		Vhost:        oneOf(c, at+"vhost", "a choice for vhost", raw.Vhost, VhostAuto, vhosts),
		TxQueueLen:   int(c.integer(at+"txqueuelen", raw.TxQueueLen, 0, minQueueLen, maxQueueLen)),
		BcQueueLen:   int(c.integer(at+"bcqueuelen", raw.BcQueueLen, 0, minQueueLen, maxQueueLen)),
		HostOffload:  notFalse(raw.HostOffload),
		GuestOffload: notFalse(raw.GuestOffload),
	}
	n.Addresses, n.Prefixes = c.addresses(at+"addresses", raw.Addresses)
	n.Gateways = c.gateways(at, raw.Gateways, n.Prefixes, len(raw.Addresses))
	n.Nameservers = c.plainAddresses(at+"nameservers", raw.Nameservers)
	c.vlan(at+"vlan", raw.VLAN, &n)
	if raw.Bandwidth != nil {
		n.Bandwidth.Inbound = c.rate(at+"bandwidth.inbound", raw.Bandwidth.Inbound)
		n.Bandwidth.Outbound = c.rate(at+"bandwidth.outbound", raw.Bandwidth.Outbound)
	}
	c.nicModel(at, raw, &n, cpus)
	switch n.Kind {
	case KindMacvtap:
		c.macvtap(at, raw, &n)
	case KindIPvtap:
		c.ipvtap(at, raw, &n)
	}
	c.nicPin(at, raw, &n)
	return n
}

func isVirtio(model string) bool { return strings.HasPrefix(model, "virtio-") }

// nicModel checks what only virtio devices have, and sets the queues.
func (c *resolver) nicModel(at string, raw *rawNIC, n *NIC, cpus int) {
	unset := int64(min(cpus, maxQueues))
	if !isVirtio(n.Model) {
		unset = 1
	}
	n.Queues = int(c.integer(at+"queues", raw.Queues, unset, 1, maxQueues))
	if n.Model == "" || isVirtio(n.Model) {
		return
	}
	if n.Queues > 1 {
		c.addf(at+"queues", "%s has one queue only: use model = %q, or remove queues", n.Model, defaultModel)
	}
	if n.Vhost == VhostOn {
		c.addf(at+"vhost", "vhost moves the frames of virtio devices, not of %s: use model = %q, or remove vhost", n.Model, defaultModel)
	}
	if raw.HostOffload != nil {
		c.addf(at+"host_offload", "%s has no switch for it: use model = %q, or remove host_offload", n.Model, defaultModel)
	}
	if raw.GuestOffload != nil {
		c.addf(at+"guest_offload", "%s has no switch for it: use model = %q, or remove guest_offload", n.Model, defaultModel)
	}
	if n.Trust == TrustMAC || n.Trust == TrustAll {
		// virtio-net alone answers query-rx-filter (QEMU, net/net.c).
		c.addf(at+"trust", "QEMU does not tell what a guest changes on %s: use model = %q, or remove trust", n.Model, defaultModel)
	}
}

// macvtap checks what goes with the mode.
func (c *resolver) macvtap(at string, raw *rawNIC, n *NIC) {
	if n.Mode == "" {
		return
	}
	if raw.Promisc != nil && n.Mode != ModePassthru {
		c.addf(at+"promisc", `only mode "passthru" makes the parent promiscuous, not %q: remove promisc`, n.Mode)
	}
	if n.HostAccess && n.Mode != ModeBridge {
		c.addf(at+"host_access", `the host reaches a guest as one more child of the parent, and mode %q connects no children: use mode = "bridge", or remove host_access`, n.Mode)
	}
	n.Sources = c.sources(at+"sources", raw.Sources, n.Mode)
}

// ipvtap checks an ipvtap, which has no mode and nothing that the MAC decides.
func (c *resolver) ipvtap(at string, raw *rawNIC, n *NIC) {
	for _, k := range []struct {
		key string
		set bool
		why string
	}{
		{"mac", raw.MAC != nil, "an ipvtap has its parent's MAC"},
		{"mode", raw.Mode != nil, "the modes are those of a macvtap"},
		{"promisc", raw.Promisc != nil, "an ipvtap does not make its parent promiscuous"},
		{"sources", raw.Sources != nil, "only a macvtap filters by sender"},
		{"multicast", raw.Multicast != nil, "an ipvtap gets all multicast"},
		{"trust", raw.Trust != nil, "the MAC is the parent's, and no guest may change it"},
		{"host_access", n.HostAccess, "the host's way to a guest is a macvlan, and a parent has macvlans or ipvlans but not both"},
		{"bcqueuelen", raw.BcQueueLen != nil, "the queue for broadcasts to ipvtaps has a fixed length"},
	} {
		if k.set {
			c.addf(at+k.key, `%s: remove %s, or use kind = "macvtap"`, k.why, k.key)
		}
	}
	if len(raw.Addresses) == 0 {
		// drivers/net/ipvlan/ipvlan_core.c, ipvlan_addr_lookup
		c.addf(at+"addresses", `missing: the kernel tells ipvtaps on one parent apart by their addresses only: list the guest's, as addresses = ["192.0.2.10"]`)
	}
	n.Mode, n.Multicast = "", MulticastAll
}

// nicPin checks that what is pinned is known, and that nobody may change it.
func (c *resolver) nicPin(at string, raw *rawNIC, n *NIC) {
	if n.Pin == PinAll && len(raw.Addresses) == 0 {
		c.addf(at+"addresses", `missing: pin = true lets out only frames from the guest's addresses: list them, as addresses = ["192.0.2.10"], or use pin = "mac"`)
	}
	if n.Pin != PinNone && (n.Trust == TrustMAC || n.Trust == TrustAll) {
		c.addf(at+"trust", "%q lets the guest change its MAC, and pin keeps it from that: remove trust, or pin", n.Trust)
	}
}

func (c *resolver) pin(key string, v any) Pin {
	switch v {
	case nil, false:
		return PinNone
	case true:
		return PinAll
	case string(PinMAC):
		return PinMAC
	}
	c.addf(key, `want true or false without quotes, or "mac", not %s`, describe(v))
	return PinNone
}

// vlan checks the id, and that the device for it can have a name.
func (c *resolver) vlan(key string, id *int64, n *NIC) {
	n.VLAN = int(c.integer(key, id, 0, 1, maxVLAN))
	if n.VLAN != 0 && n.Parent != "" && len(n.Lower()) > maxInterface {
		c.addf(key, "%s is longer than the %d bytes of an interface's name: make that VLAN's device yourself, with a shorter name, and use it as the parent", quote(n.Lower()), maxInterface)
	}
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
	case len(name) > maxInterface:
		return fmt.Errorf("%s is longer than the %d bytes of an interface's name: %s", quote(name), maxInterface, hint)
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
	ipvtaps := n.Kind == KindIPvtap && earlier.Kind == KindIPvtap // whose MAC may be one parent's
	if n.MAC != nil && !ipvtaps && n.MAC.String() == earlier.MAC.String() {
		c.addf(key+".mac", "%s is nic[%d]'s already: give each NIC its own, or leave it out", n.MAC, j)
	}
	if n.Parent == "" || n.Lower() != earlier.Lower() {
		return
	}
	if n.Mode == ModePassthru || earlier.Mode == ModePassthru {
		c.addf(key+".parent", `%s is nic[%d]'s already, and mode "passthru" shares it with nobody: use another parent, or another mode for both`, quote(n.Parent), j)
	}
	if n.Kind != earlier.Kind && n.Kind != "" && earlier.Kind != "" {
		// drivers/net/ipvlan/ipvlan_main.c, ipvlan_port_create
		c.addf(key+".kind", "nic[%d] is of kind %q, and a parent has macvtaps or ipvtaps but not both: use another parent, or one kind", j, earlier.Kind)
	}
	taken := map[netip.Addr]bool{} // the lists may be long
	for _, addr := range earlier.Addresses {
		taken[addr] = true
	}
	for k, addr := range n.Addresses {
		if taken[addr] {
			c.addf(indexKey(key+".addresses", k), "%s is nic[%d]'s already: give each NIC on a parent its own", addr, j)
		}
	}
}
