package launcher

import (
	"encoding/json"
	"math"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

// ids are those of findings that are more than good.
func ids(found []Finding) string {
	var words []string
	for _, f := range found {
		if f.Level != Good {
			words = append(words, string(f.Level)+" "+f.ID)
		}
	}
	return strings.Join(words, ", ")
}

// What a host needs to be told that this machine is not, and no namespace makes
// of it.
func TestHostChecks(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	now := time.Now()
	for _, tt := range []struct {
		name  string
		facts hostFacts
		want  string
	}{
		{"nothing", hostFacts{}, ""},
		{"made by nobody known", hostFacts{vendor: "Dell Inc.", product: "PowerEdge"}, ""},
		{"on Hyper-V", hostFacts{vendor: "Microsoft Corporation", product: "Virtual Machine"}, "warn virtual-switch"},
		{"on EC2", hostFacts{vendor: "Amazon EC2", product: "m5.large"}, "warn virtual-switch"},
		{"on KVM of Red Hat", hostFacts{vendor: "Red Hat", product: "KVM"}, "warn virtual-switch"},
		{"no id", hostFacts{machineID: "x"}, "bad machine-id"},
		{"an id of zeros", hostFacts{machineID: strings.Repeat("0", 32)}, "bad machine-id"},
		{"another id in D-Bus", hostFacts{dbusID: strings.Repeat("a", 32)}, "warn machine-id"},
		{"keys younger than the id", hostFacts{idAge: now.Add(-100 * time.Hour), keyAge: now}, "note machine-id"},
		{"keys as old as the id", hostFacts{idAge: now.Add(-time.Hour), keyAge: now}, ""},
		{"two guests with one address", hostFacts{shared: map[string][]string{"192.0.2.9 on eth0": {"a", "b"}}}, "warn shared-address"},
		{"a full run directory", hostFacts{baseGap: room{free: 4096, total: 1 << 30}}, "bad disk-full"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.facts.machineID == "" {
				tt.facts.machineID = id
			}
			tt.facts.base = DefaultRunDir
			found := examine("", tt.facts, hostChecks)
			wellFormed(t, found)
			if got := ids(found); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestGuestChecks(t *testing.T) {
	child := netsetup.Child{Name: "net0", NIC: configs.NIC{Parent: "eth0", Model: "virtio-net-pci"}}
	well := netsetup.Condition{Parent: true, Carrier: true, Child: true, Attached: true, Up: true}
	for _, tt := range []struct {
		name  string
		nic   nicFacts
		told  NICStatus
		guest guestFacts
		want  string
	}{
		{"well", nicFacts{Condition: well}, NICStatus{}, guestFacts{}, ""},
		{"its parent is gone", nicFacts{Condition: netsetup.Condition{}}, NICStatus{}, guestFacts{}, "bad child-gone"},
		{"it is down", nicFacts{Condition: netsetup.Condition{Parent: true, Carrier: true, Child: true, Attached: true}}, NICStatus{}, guestFacts{}, "warn child-gone"},
		{"it is on another", nicFacts{Condition: netsetup.Condition{Parent: true, Carrier: true, Child: true, Up: true}}, NICStatus{}, guestFacts{}, "bad child-gone"},
		{"a change was refused", nicFacts{Condition: well}, NICStatus{Refused: "the guest set its MAC"}, guestFacts{}, "warn refused"},
		{"something was forged", nicFacts{Condition: well}, NICStatus{Dropped: &netsetup.Refusals{ARP: 3}}, guestFacts{}, "warn forged"},
		{"nothing was forged", nicFacts{Condition: well}, NICStatus{Dropped: &netsetup.Refusals{}}, guestFacts{}, ""},
		{"an address is not routed", nicFacts{Condition: well}, NICStatus{Unrouted: map[netip.Addr]string{netip.MustParseAddr("192.0.2.1"): "it is the gateway's"}}, guestFacts{}, "warn unrouted"},
		{"an address is another's too", nicFacts{Condition: well}, NICStatus{Learned: []netsetup.Address{{Conflict: "02:00:00:00:00:09"}}}, guestFacts{}, "warn address-conflict"},
		{"QEMU hangs", nicFacts{Condition: well}, NICStatus{}, guestFacts{status: Status{State: StateUnresponsive, Silent: silentQEMU}}, "bad unresponsive"},
		{"QEMU was upgraded", nicFacts{Condition: well}, NICStatus{}, guestFacts{replaced: true}, "note qemu-replaced"},
		{"a disk fails", nicFacts{Condition: well}, NICStatus{}, guestFacts{runState: "io-error", blocks: []blockInfo{{Qdev: "/machine/peripheral/drive0/virtio-backend", IOStatus: "failed"}}}, "bad disk-error"},
		{"too small a group", nicFacts{Condition: well}, NICStatus{}, guestFacts{memory: groupMemory{path: "/x", limit: 1 << 20}}, "warn out-of-memory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.guest
			f.rec = &record{Guest: &configs.Guest{Name: "web1", Memory: 1 << 30, Disks: []configs.Disk{{Path: "/x.raw"}}}}
			f.status.Name, f.status.Supervisor = "web1", 1
			if f.memory.limit == 0 {
				f.memory.limit = math.MaxUint64
			}
			tt.nic.child, tt.told.Name = child, child.Name
			f.nics, f.status.NICs = []nicFacts{tt.nic}, []NICStatus{tt.told}
			found := examine("web1", f, guestChecks)
			wellFormed(t, found)
			if got := ids(found); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// FuzzGuestChecks has a QEMU answer anything to what the doctor asks.
func FuzzGuestChecks(f *testing.F) {
	f.Add("io-error", []byte(`[{"device":"","qdev":"/machine/peripheral/drive0/virtio-backend","io-status":"nospace"}]`), []byte(`{"main-mac":"02:00:00:00:00:01"}`))
	f.Add("running", []byte(`[{"qdev":"drive-1","io-status":"failed"},{"qdev":"drive9223372036854775807","io-status":"failed"}]`), []byte(`{"promiscuous":true,"multicast":"all"}`))
	f.Add("paused", []byte(`[{"device":"\u001b[2J","io-status":"ok"},null]`), []byte(`null`))
	f.Fuzz(func(t *testing.T, runState string, blocks, filter []byte) {
		g := guestFacts{
			status: Status{Name: "web1", Supervisor: 1, NICs: []NICStatus{{Name: "net0"}}}, runState: runState, memory: groupMemory{limit: math.MaxUint64},
			rec: &record{Guest: &configs.Guest{Name: "web1", Disks: []configs.Disk{{Path: "/x.raw"}}}},
		}
		n := nicFacts{child: netsetup.Child{Name: "net0", NIC: configs.NIC{Parent: "eth0", Model: "virtio-net-pci"}}}
		n.Condition = netsetup.Condition{Parent: true, Carrier: true, Child: true, Attached: true, Up: true}
		if json.Unmarshal(filter, &n.filter) != nil || json.Unmarshal(blocks, &g.blocks) != nil {
			return
		}
		g.nics = []nicFacts{n}
		wellFormed(t, examine("web1", g, guestChecks))
	})
}

func TestSharedAddresses(t *testing.T) {
	guest := func(name string, state State, addrs ...string) Status {
		return Status{Name: name, State: state, NICs: []NICStatus{{Parent: "eth0", Addresses: addrs}}}
	}
	got := sharedAddresses([]Status{
		guest("a", StateRunning, "192.0.2.9", "192.0.2.10"), guest("b", StatePaused, "192.0.2.9"),
		guest("c", StateRunning, "192.0.2.11"), guest("d", StateEnded, "192.0.2.11"),
	})
	if diff := cmp.Diff(map[string][]string{"192.0.2.9 on eth0": {"a", "b"}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReadHelp(t *testing.T) {
	machines := parseMachines("Supported machines are:\nmicrovm              microvm (i386)\npc-i440fx-1.7        Standard PC (i440FX + PIIX, 1996) (deprecated)\n")
	if diff := cmp.Diff(map[string]bool{"microvm": false, "pc-i440fx-1.7": true}, machines); diff != "" {
		t.Errorf("machines (-want +got):\n%s", diff)
	}
	devices := parseDevices("Network devices:\nname \"e1000\", bus PCI, alias \"e1000-82540em\", desc \"Intel Gigabit Ethernet\"\n\n")
	if diff := cmp.Diff(map[string]bool{"e1000": true, "e1000-82540em": true}, devices); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	options := parseOptions("usage: qemu\n\nStandard options:\n-h or -help     display this help and exit\n-hda/-hdb file  use 'file'\n-m [size=]megs\n                configure\n-S              freeze\n")
	if diff := cmp.Diff(map[string]bool{"-h": false, "-help": false, "-hda": true, "-hdb": true, "-m": true, "-S": false}, options); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}

func TestNearest(t *testing.T) {
	if got := nearest("enp3s1", []string{"br0", "eth0", "enp3s0"}); got[0] != "enp3s0" || len(got) != 3 {
		t.Errorf("%q", got)
	}
}

// The kernel's own setting, in a namespace of its own.
func TestARPIgnore(t *testing.T) {
	found := inspectHost(t, t.TempDir(), hostWith(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/conf/all/arp_ignore", []byte("1"), 0)
	}), Subject{Spec: specOf(t, nic("bridge", "host_access = true"))})
	expect(t, found, Warn, "web1", "net.ipv4.conf.all.arp_ignore is 1")
}

// Filters that the kernel does not have are an answer like any other: of such a
// kernel there are only the words.
func TestFiltersMissing(t *testing.T) {
	nettest.Root(t)
	g := specOf(t, nic("bridge", `pin = "mac"`))
	f := specFacts{guest: g}
	if f.tryNICs(); f.pinErr != nil {
		t.Errorf("this kernel has nf_tables: %v", f.pinErr)
	}
	f.pinErr = unix.EOPNOTSUPP
	if got := ids(examine("web1", f, []check[specFacts]{{"no-filter", "", checkFilters}})); got != "bad no-filter" {
		t.Error(got)
	}
}
