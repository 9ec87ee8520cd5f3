package launcher

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"vmrun/configs"
	"vmrun/netsetup"
)

// specFacts are those about a guest as its spec describes it.
type specFacts struct {
	guest *configs.Guest
	net   netsetup.Host

	// Of a guest that is to start.
	plan     *Plan
	planErr  error
	runs     bool           // and so it does not start
	macs     map[int]string // who has a NIC's MAC in another namespace, by NIC
	pinErr   error          // of pinning, where a NIC wants it
	shapeErr error          // of limiting, where a NIC wants it

	vhostErr  error
	arpIgnore map[string]string // net.ipv4.conf.*.arp_ignore, by link and "all"
	room      map[string]room   // of the disks that may grow, by path
	holders   map[string]string // who keeps the lock on a disk, by path
	siblings  map[string]string // who else has a base, by path
	available uint64            // bytes of memory
	unit      string
	unitStop  time.Duration // how long the unit's stop may take; 0: unknown
}

// startChecks are of no use to a guest that runs.
var startChecks = []check[specFacts]{
	{"plan", "", checkStart},
	{"mac-in-use", "", checkMACs},
	{"vhost-missing", "", checkVhost},
	{"no-filter", "", checkFilters},
	{"low-memory", "", checkMemory},
}

var specChecks = []check[specFacts]{
	{"disk-locked", "", checkLocks},
	{"disk-full", "", checkRoom},
	{"cloned-guest", "", checkClones},
	{"host-access", "", checkHostAccess},
	{"arp-ignore", "", checkARP},
	{"multicast", "", checkMulticast},
	{"power-cut", "", checkPowerCut},
	{"monitor", "", checkMonitors},
}

// gatherSpec looks at what the guest needs; qemu is its QEMU's pid if it runs.
func gatherSpec(ctx context.Context, base string, g *configs.Guest, qemu int) specFacts {
	f := specFacts{guest: g, vhostErr: netsetup.VhostWorks(), available: availableMemory(),
		macs: map[int]string{}, arpIgnore: map[string]string{}, room: map[string]room{}, holders: map[string]string{}, siblings: map[string]string{}}
	f.net, _ = netsetup.Survey(lowers(g)...) // the plan has its error
	for _, name := range append(lowers(g), "all") {
		f.arpIgnore[name] = readWord(filepath.Join("/proc/sys/net/ipv4/conf", name, "arp_ignore"))
	}
	for _, d := range g.Disks {
		if d.Path == "" {
			continue
		}
		if mayGrow(d) {
			f.room[d.Path] = roomAt(d.Path)
		}
		chain, err := readChain(d)
		if err != nil { // which the plan tells
			chain = declaredChain(d, nil)
		}
		for n, l := range chain {
			if locked(l.Path, n > 0 || d.Readonly) {
				f.holders[l.Path] = describeLockers(base, l.Path, qemu)
			}
		}
		if names := guestsOn(base, g.Name, d.Base); d.Base != "" && len(names) > 0 {
			f.siblings[d.Base] = strings.Join(names, ", ")
		}
	}
	supervisor, _ := guestDir(base, g.Name).supervisor()
	f.unit = unitOf(g, supervisor)
	f.unitStop, _ = stopTimeout(ctx, f.unit) // without systemd, or a unit, nobody waits
	return f
}

// mayGrow reports whether writing to a disk takes more room.
func mayGrow(d configs.Disk) bool {
	info, err := os.Stat(d.Path)
	if err != nil {
		return !d.Readonly
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode().IsRegular() && !d.Readonly && (d.Format != configs.FormatRaw || st.Blocks*512 < st.Size)
}

// describeProcess names a process, by its guest where it is a QEMU of ours.
func describeProcess(base string, pid int) string {
	for _, name := range guestNames(base) {
		if rec, err := guestDir(base, name).readRecord(); err == nil && rec.QEMU.PID == pid && rec.alive() {
			return "guest " + name + ", " + who(pid)
		}
	}
	return who(pid)
}

// guestsOn are the guests that live, other than self, and have this base image.
func guestsOn(base, self, path string) []string {
	var names []string
	for _, name := range guestNames(base) {
		rec, err := guestDir(base, name).readRecord()
		if err != nil || name == self || !rec.alive() {
			continue
		}
		if slices.ContainsFunc(rec.Guest.Disks, func(d configs.Disk) bool { return d.Base != "" && samePath(d.Base, path) }) {
			names = append(names, name)
		}
	}
	return names
}

// findMACs looks for the guest's MACs in all namespaces that can be reached.
func (f *specFacts) findMACs(base string) {
	if f.planErr != nil || f.runs {
		return
	}
	for i, c := range f.plan.Children {
		if pid, link := macHolder(c.MAC.String(), f.net.Parents[c.Lower()].Index); pid != 0 {
			f.macs[i] = fmt.Sprintf("%s in the network namespace of %s", link, describeProcess(base, pid))
		}
	}
}

// tryNICs pins and limits a child of a namespace made for it, where the guest's
// are to be.
func (f *specFacts) tryNICs() {
	wants := func(want func(configs.NIC) bool) bool { return slices.ContainsFunc(f.guest.NICs, want) }
	if wants(func(n configs.NIC) bool { return n.Pin != configs.PinNone }) {
		f.pinErr = onTrial((*netsetup.Namespace).Pin)
	}
	if wants(func(n configs.NIC) bool { return n.Bandwidth != configs.Bandwidth{} }) {
		f.shapeErr = onTrial(func(ns *netsetup.Namespace, c netsetup.Child) error { return ns.Shape(c, c.Bandwidth) })
	}
}

// onTrial does something to a link that is gone afterwards.
func onTrial(act func(*netsetup.Namespace, netsetup.Child) error) error {
	ns, err := netsetup.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = "net0", firstIndex
	if err := ns.Do(func() error { return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}) }); err != nil {
		return err
	}
	return act(ns, netsetup.Child{Name: attrs.Name, Index: attrs.Index, NIC: configs.NIC{
		MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Pin: configs.PinMAC, Bandwidth: configs.Bandwidth{Inbound: 1e9, Outbound: 1e9}}})
}

// diagnoseParents tells what the plan of a start does not about its parents.
func (f specFacts) diagnoseParents() []Finding {
	var found []Finding
	for _, name := range slices.Sorted(maps.Keys(f.net.Parents)) {
		p := gatherParent(name, f.net)
		if netsetup.Unfit(p.link, configs.KindIPvtap) == "" {
			found = append(found, examine(p.topic(), p, parentChecks)...)
		}
	}
	return found
}

func checkStart(f specFacts) []Finding {
	var found []Finding
	if f.runs {
		found = append(found, Finding{ID: "runs", Level: Warn, Text: "it runs already",
			Why: "what is said of its start is said of the next one", Remedy: "vmrun doctor " + f.guest.Name})
	}
	var errs configs.Errors
	var single *configs.Error
	switch {
	case errors.As(f.planErr, &errs):
	case errors.As(f.planErr, &single):
		errs = configs.Errors{single}
	case f.planErr != nil:
		found = append(found, tell(Bad, f.planErr.Error(), "", "")...)
	}
	for _, e := range errs {
		pain := f.pain(e.Key)
		pain.Level, pain.Text = Bad, e.Error()
		found = append(found, pain)
	}
	if f.planErr == nil {
		for _, w := range f.plan.Warnings {
			found = append(found, tell(Warn, w, "", "")...)
		}
	}
	return found
}

var nicKey = regexp.MustCompile(`^nic\[(\d+)\]\.(\w+)$`)

// pain is what the plan has against a key of the spec, and the way out, where
// the plan's own words are not all there is to say.
func (f specFacts) pain(key string) Finding {
	match := nicKey.FindStringSubmatch(key)
	if match == nil {
		return Finding{}
	}
	var i int
	fmt.Sscan(match[1], &i)
	nic := f.guest.NICs[i]
	p, there := f.net.Parents[nic.Parent]
	switch {
	case match[2] == "parent" && !there:
		return Finding{ID: "missing-nic", Why: "it has another name, or is yet to come, or is in another network namespace", Remedy: "vmrun doctor " + nic.Parent}
	case match[2] == "parent" && netsetup.Unfit(p, nic.Kind) != "":
		return unfitness(p)
	case match[2] == "mac":
		return Finding{ID: "mac-in-use", Why: "the kernel delivers by MAC, and has one child of each on a link", Remedy: "vmrun ps --all; ip -d link show " + nic.Parent}
	case match[2] == "mode" && nic.Mode == configs.ModePassthru && (p.Default || len(p.Addresses) > 0):
		return Finding{ID: "passthru-host", Why: "in passthru all that the NIC receives is the guest's", Remedy: `mode = "bridge"`}
	case match[2] == "vhost":
		return Finding{ID: "vhost-missing", Why: whyVhost, Remedy: "modprobe vhost_net"}
	}
	return Finding{}
}

const whyVhost = "QEMU is told to use it, and aborts where it cannot"

func (f specFacts) blames(id string) bool {
	return slices.ContainsFunc(checkStart(f), func(found Finding) bool { return found.ID == id })
}

func checkMACs(f specFacts) []Finding {
	var found []Finding
	for i, holder := range f.macs {
		c := f.plan.Children[i]
		found = append(found, tell(Bad, fmt.Sprintf("nic[%d]: MAC %s is in use on %s: %s", i, c.MAC, c.Parent, holder),
			`a link that somebody left keeps its address, and the start would end with "Address already in use"`,
			"end that process, or give this NIC another mac")...)
	}
	return found
}

func checkVhost(f specFacts) []Finding {
	if f.vhostErr == nil || f.blames("vhost-missing") {
		return nil
	}
	for i, n := range f.guest.NICs {
		if n.Vhost == configs.VhostOn {
			return tell(Bad, fmt.Sprintf(`nic[%d]: vhost = "on": %v`, i, f.vhostErr), whyVhost, "modprobe vhost_net")
		}
	}
	if slices.ContainsFunc(f.guest.QEMUArgs, func(word string) bool { return strings.Contains(word, "vhost=on") }) {
		return tell(Bad, fmt.Sprintf("qemu_args: vhost=on: %v", f.vhostErr), whyVhost, "modprobe vhost_net")
	}
	return nil
}

func checkFilters(f specFacts) []Finding {
	var found []Finding
	if f.pinErr != nil {
		found = append(found, tell(Bad, "pin: "+f.pinErr.Error(), "what a guest forges is dropped by rules of nftables' netdev family", "modprobe nf_tables")...)
	}
	if f.shapeErr != nil {
		found = append(found, tell(Bad, "bandwidth: "+f.shapeErr.Error(), "limits are a queueing discipline out of the guest, and rules of nftables into it", "modprobe sch_tbf; modprobe nf_tables")...)
	}
	return found
}

func checkMemory(f specFacts) []Finding {
	need := uint64(f.guest.Memory)
	if f.runs || need <= f.available {
		return nil
	}
	return tell(Warn, fmt.Sprintf("memory = %q, and this host has %d MiB to spare", f.guest.Memory, f.available>>20),
		"a host that runs out of memory kills the process that has most of it: QEMU", fmt.Sprintf(`memory = "%dMiB"`, f.available>>20*3/4))
}

func checkLocks(f specFacts) []Finding {
	var found []Finding
	for path, holder := range f.holders {
		if holder != "" {
			found = append(found, tell(Bad, fmt.Sprintf("%s is in use by %s", path, holder),
				`QEMU would say: Failed to get "write" lock: an image can be written by one at a time`, "end that, or make an overlay: base = …")...)
		}
	}
	return found
}

func checkRoom(f specFacts) []Finding {
	var found []Finding
	for path, r := range f.room {
		if r.full(1 << 30) {
			found = append(found, tell(Warn, fmt.Sprintf("%s: its file system has %s left", path, r),
				"a guest that finds no room on it is paused by QEMU without a word", "df -h "+filepath.Dir(path))...)
		}
	}
	return found
}

func checkClones(f specFacts) []Finding {
	var found []Finding
	for path, names := range f.siblings {
		found = append(found, tell(Note, fmt.Sprintf("%s is the base of %s as well", path, names),
			"clones of one image share the machine-id in it, which is what a DHCP server knows them by, and so get the same lease",
			"virt-sysprep --operations machine-id -a IMAGE, before it has overlays; or "+renewInGuest)...)
	}
	return found
}
