package launcher

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"vmrun/configs"
	"vmrun/netsetup"
)

// Facts is what NewPlan has to know of the host.
type Facts struct {
	MachineID string        // /etc/machine-id
	Arch      configs.Arch  // the host's
	Firmware  *firmware     // nil for QEMU's BIOS
	QEMU      string        // the binary, absolute
	Accel     configs.Accel // kvm or tcg, never auto
	Users     userRange
	Slot      int // the guest's number on this host: its uid and its interface indexes follow from it
	Net       netsetup.Host
	Others    []netsetup.Sibling // the children of the other guests
	Missing   map[string]bool    // the paths in the spec that do not exist
	Devices   map[string]bool    // the paths in the spec that are block devices
	Misfits   map[int]error      // the disks whose images are not as the spec says, by index
	Chains    map[int][]layer    // the images that the disks are made of, by index
	Vhost     error              // why vhost-net cannot be used, or nil
	KVMGroup  int                // the group that may use /dev/kvm, or -1
	BootSize  configs.Size       // bytes of the files that the guest boots from
	Cgroup    delegation         // looked for when the spec has limits
	Group     int                // whose members may use the guest beside root, or 0
	Seed      seedFacts          // what its seed and credentials are made of
	State     string             // the guest's state directory, which need not be there

	memory *memory // of a guest that is suspended, and to go on from there

	Swtpm         string // the program, absolute; "" for none
	Virtiofsd     string
	VirtiofsdRust bool          // it is the one in Rust, with words of its own
	Unshared      map[int]error // why a share's directory cannot be shared, by index
	CPUs          []int         // the host's that are online
	FreePages     uint64        // of the size in the spec's hugepages
	PagesErr      error         // why there are none of that size
}

// The ranges that slots select from. Interface indexes start far above those
// that the kernel hands out by itself; uids are in guestUsers.
const (
	maxSlots   = 65536
	maxNICs    = 64
	firstIndex = 1 << 24
)

// Plan is everything that a start will do, in order. It is a value: making one
// does nothing.
type Plan struct {
	Guest    *configs.Guest
	UUID     uuid.UUID
	Slot     int // the guest's number on this host
	UID      int // QEMU's user and group
	Groups   []int
	Group    int // whose members may use the guest beside root, 0 for none
	QEMU     string
	Accel    configs.Accel
	Children []netsetup.Child
	Ports    int      // slots for network cards, those that come later included; 0 where the machine needs none
	Files    []string // what each descriptor of QEMU is, by number
	Argv     []string // without the program's own name
	Steps    []Step
	Warnings []string // worth saying, no reason to stop

	Limits    configs.Limits // those that will hold
	Unlimited string         // why not all of the spec's will, or ""

	firmware *firmware
	vars     string    // the guest's own variables of it
	images   []string  // the path behind each fdset, by number less one
	chains   [][]layer // the images that each disk is made of
	cgroup   delegation
	memory   *memory // that the guest goes on from, or nil

	seed        map[string][]byte // the files of cloud-init's seed, nil for none
	credentials [][]byte          // as SMBIOS strings

	companions []companion
}

// Step is one act of a start.
type Step struct {
	Name  string // unique in its plan: "net0 create"
	Text  string // what it does, in words for the owner
	apply func(*life, context.Context) error
}

// PlanOptions are the choices at a start that are not the spec's.
type PlanOptions struct {
	Force  bool // override the rules that may be overridden
	Paused bool // leave the guest's CPUs halted
}

// NewPlan works out the start of a guest on a host with these facts. The error
// is a configs.Errors when the spec and the host do not fit each other.
func NewPlan(g *configs.Guest, facts Facts, opts PlanOptions) (*Plan, error) {
	g = settled(g, facts.Arch)
	p := &Plan{
		Guest: g,
		UUID:  guestUUID(g, facts.MachineID),
		Slot:  facts.Slot,
		UID:   facts.Users.first + facts.Slot,
		Group: facts.Group,
		QEMU:  facts.QEMU,
		Accel: facts.Accel,
		Ports: ports(g),

		firmware: facts.Firmware,
	}
	if p.firmware != nil {
		p.vars = filepath.Join(facts.State, varsFile(g))
	}
	p.restore(facts.memory)
	if p.Accel == configs.AccelKVM && facts.KVMGroup >= 0 {
		p.Groups = []int{facts.KVMGroup}
	}
	if p.memory == nil {
		for i, nic := range g.NICs {
			p.Children = append(p.Children, newChild(g, i, nic, facts))
		}
	}
	if err := p.check(facts, opts.Force); err != nil {
		return nil, err
	}
	p.planDisks(facts)
	p.Warnings = append(p.Warnings, openings(g.Confine)...)
	if err := p.planSeed(facts.Seed); err != nil {
		return nil, err
	}
	p.planLimits(facts)
	p.companions = companions(p, facts)
	fds := newDescriptors()
	p.Argv = argv(p, facts, fds)
	p.Files, p.images = fds.names, fds.images
	p.Steps = steps(p, facts, opts.Paused)
	return p, nil
}

// restore has the plan make the guest just as it was when it was suspended.
func (p *Plan) restore(m *memory) {
	if p.memory = m; m == nil {
		return
	}
	p.UUID, p.Accel, p.Ports, p.Children = m.UUID, m.Accel, m.Ports, m.children(p.Slot)
}

// planDisks settles what the disks are made of.
func (p *Plan) planDisks(facts Facts) {
	for i, d := range p.Guest.Disks {
		chain := facts.Chains[i]
		if chain == nil {
			chain = declaredChain(d, facts.Devices)
		}
		p.chains = append(p.chains, chain)
		if d.Size != 0 && len(chain) > 0 && uint64(d.Size) < chain[0].Size {
			p.Warnings = append(p.Warnings, fmt.Sprintf("disk[%d].size: %s has %s by now, and a disk is not shrunk to %s", i, d.Path, configs.Size(chain[0].Size), d.Size))
		}
	}
}

// grows reports whether a disk that is there is to be made larger. That of a guest
// which is suspended stays as the guest knows it.
func (p *Plan) grows(d configs.Disk, chain []layer) bool {
	return p.memory == nil && d.Size != 0 && len(chain) > 0 && !chain[0].Device && chain[0].Size != 0 && chain[0].Size < uint64(d.Size)
}

func newChild(g *configs.Guest, i int, nic configs.NIC, facts Facts) netsetup.Child {
	mac := nic.MAC
	if mac == nil && nic.Mode == configs.ModePassthru {
		mac = facts.Net.Parents[nic.Parent].MAC // the card is the guest's, and so is its address
	}
	if mac == nil {
		mac = guestMAC(g, facts.MachineID, i)
	}
	nic.MAC = mac
	if nic.MTU == 0 {
		nic.MTU = facts.Net.Parents[nic.Parent].MTU
	}
	if nic.Vhost == configs.VhostAuto {
		nic.Vhost = configs.VhostOff
		if facts.Vhost == nil && isVirtio(nic.Model) {
			nic.Vhost = configs.VhostOn
		}
	}
	return netsetup.Child{Name: fmt.Sprintf("net%d", i), Index: firstIndex + facts.Slot*maxNICs + i, NIC: nic}
}

// vhostFor says why a child that is to have vhost cannot, or returns nil.
func (f *Facts) vhostFor(c netsetup.Child) error {
	if c.Vhost != configs.VhostOn || f.Vhost == nil {
		return nil
	}
	return fmt.Errorf("this host cannot: %w: or use vhost = \"auto\"", f.Vhost)
}

// check holds the guest's network against the host's.
func (p *Plan) check(facts Facts, force bool) error {
	var errs configs.Errors
	for _, problem := range netsetup.Check(p.Children, facts.Net, facts.Others) {
		if problem.Warning || (problem.Force && force) {
			text := problem.Msg
			if problem.Force {
				text = "--force overrides that " + text
			}
			p.Warnings = append(p.Warnings, fmt.Sprintf("nic[%d].%s: %s", problem.Child, problem.Key, text))
			continue
		}
		errs = append(errs, p.Guest.Errorf(fmt.Sprintf("nic[%d].%s", problem.Child, problem.Key), "%s", problem.Msg))
	}
	for i, c := range p.Children {
		if err := facts.vhostFor(c); err != nil {
			errs = append(errs, p.Guest.Errorf(fmt.Sprintf("nic[%d].vhost", i), "%v", err))
		}
	}
	if p.memory != nil {
		errs = append(errs, p.checkMemory(p.memory, force)...)
	}
	for i, d := range p.Guest.Disks {
		if d.Bus == configs.BusIDE && p.Guest.Arch == configs.ArchARM { // of a spec that does not say so
			errs = append(errs, p.Guest.Errorf(fmt.Sprintf("disk[%d].bus", i), `this host's guests are aarch64, which has no IDE: use "scsi", or "virtio" for what is no CD-ROM`))
		}
		if err := facts.Misfits[i]; err != nil {
			errs = append(errs, p.Guest.Errorf(fmt.Sprintf("disk[%d].path", i), "%v", err))
		}
		switch {
		case facts.Missing[d.Path] && d.Readonly:
			errs = append(errs, p.Guest.Errorf(fmt.Sprintf("disk[%d].path", i), "%s does not exist", d.Path))
		case facts.Missing[d.Path] && d.Size == 0 && d.Base == "":
			errs = append(errs, p.Guest.Errorf(fmt.Sprintf("disk[%d].path", i),
				"%s does not exist: give size to have it created, or base to have it made as an overlay", d.Path))
		}
		if d.Base != "" && facts.Missing[d.Base] {
			errs = append(errs, p.Guest.Errorf(fmt.Sprintf("disk[%d].base", i), "%s does not exist", d.Base))
		}
	}
	if boot := p.Guest.Boot; facts.Missing[boot.Kernel] {
		errs = append(errs, p.Guest.Errorf("boot.kernel", "%s does not exist", boot.Kernel))
	}
	if boot := p.Guest.Boot; facts.Missing[boot.Initrd] {
		errs = append(errs, p.Guest.Errorf("boot.initrd", "%s does not exist", boot.Initrd))
	}
	for key, err := range facts.Seed.Problems {
		errs = append(errs, p.Guest.Errorf(key, "%v", err))
	}
	errs = append(errs, p.checkDevices(facts)...)
	if len(errs) > 0 {
		slices.SortStableFunc(errs, func(a, b *configs.Error) int { return cmp.Compare(a.Line, b.Line) })
		return errs
	}
	return nil
}

// guestUUID is the spec's, or one derived from the machine and the name.
func guestUUID(g *configs.Guest, machineID string) uuid.UUID {
	if g.UUID != uuid.Nil {
		return g.UUID
	}
	var id uuid.UUID
	copy(id[:], derive(machineID, "uuid", g.Name))
	id[6] = id[6]&0x0f | 0x80 // version 8, custom (RFC 9562, section 5.8)
	id[8] = id[8]&0x3f | 0x80
	return id
}

// guestMAC derives a locally administered unicast MAC that is the same at every
// start. A spec with a uuid takes its MACs along to another host.
func guestMAC(g *configs.Guest, machineID string, nic int) net.HardwareAddr {
	id := machineID
	if g.UUID != uuid.Nil {
		id = g.UUID.String()
	}
	mac := net.HardwareAddr(derive(id, "mac", g.Name, fmt.Sprint(nic))[:6])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}

// derive hashes the words with the identity as its key, which machine-id(5)
// asks for wherever something derived from it can be seen outside.
func derive(id string, words ...string) []byte {
	h := hmac.New(sha256.New, []byte(id))
	h.Write([]byte("vmrun\x00" + strings.Join(words, "\x00")))
	return h.Sum(nil)
}
