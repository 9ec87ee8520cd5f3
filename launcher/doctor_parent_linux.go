package launcher

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/vishvananda/netlink"

	"vmrun/configs"
	"vmrun/netsetup"
)

// parentFacts are those about one link of the host.
type parentFacts struct {
	name    string
	asked   bool // it was named: one of many that cannot be a parent is no harm
	there   bool
	names   []string // every link that could be a parent
	realOne string   // the link whose alternative name this is, or ""
	link    netsetup.Parent

	snoops  bool     // it is a bridge that passes multicast only where somebody joined
	querier bool     // and asks who has
	unused  []string // children whose taps nobody has open
}

// fitnessChecks tell whether a link can be a parent, which the plan of a start
// tells as well.
var fitnessChecks = []check[parentFacts]{
	{"missing-nic", "", checkThere},
	{"unfit-parent", "", checkFit},
	{"parent-down", "", checkUp},
}

// parentChecks tell how good a parent it is.
var parentChecks = []check[parentFacts]{
	{"no-carrier", "", checkCarrier},
	{"multicast-snooping", "", checkSnooping},
	{"leaked-child", "", checkUnused},
}

// gatherParent looks at a link in the calling thread's namespace.
func gatherParent(name string, host netsetup.Host) parentFacts {
	f := parentFacts{name: name, names: host.Names}
	f.link, f.there = host.Parents[name]
	if !f.there {
		if link, err := netlink.LinkByName(name); err == nil {
			f.realOne = link.Attrs().Name
		}
		return f
	}
	bridge := filepath.Join("/sys/class/net", name, "bridge")
	f.snoops = readWord(filepath.Join(bridge, "multicast_snooping")) == "1"
	f.querier = readWord(filepath.Join(bridge, "multicast_querier")) == "1"
	f.unused = unusedTaps(f.link.Children)
	return f
}

// diagnoseParent looks at a link that somebody asked about.
func diagnoseParent(name string) []Finding {
	host, err := netsetup.Survey(name)
	if err != nil {
		return []Finding{{ID: "parents", Level: Bad, Topic: "parents", Text: err.Error()}}
	}
	f := gatherParent(name, host)
	f.asked = true
	return f.diagnose()
}

// diagnoseParents says of every link whether guests could sit on it.
func diagnoseParents() []Finding {
	host, err := netsetup.Survey()
	if err == nil {
		host, err = netsetup.Survey(host.Names...)
	}
	if err != nil {
		return []Finding{{ID: "parents", Level: Bad, Topic: "parents", Text: err.Error()}}
	}
	var found []Finding
	usable := false
	for _, name := range host.Names {
		f := gatherParent(name, host)
		usable = usable || f.there && f.link.Up && netsetup.Unfit(f.link, configs.KindMacvtap) == ""
		found = append(found, f.diagnose()...)
	}
	if !usable {
		found = append(found, Finding{ID: "parents", Level: Bad, Topic: "parents",
			Text: "this host has no NIC that guests could sit on", Remedy: "ip -br link"})
	}
	return found
}

func (f parentFacts) topic() string { return "parent " + f.name }

func (f parentFacts) diagnose() []Finding {
	found := examine(f.topic(), f, fitnessChecks)
	if worse(found) {
		return found
	}
	found = append(found, examine(f.topic(), f, parentChecks)...)
	if len(found) == 0 {
		found = append(found, Finding{ID: "parent", Level: Good, Topic: f.topic(), Text: fmt.Sprintf("%s, MTU %d, up", f.link.Kind, f.link.MTU)})
	}
	return found
}

func checkThere(f parentFacts) []Finding {
	switch {
	case f.there:
		return nil
	case f.realOne != "":
		return tell(Bad, fmt.Sprintf("that is another name of %s", f.realOne), "specs name a link by the first of its names",
			fmt.Sprintf("parent = %q", f.realOne))
	case len(f.names) == 0:
		return tell(Bad, "there is no such link, nor any other Ethernet link, nor a guest or a spec of that name", "its driver is not loaded (yet), or it is in another namespace", "ip -br link")
	}
	device := "sys-subsystem-net-devices-" + unit.UnitNameEscape(f.name) + ".device"
	names := nearest(f.name, f.names)
	remedy := "ip -br link"
	if sharedPrefix(names[0], f.name) > 1 {
		remedy = fmt.Sprintf("parent = %q", names[0])
	}
	return tell(Bad, "there is no such link, nor a guest or a spec of that name; the host has "+strings.Join(names, ", "),
		"a NIC may be yet to come at boot: a unit waits for it with After= and Wants="+device, remedy)
}

// nearest are the names most like the one given, a handful at most.
func nearest(name string, names []string) []string {
	sorted := slices.Clone(names)
	slices.SortStableFunc(sorted, func(a, b string) int { return sharedPrefix(b, name) - sharedPrefix(a, name) })
	return sorted[:min(len(sorted), 5)]
}

func sharedPrefix(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

func checkFit(f parentFacts) []Finding {
	text := netsetup.Unfit(f.link, configs.KindMacvtap)
	if !f.there || text == "" {
		return nil
	}
	found := unfitness(f.link)
	found.Level, found.Text = Warn, text
	if f.asked {
		found.Level = Bad
	}
	return []Finding{found}
}

// unfitness is why a link is no parent, and the way round it.
func unfitness(p netsetup.Parent) Finding {
	switch {
	case p.Wireless:
		return Finding{ID: "wifi-parent", Why: "a station of a Wi-Fi network has one MAC, with which it has registered", Remedy: `kind = "ipvtap"`}
	case p.Master != "":
		return Finding{ID: "owned-parent", Why: "the kernel gives what a link receives to one owner, and says no more than EBUSY", Remedy: fmt.Sprintf("parent = %q", p.Master)}
	}
	return Finding{ID: "unfit-parent", Why: "guests send and receive Ethernet frames", Remedy: "ip -br link"}
}

func checkUp(f parentFacts) []Finding {
	if !f.there || f.link.Up {
		return nil
	}
	return tell(Warn, "down", "", "ip link set "+f.name+" up")
}

func checkCarrier(f parentFacts) []Finding {
	if !f.link.Up || f.link.Carrier {
		return nil
	}
	return tell(Warn, "up, but without carrier: is the cable in?",
		"what guests on it send vanishes without an error", "ethtool "+f.name)
}

func checkSnooping(f parentFacts) []Finding {
	if !f.snoops || f.querier {
		return nil
	}
	return tell(Warn, "it snoops on multicast, and asks nobody who wants it",
		"without a querier on the LAN such a bridge forgets who has joined, and IPv6 and mDNS die after some minutes",
		"ip link set "+f.name+" type bridge mcast_querier 1")
}

func checkUnused(f parentFacts) []Finding {
	if len(f.unused) == 0 {
		return nil
	}
	return tell(Warn, fmt.Sprintf("nobody has the tap open of its macvtap %s", strings.Join(f.unused, ", ")),
		`what is left of a guest keeps its MAC: the next start ends with "Address already in use"`, "ip link delete "+f.unused[0])
}

// unusedTaps are those macvtap links of the calling thread's namespace whose
// devices no process has open.
func unusedTaps(children []netsetup.Sibling) []string {
	var unused []string
	for _, c := range children {
		devices, _ := filepath.Glob(filepath.Join("/sys/class/net", c.Name, "macvtap/tap*/dev"))
		for _, path := range devices {
			if number := deviceNumber(readWord(path)); number != 0 && !deviceOpen(number) {
				unused = append(unused, c.Name)
			}
		}
	}
	return unused
}

// readWord is what a small file holds, "" where it cannot be read.
func readWord(path string) string {
	text, _ := os.ReadFile(path)
	return strings.TrimSpace(string(text))
}
