package launcher

import (
	"fmt"
	"slices"
	"strings"

	"vmrun/configs"
	"vmrun/netsetup"
)

// options are those of a QEMU device or backend, in the order of its command
// line. QMP takes the same with their types.
type options []option

type option struct {
	key   string
	value any // string, int or bool
}

func (o *options) add(key string, value any) { *o = append(*o, option{key, value}) }

// line is the options as QEMU's command line has them; the first is named by
// its value alone.
func (o options) line() string {
	words := []string{fmt.Sprint(o[0].value)}
	for _, opt := range o[1:] {
		value := fmt.Sprint(opt.value)
		if on, ok := opt.value.(bool); ok {
			value = onOff(on)
		}
		words = append(words, opt.key+"="+value)
	}
	return strings.Join(words, ",")
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// object is the options as QMP has them.
func (o options) object() map[string]any {
	object := map[string]any{}
	for _, opt := range o {
		object[opt.key] = opt.value
	}
	return object
}

// Names of a NIC's parts in QEMU, by its number: the child's name is that of
// the backend.
func nicID(n int) string  { return fmt.Sprintf("nic%d", n) }
func portID(n int) string { return fmt.Sprintf("port%d", n) }

// number is the NIC's, from the child's name.
func number(c netsetup.Child) int { return numberOf(c.Name) }

func numberOf(name string) int {
	var n int
	fmt.Sscanf(name, "net%d", &n)
	return n
}

// owner is the number of the guest that a child belongs to, unique on the host:
// its QEMU's uid.
func owner(c netsetup.Child) int { return userOf((c.Index - firstIndex) / maxNICs) }

func isVirtio(model string) bool { return strings.HasPrefix(model, "virtio-") }

// backend is the netdev of a child, with the words by which QEMU finds its open
// files: numbers on the command line, names over QMP.
func backend(c netsetup.Child, taps, vhosts []string) options {
	o := options{{"type", "tap"}, {"id", c.Name}}
	key, vhostKey := "fd", "vhostfd"
	if len(taps) > 1 {
		key, vhostKey = "fds", "vhostfds"
	}
	o.add(key, strings.Join(taps, ":"))
	if len(vhosts) > 0 {
		o.add("vhost", true)
		o.add(vhostKey, strings.Join(vhosts, ":"))
	}
	return o
}

// device is the network card of a child; on a machine with slots for cards that
// come and go it sits in the one of its number. A network boot takes QEMU's firmware
// for the card, iPXE, but UEFI knows virtio cards itself: what is signed boots by its
// own drivers only, and for aarch64 there is no other.
func device(c netsetup.Child, slots, uefi bool) options {
	n := number(c)
	o := options{{"driver", c.Model}, {"id", nicID(n)}, {"netdev", c.Name}, {"mac", c.MAC.String()}}
	if slots {
		o.add("bus", portID(n))
	}
	if c.BootIndex >= 0 {
		o.add("bootindex", c.BootIndex)
	}
	if c.BootIndex < 0 || uefi && isVirtio(c.Model) {
		o.add("romfile", "")
	}
	if !isVirtio(c.Model) {
		return o
	}
	if c.Queues > 1 {
		// Two vectors a queue pair, one for the control queue, one for
		// configuration changes (hw/virtio/virtio-net-pci.c).
		o.add("mq", true)
		o.add("vectors", 2*c.Queues+2)
	}
	if c.MTU != 0 {
		o.add("host_mtu", c.MTU)
	}
	if !c.HostOffload {
		for _, feature := range hostOffloads {
			o.add(feature, false)
		}
	}
	if !c.GuestOffload {
		for _, feature := range guestOffloads {
			o.add(feature, false)
		}
	}
	return o
}

// The offloads of a virtio NIC (hw/net/virtio-net.c, virtio_net_properties).
var (
	hostOffloads  = []string{"csum", "gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo"}
	guestOffloads = []string{"guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"}
)

// sparePorts is how many NICs can be added to a guest that runs.
const sparePorts = 4

// ports is how many slots for network cards the machine gets. Of the machines
// without PCI Express the bus itself takes cards that come and go.
func ports(g *configs.Guest) int {
	if m := g.Machine; m != "" && !strings.Contains(m, "q35") && !strings.HasPrefix(m, "virt") {
		return 0
	}
	return min(len(g.NICs)+sparePorts, maxNICs)
}

// port is the slot of a number: eight share a place on the root bus, and the
// places are taken from its end, out of the way of what QEMU places by itself.
func port(n int) options {
	return options{
		{"driver", "pcie-root-port"}, {"id", portID(n)}, {"chassis", n + 1}, {"slot", n},
		{"bus", "pcie.0"}, {"addr", fmt.Sprintf("0x%x.%d", lastPlace-n/8, n%8)}, {"multifunction", true},
	}
}

// lastPlace is the last on a q35's root bus that is not the chipset's.
const lastPlace = 0x1e

// The words of a plan for its owner.

func describeChild(c netsetup.Child) string {
	if c.Kind == configs.KindIPvtap {
		return fmt.Sprintf("make ipvtap %s on %s in it: addresses %s, index %d", c.Name, c.Lower(), joined(c.Addresses), c.Index)
	}
	return fmt.Sprintf("make macvtap %s on %s in it: mode %s, MAC %s, index %d", c.Name, c.Lower(), c.Mode, c.MAC, c.Index)
}

func describeVhost(c netsetup.Child) string {
	if c.Vhost == configs.VhostOn {
		return ", and /dev/vhost-net for each"
	}
	return ""
}

func describePin(c netsetup.Child) string {
	if c.Pin == configs.PinMAC {
		return "another MAC than " + c.MAC.String()
	}
	return fmt.Sprintf("another MAC than %s or another address than %s", c.MAC, joined(c.Addresses))
}

func describeBandwidth(b configs.Bandwidth) string {
	var words []string
	if b.Inbound != 0 {
		words = append(words, b.Inbound.String()+" to the guest")
	}
	if b.Outbound != 0 {
		words = append(words, b.Outbound.String()+" from the guest")
	}
	return strings.Join(words, " and ")
}

func describeMulticast(c netsetup.Child) string {
	switch c.Multicast {
	case configs.MulticastOff:
		return "no multicast"
	case configs.MulticastAll:
		return "all multicast"
	}
	return "all multicast, until the guest says what it wants,"
}

func joined[T fmt.Stringer](list []T) string {
	var words []string
	for _, v := range list {
		words = append(words, v.String())
	}
	return strings.Join(words, ", ")
}

// accessParents are the parents, each once, on which the host is to reach the guest.
func accessParents(children []netsetup.Child) []string {
	var parents []string
	for _, c := range children {
		if c.HostAccess && !slices.Contains(parents, c.Lower()) {
			parents = append(parents, c.Lower())
		}
	}
	return parents
}
