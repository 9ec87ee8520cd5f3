package launcher

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

// guestFacts are those about a guest that runs.
type guestFacts struct {
	status Status
	rec    *record
	nics   []nicFacts

	runState string         // QEMU's word, "" where it was not to be had
	blocks   []blockInfo    // likewise
	waiting  map[string]int // clients that nobody serves, by socket
	memory   groupMemory
	replaced bool // the file that QEMU was started from
}

// nicFacts are those about one of its NICs.
type nicFacts struct {
	child netsetup.Child
	netsetup.Condition
	lookErr error
	stats   *netlink.LinkStatistics // nil where the child is not there
	filter  *qmp.RxFilter           // nil where QEMU did not tell
}

// blockInfo is what is read of query-block's answer (qapi/block-core.json, BlockInfo).
type blockInfo struct {
	Device   string `json:"device"`
	Qdev     string `json:"qdev"`
	IOStatus string `json:"io-status"`
}

var guestChecks = []check[guestFacts]{
	{"unresponsive", "", checkAnswers},
	{"no-supervisor", "", checkSupervised},
	{"disk-error", "", checkIOError},
	{"out-of-memory", "", checkKills},
	{"qemu-replaced", "", checkReplaced},
	{"second-client", "", checkWaiting},
	{"child-gone", "", checkChildren},
	{"no-carrier", "", checkLinks},
	{"mac-mismatch", "", checkGuestMACs},
	{"mtu-drift", "", checkMTUs},
	{"refused", "", checkRefused},
	{"forged", "", checkForged},
	{"unrouted", "", checkUnrouted},
	{"address-conflict", "", checkConflicts},
	{"no-answers", "", checkAnswered},
	{"rx-drops", "", checkDrops},
}

// gatherGuest looks at a guest that runs. The error is ErrNotFound or ErrState
// for one that does not.
func gatherGuest(ctx context.Context, base, name string) (guestFacts, error) {
	status, err := alive(ctx, base, name)
	if err != nil {
		return guestFacts{}, err
	}
	dir := guestDir(base, name)
	f := guestFacts{status: status, waiting: map[string]int{}}
	if f.rec, err = dir.readRecord(); err != nil {
		return guestFacts{}, named(name, err)
	}
	qemu, err := findGuest(dir, f.rec)
	if err != nil {
		return guestFacts{}, named(name, fmt.Errorf("%w: %w", ErrState, err))
	}
	defer qemu.pidfd.Close()
	pid := qemu.id.PID
	f.status.PID = pid
	f.memory = memoryOf(pid)
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	f.replaced = strings.HasSuffix(exe, " (deleted)")
	for _, socket := range []string{fileMonitor, fileSerial} {
		f.waiting[dir.path(socket)] = waiting(dir.path(socket))
	}
	f.lookInside(pid)
	if status.State != StateUnresponsive {
		f.askQEMU(ctx, base, name)
	}
	return f, nil
}

// lookInside looks at the children, in the namespace of the guest's QEMU.
func (f *guestFacts) lookInside(pid int) {
	ns, err := netsetup.NamespaceOf(pid)
	if err != nil {
		return
	}
	defer ns.Close()
	links, _ := ns.Links()
	for _, c := range f.rec.Children {
		n := nicFacts{child: c}
		n.Condition, n.lookErr = ns.Look(c)
		for _, l := range links {
			if l.Attrs().Index == c.Index {
				n.stats = l.Attrs().Statistics
			}
		}
		f.nics = append(f.nics, n)
	}
}

// askQEMU asks through the supervisor, or QEMU itself where there is none.
func (f *guestFacts) askQEMU(ctx context.Context, base, name string) {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	client, err := Control(ctx, base, name)
	if f.status.Supervisor == 0 {
		client, err = qmp.Dial(ctx, guestDir(base, name).path(fileMonitor))
	}
	if err != nil {
		return
	}
	defer client.Close()
	// What is not answered is not judged.
	run, _ := client.QueryStatus(ctx)
	f.runState = run.Status
	_ = client.Execute(ctx, "query-block", nil, &f.blocks)
	for i, n := range f.nics {
		if !isVirtio(n.child.Model) {
			continue
		}
		if filter, err := client.QueryRxFilter(ctx, nicID(number(n.child))); err == nil {
			f.nics[i].filter = &filter
		}
	}
}

// perNIC joins what a check has to say of each child that is there.
func (f guestFacts) perNIC(look func(nicFacts) []Finding) []Finding {
	var found []Finding
	for _, n := range f.nics {
		if n.lookErr == nil && n.Child {
			found = append(found, look(n)...)
		}
	}
	return found
}

func checkAnswers(f guestFacts) []Finding {
	if f.status.State != StateUnresponsive {
		return nil
	}
	return tell(Bad, f.status.Silent+" does not answer", "it hangs, is stopped by a signal, or waits for a dead disk",
		"vmrun stop --force "+f.status.Name)
}

func checkSupervised(f guestFacts) []Finding {
	if f.status.Supervisor != 0 {
		return nil
	}
	return tell(Warn, "it has no supervisor", "nobody mends its NICs or answers on its control socket", "vmrun start "+f.status.Name)
}

func checkIOError(f guestFacts) []Finding {
	var disks []string
	full := false
	for _, b := range f.blocks {
		if b.IOStatus != "" && b.IOStatus != "ok" {
			disks = append(disks, fmt.Sprintf("%s (%s)", f.diskPath(b), b.IOStatus))
			full = full || b.IOStatus == "nospace"
		}
	}
	resume := "vmrun resume " + f.status.Name
	switch {
	case len(disks) == 0 && f.runState != "io-error":
		return nil
	case full:
		return tell(Bad, "QEMU has paused it: no room for what it writes to "+strings.Join(disks, ", "),
			"the file system that holds the image is full; the guest knows nothing of it", "make room, and "+resume)
	}
	return tell(Bad, "QEMU has paused it after an input/output error: "+strings.Join(disks, ", "), "", "mend the disk, and "+resume)
}

// diskPath is the image behind one of QEMU's devices.
func (f guestFacts) diskPath(b blockInfo) string {
	var i int
	for _, part := range strings.Split(b.Qdev, "/") {
		if n, _ := fmt.Sscanf(part, "drive%d", &i); n == 1 && i >= 0 && i < len(f.rec.Guest.Disks) {
			return f.rec.Guest.Disks[i].Path
		}
	}
	return b.Device + b.Qdev
}

func checkKills(f guestFacts) []Finding {
	var found []Finding
	if f.memory.kills > 0 {
		found = append(found, tell(Warn, fmt.Sprintf("the kernel has killed for want of memory in its control group %s (oom_kill %d)", f.memory.path, f.memory.kills),
			"QEMU needs the guest's memory and some 200 MiB, and is the biggest to be found there", "raise the unit's MemoryMax=, or lower memory")...)
	}
	if need := uint64(f.rec.Guest.Memory); f.memory.limit < need {
		found = append(found, tell(Warn, fmt.Sprintf("its control group %s may have %d MiB, and the guest %d MiB", f.memory.path, f.memory.limit>>20, need>>20),
			"once the guest uses its memory, the kernel kills QEMU", "raise the unit's MemoryMax=, or lower memory")...)
	}
	return found
}

func checkReplaced(f guestFacts) []Finding {
	if !f.replaced {
		return nil
	}
	return tell(Note, "the QEMU that it runs on was upgraded, or removed, since it started",
		"it goes on with the old one; a new one may have dropped what its spec uses", "vmrun check and vmrun doctor with its spec, then vmrun restart "+f.status.Name)
}

func checkWaiting(f guestFacts) []Finding {
	var found []Finding
	for path, n := range f.waiting {
		if n > 0 {
			found = append(found, tell(Warn, fmt.Sprintf("%d waits on %s and hears nothing", n, path),
				"a monitor of QEMU's serves one client at a time, and that is the supervisor", "use control.sock beside it, or vmrun qmp "+f.status.Name)...)
		}
	}
	return found
}

func checkChildren(f guestFacts) []Finding {
	var found []Finding
	for _, n := range f.nics {
		switch {
		case n.lookErr != nil:
			found = append(found, tell(Bad, fmt.Sprintf("%s: %v", n.child.Name, n.lookErr), "", "")...)
		case !n.Child && !n.Parent:
			found = append(found, tell(Bad, fmt.Sprintf("%s is gone together with %s", n.child.Name, n.child.Lower()),
				"a parent takes its children along; the supervisor makes the child anew when the parent is back", "vmrun doctor "+n.child.Lower())...)
		case !n.Child:
			found = append(found, tell(Bad, fmt.Sprintf("%s is gone: what the guest sends on it vanishes", n.child.Name),
				fmt.Sprintf("somebody deleted it, or %s, which takes its children along; QEMU does not notice", n.child.Lower()), f.replug())...)
		case n.Parent && !n.Attached:
			found = append(found, tell(Bad, fmt.Sprintf("%s is not on %s any more", n.child.Name, n.child.Lower()),
				"the parent was renamed or made anew", f.replug())...)
		case !n.Up:
			found = append(found, tell(Warn, fmt.Sprintf("%s is down", n.child.Name), "", fmt.Sprintf("vmrun nsenter %s -- ip link set %s up", f.status.Name, n.child.Name))...)
		}
	}
	return found
}

// replug is how the guest gets a lost child back.
func (f guestFacts) replug() string {
	if f.status.Supervisor == 0 {
		return "vmrun start " + f.status.Name
	}
	return "vmrun restart " + f.status.Name
}

func checkLinks(f guestFacts) []Finding {
	return f.perNIC(func(n nicFacts) []Finding {
		if n.Carrier {
			return nil
		}
		why := "what the guest sends vanishes without an error, and it has not been told: its own cable seems to be in"
		if slices.ContainsFunc(f.status.NICs, func(s NICStatus) bool { return s.Name == n.child.Name && s.Link == LinkNoCarrier }) {
			why = "the guest has been told, and sees that its cable is out"
		}
		return tell(Warn, fmt.Sprintf("%s: %s is down or without carrier", n.child.Name, n.child.Lower()), why, "vmrun doctor "+n.child.Lower())
	})
}

func checkGuestMACs(f guestFacts) []Finding {
	return f.perNIC(func(n nicFacts) []Finding {
		if n.filter == nil || n.filter.MainMAC == "" || n.filter.MainMAC == n.MAC.String() || n.child.Kind == configs.KindIPvtap {
			return nil
		}
		return tell(Warn, fmt.Sprintf("%s: the guest uses the MAC %s, and its child has %s", n.child.Name, n.filter.MainMAC, n.MAC),
			"macvtap delivers by the child's MAC: the guest sends, and hears no answer", fmt.Sprintf(`in the guest: ip link set dev DEV address %s; or trust = "mac" below this [[nic]]`, n.MAC))
	})
}

// The supervisor's own words come first in what follows; without one there are none.

func checkRefused(f guestFacts) []Finding {
	var found []Finding
	for _, n := range f.status.NICs {
		if n.Refused != "" {
			found = append(found, tell(Warn, n.Name+": "+n.Refused, "a guest that is not trusted does not change its NIC, and hears nothing at another MAC",
				`undo it in the guest; or trust = "mac" below this [[nic]]`)...)
		}
		if n.Note != "" {
			found = append(found, Finding{ID: "nic-note", Level: Note, Text: n.Name + ": " + n.Note})
		}
	}
	return found
}

func checkForged(f guestFacts) []Finding {
	var found []Finding
	for _, n := range f.status.NICs {
		if n.Dropped == nil || *n.Dropped == (netsetup.Refusals{}) {
			continue
		}
		found = append(found, tell(Warn, fmt.Sprintf("%s: frames of the guest were dropped as forged: %s", n.Name, n.Dropped),
			fmt.Sprintf("pin = %q lets the guest speak for itself alone", n.Pin), "give all its addresses with addresses = […]; or vmrun nsenter "+f.status.Name+" -- tcpdump -eni "+n.Name)...)
	}
	return found
}

func checkUnrouted(f guestFacts) []Finding {
	var found []Finding
	for _, n := range f.status.NICs {
		for addr, why := range n.Unrouted {
			found = append(found, tell(Warn, fmt.Sprintf("%s: this host does not reach the guest at %s", n.Name, addr), why, "ip address show "+n.Parent)...)
		}
	}
	return found
}

func checkConflicts(f guestFacts) []Finding {
	var found []Finding
	for _, n := range f.status.NICs {
		for _, a := range n.Learned {
			if a.Conflict != "" {
				found = append(found, tell(Warn, fmt.Sprintf("%s: %s is claimed by %s as well", n.Name, a.IP, a.Conflict),
					"two machines have one address, and each is reached at times; clones of one image get the same lease", renewInGuest)...)
			}
		}
	}
	return found
}

func checkMTUs(f guestFacts) []Finding {
	return f.perNIC(func(n nicFacts) []Finding {
		if want := n.child.NIC.MTU; n.Condition.MTU < want {
			return tell(Warn, fmt.Sprintf("%s: its MTU is %d, and the guest was told %d", n.child.Name, n.Condition.MTU, want),
				"lowering a parent's MTU takes its children's along, raising it does not bring them back",
				fmt.Sprintf("ip link set %s mtu %d && vmrun nsenter %s -- ip link set %s mtu %d", n.child.Lower(), want, f.status.Name, n.child.Name, want))
		}
		return nil
	})
}

// enoughSent is how many frames without any answer are no coincidence.
const enoughSent = 20

func checkAnswered(f guestFacts) []Finding {
	return f.perNIC(func(n nicFacts) []Finding {
		if n.stats == nil || n.stats.TxPackets < enoughSent || n.stats.RxPackets > n.stats.Multicast || !n.Carrier {
			return nil
		}
		return tell(Warn, fmt.Sprintf("%s: the guest has sent %d frames, and not one came back that was for it alone", n.child.Name, n.stats.TxPackets),
			"a switch, virtual ones most of all, drops MACs that it does not know (port security, MAC spoofing protection), or the VLAN is another",
			fmt.Sprintf("allow %s on the switch's port; vmrun nsenter %s -- tcpdump -eni %s", n.MAC, f.status.Name, n.child.Name))
	})
}

func checkDrops(f guestFacts) []Finding {
	return f.perNIC(func(n nicFacts) []Finding {
		if n.stats == nil || n.stats.RxDropped == 0 {
			return nil
		}
		return tell(Warn, fmt.Sprintf("%s: %d frames for the guest were dropped, %d delivered", n.child.Name, n.stats.RxDropped, n.stats.RxPackets),
			"its tap holds as many as txqueuelen says, and the guest takes them too slowly (or is paused)",
			fmt.Sprintf("vmrun nsenter %s -- ip link set %s txqueuelen 4000; for good: txqueuelen = 4000 below this [[nic]]", f.status.Name, n.child.Name))
	})
}

// sharedAddresses are those that more than one guest has on the same parent.
func sharedAddresses(guests []Status) map[string][]string {
	shared := map[string][]string{}
	for _, g := range guests {
		if g.State.Rests() {
			continue
		}
		for _, n := range g.NICs {
			for _, addr := range n.Addresses {
				key := addr + " on " + n.Parent
				if !slices.Contains(shared[key], g.Name) {
					shared[key] = append(shared[key], g.Name)
				}
			}
		}
	}
	maps.DeleteFunc(shared, func(_ string, names []string) bool { return len(names) < 2 })
	return shared
}
