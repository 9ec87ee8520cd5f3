package configs

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/google/uuid"
)

// Guest is one virtual machine as its owner described it: every default that
// needs only the file is filled in, every path is absolute, every static rule
// holds. What depends on the host (a derived MAC or UUID, the accelerator, the
// QEMU binary) is left zero for the launcher to fill.
type Guest struct {
	Path       string    // the spec file, absolute; "" when the spec was not in a file
	Name       string    // CheckName holds
	UUID       uuid.UUID // uuid.Nil: derive one
	CPUs       int       // virtual CPUs, 1 to 255
	Topology   Topology  // the zero value is QEMU's choice
	Memory     Size      // bytes, a multiple of 1 MiB, and of Hugepages
	Arch       Arch      // "" is the host's
	Machine    string    // QEMU machine type; "" is the launcher's default
	Firmware   Firmware  // "" is FirmwareBIOS, and FirmwareUEFI where Arch has no other
	SecureBoot bool      // with UEFI on a q35 only
	Display    Display
	Accel      Accel
	CPU        string // QEMU CPU model; "" is the launcher's default
	QEMU       string // the QEMU binary: a path, or a name looked up in PATH; "" is that of Arch
	Boot       Boot
	Disks      []Disk
	NICs       []NIC
	Shares     []Share
	Watchdog   Watchdog

	CloudInit   CloudInit
	Credentials []Credential

	Console  Console
	Stop     Stop
	Restart  Restart
	Ready    Ready
	Group    string // of the host, whose members may use the guest; "" is root alone
	Limits   Limits
	Confine  Confine
	QEMUArgs []string // appended to QEMU's command line as they are
	After    []string // guests of the same fleet that are ready before this one starts; no cycles

	Autostart bool // when the host boots

	CPUAffinity      []CPUSet // the host's CPUs that each virtual one may run on: nil, or as many as CPUs
	EmulatorAffinity CPUSet   // those of QEMU's other threads; "" for all
	Hugepages        Size     // bytes of each page of the host that Memory is made of; 0: an ordinary one's
	Balloon          bool     // a balloon, which gives the guest's free pages back to the host
	TPM              bool     // a TPM 2.0

	source source // where each key stands, for errors that only the host can find
}

// Boot is a direct kernel boot. With an empty Kernel the firmware boots a
// disk or the network in the order of the boot indexes.
type Boot struct {
	Kernel  string // absolute path, "" for none
	Initrd  string
	Cmdline string
}

// Disk is one block device.
type Disk struct {
	Path       string     // the image or block device, absolute; "" for a CD-ROM drive without a medium
	Format     DiskFormat // as declared, or as the file name's ending implies; never probed
	Base       string     // backing image, absolute; "" for none
	BaseFormat DiskFormat
	Size       Size // bytes that the disk is created or grown to; 0: the base's, or without a base never create
	Readonly   bool
	CDROM      bool // implies Readonly
	Bus        Bus
	Serial     string // what the guest sees it by, "" for none
	Cache      Cache
	IO         IO
	IOThread   bool // virtio only
	Throttle   Throttle
	Discard    bool
	BootIndex  int // -1: not in the boot order
}

// Throttle holds the limits of a disk; 0 is none, and a total goes with neither of
// its parts.
type Throttle struct {
	BPSTotal, BPSRead, BPSWrite    Size // bytes per second
	IOPSTotal, IOPSRead, IOPSWrite int  // requests per second
}

// Topology is how the guest's kernel sees its CPUs.
type Topology struct {
	Sockets int // as many as CPUs, all three multiplied; or all 0
	Cores   int // of each socket
	Threads int // of each core
}

// Share is a directory of the host's that the guest can mount (virtiofs).
type Share struct {
	Path     string // absolute
	Tag      string // what the guest mounts it by, 1 to 36 bytes; no two of a guest have the same
	Readonly bool
}

// Watchdog is a timer that the guest has to reset.
type Watchdog struct {
	Action WatchdogAction
}

// WatchdogAction is what happens when it has expired; "" is no watchdog.
type WatchdogAction string

// The actions.
const (
	WatchdogOff      WatchdogAction = ""
	WatchdogReset    WatchdogAction = "reset"
	WatchdogPoweroff WatchdogAction = "poweroff" // QEMU ends, and the guest counts as failed
	WatchdogPause    WatchdogAction = "pause"
	WatchdogNMI      WatchdogAction = "inject-nmi" // an interrupt by which a kernel can be told to panic
	WatchdogNone     WatchdogAction = "none"       // it is logged, and nothing more
)

// NIC is one network card: a child of Parent.
type NIC struct {
	Parent    string // CheckInterface holds
	VLAN      int    // 802.1Q id, 1 to 4094: the child sits on that VLAN of Parent; 0: on Parent itself
	Kind      Kind
	Mode      Mode               // of a macvtap; "" for an ipvtap
	MAC       net.HardwareAddr   // nil: derive one, and always for an ipvtap, which has Parent's; CheckMAC holds
	Queues    int                // queue pairs, 1 to 8; more than 1 for virtio models only
	MTU       int                // bytes; 0: the parent's
	Model     string             // a QEMU network device: virtio-net-pci, e1000e, …
	Promisc   bool               // false, in passthru only: do not make the parent promiscuous; else true
	Sources   []net.HardwareAddr // the senders let in; not empty in source mode, and nil elsewhere
	BootIndex int                // -1: not in the boot order

	Multicast   Multicast // MulticastAll for an ipvtap
	Trust       Trust
	HostAccess  bool           // bridge mode only
	Addresses   []netip.Addr   // the guest's, where they are known beforehand; no zones, none twice
	Prefixes    []netip.Prefix // those of Addresses that cloud-init gives to the guest, with the length of their subnet's prefix
	Gateways    []netip.Addr   // one of each kind at most, in the subnets of Prefixes
	Nameservers []netip.Addr
	Pin         Pin // PinAll only with Addresses
	Bandwidth   Bandwidth

	Vhost        Vhost
	TxQueueLen   int  // frames that the tap's ring holds; 0: the kernel's default
	BcQueueLen   int  // broadcast frames that wait for the children of Parent; 0: the kernel's default
	HostOffload  bool // the guest may leave checksums and segmentation to the host
	GuestOffload bool // the guest takes frames without checksum, and larger than the wire's
}

// Lower names the link that the NIC is a child of: its parent, or the parent's
// VLAN device.
func (n NIC) Lower() string {
	if n.VLAN == 0 {
		return n.Parent
	}
	return fmt.Sprintf("%s.%d", n.Parent, n.VLAN)
}

// Kind is what sort of child a NIC is (linux/if_link.h, IFLA_INFO_KIND).
type Kind string

// The kinds. An ipvtap shares its parent's MAC and is told apart by its
// addresses.
const (
	KindMacvtap Kind = "macvtap"
	KindIPvtap  Kind = "ipvtap"
)

// Multicast says which multicast frames reach the guest.
type Multicast string

// The multicast policies.
const (
	MulticastGuest Multicast = "guest" // of the groups that the guest has joined
	MulticastAll   Multicast = "all"
	MulticastOff   Multicast = "off" // none; broadcast is not multicast
)

// Trust says what of its NIC a guest may change itself.
type Trust string

// The degrees of trust.
const (
	TrustNone Trust = "none"
	TrustMAC  Trust = "mac" // its MAC address
	TrustAll  Trust = "all" // that, further unicast addresses, and promiscuous mode, as far as the child's mode has them
)

// Pin says what a guest cannot forge.
type Pin string

// The kinds of pinning.
const (
	PinNone Pin = ""
	PinMAC  Pin = "mac" // the source MAC
	PinAll  Pin = "all" // that and all source addresses
)

// Bandwidth holds the limits of a NIC; 0 is none.
type Bandwidth struct {
	Inbound  Rate // to the guest
	Outbound Rate // from the guest
}

// Rate is a number of bits per second.
type Rate uint64

// Vhost says whether the host's kernel moves a NIC's frames instead of QEMU.
type Vhost string

// The choices; VhostAuto is vhost where the host has it.
const (
	VhostAuto Vhost = "auto"
	VhostOn   Vhost = "on"
	VhostOff  Vhost = "off"
)

// CloudInit is what the guest's cloud-init finds in its seed (cloud-init, NoCloud).
type CloudInit struct {
	Hostname      string   // "": there is no seed
	Users         []string // to be there, or UserDefault
	SSHKeys       []string // lines of authorized_keys, absolute paths of files with such, or KeysOwner
	Packages      []string // to be installed
	UserData      string   // the file of the owner's own user-data, absolute; "" for none
	NetworkConfig string   // the network-config instead of that which follows from the NICs, absolute; "" for that
}

// Credential is one of systemd's credentials, which the guest's finds in SMBIOS strings
// (systemd(1), SYSTEM CREDENTIALS).
type Credential struct {
	Name  string // unique in its guest
	Value string
	File  string // holds the value, absolute; "": Value does
}

// Console says what is kept of the serial console.
type Console struct {
	LogSize Size // bytes of console.log kept before it is rotated once, 4KiB to 1GiB; 0 keeps none
}

// Stop holds the time-outs of the stop ladder: a power-down, then QMP
// quit, then SIGKILL. Each is at most 24 hours; 0 goes straight on.
type Stop struct {
	Timeout     time.Duration // from the power-down to quit
	QuitTimeout time.Duration // from quit to SIGKILL
}

// Restart says whether a guest that ended is started again. One that its owner
// stopped never is.
type Restart struct {
	Policy   RestartPolicy
	Delay    time.Duration // before the first restart; each further one waits twice as long
	MaxDelay time.Duration // and this at most
	Limit    int           // restarts within Interval, after which the guest stays ended; 0: any number
	Interval time.Duration
}

// RestartPolicy says after which ends a guest is started again (systemd.service(5),
// Restart=).
type RestartPolicy string

// The restart policies.
const (
	RestartNo        RestartPolicy = "no"
	RestartOnFailure RestartPolicy = "on-failure" // after all but a power-off by the guest
	RestartAlways    RestartPolicy = "always"
)

// Ready says how far a guest has to come before it counts as ready, for the unit
// that starts it and for those who wait.
type Ready struct {
	When    ReadyWhen
	Console string        // with ReadyConsole: a regular expression (package regexp) for a line of the console
	Timeout time.Duration // how long a start may take until then; 0: for ever
}

// ReadyWhen is what a guest is ready with.
type ReadyWhen string

// What a guest is ready with.
const (
	ReadyStarted ReadyWhen = "started" // its CPUs run
	ReadyIP      ReadyWhen = "ip"      // it has an address that is not link-local
	ReadyConsole ReadyWhen = "console" // it has printed something
)

// Wish says in words what a guest is ready with.
func (r Ready) Wish() string {
	switch r.When {
	case ReadyIP:
		return "an address"
	case ReadyConsole:
		return fmt.Sprintf("%q on the console", r.Console)
	}
	return "its CPUs to run"
}

// Limits bound what a guest's QEMU takes of the host, through the cgroup that
// vmrun was given. 0 is none.
type Limits struct {
	Memory     Size    // bytes, QEMU's own included
	MemoryAuto bool    // the guest's memory and what QEMU needs beside it; then Memory is 0
	CPUs       float64 // of CPU time
	Tasks      int     // threads
}

// Confine names the walls around a guest's QEMU. Each can be left out, to find
// out whether something fails because of it.
type Confine struct {
	User       bool // a uid of its own, no capabilities, no_new_privs
	Seccomp    bool // QEMU's filter of system calls
	Root       bool // a root directory that holds what QEMU loads, read-only
	Namespaces bool // IPC and processes of its own
	Landlock   bool // no file but those, whatever else the root shows
	RLimits    bool
}

// Size is a number of bytes.
type Size uint64

// Arch is a guest's architecture, in QEMU's words.
type Arch string

// The architectures.
const (
	ArchX86 Arch = "x86_64"
	ArchARM Arch = "aarch64"
)

// Firmware is what runs first in a guest.
type Firmware string

// The kinds of firmware.
const (
	FirmwareBIOS Firmware = "bios"
	FirmwareUEFI Firmware = "uefi"
)

// Display says how the guest's screen can be seen.
type Display string

// The displays. A guest with DisplayNone has no graphics card at all.
const (
	DisplayNone Display = "none"
	DisplayVNC  Display = "vnc"
)

// Accel names a QEMU accelerator.
type Accel string

// The accelerators; AccelAuto is KVM where it works and TCG elsewhere.
const (
	AccelAuto Accel = "auto"
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg"
)

// Mode is a macvlan mode by its iproute2 name (linux/if_link.h, MACVLAN_MODE_*).
type Mode string

// The modes of a macvtap child.
const (
	ModePrivate  Mode = "private"
	ModeVEPA     Mode = "vepa"
	ModeBridge   Mode = "bridge"
	ModePassthru Mode = "passthru"
	ModeSource   Mode = "source"
)

// DiskFormat is a QEMU block driver for an image's format.
type DiskFormat string

// The image formats.
const (
	FormatRaw   DiskFormat = "raw"
	FormatQCOW2 DiskFormat = "qcow2"
)

// Bus is how a disk is attached.
type Bus string

// The disk buses.
const (
	BusVirtio Bus = "virtio"
	BusSCSI   Bus = "scsi"
	BusIDE    Bus = "ide"
)

// IO is how QEMU reads and writes a disk (qapi/block-core.json, BlockdevAioOptions).
type IO string

// The ways.
const (
	IOThreads IO = "threads"
	IONative  IO = "native" // Linux' AIO, without the host's page cache only
	IOUring   IO = "io_uring"
)

// Cache is a QEMU cache mode by its usual name (qemu-system-x86_64(1), -drive cache=).
type Cache string

// The cache modes.
const (
	CacheNone         Cache = "none"
	CacheWriteback    Cache = "writeback"
	CacheWritethrough Cache = "writethrough"
	CacheDirectsync   Cache = "directsync"
	CacheUnsafe       Cache = "unsafe"
)
