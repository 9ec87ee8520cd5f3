package configs

import (
	"net"
	"time"

	"github.com/google/uuid"
)

// Guest is one virtual machine as its owner described it: every default that
// needs only the file is filled in, every path is absolute, every static rule
// holds. What depends on the host (a derived MAC or UUID, the accelerator, the
// QEMU binary) is left zero for the launcher to fill.
type Guest struct {
	Path     string    // the spec file, absolute; "" when the spec was not in a file
	Name     string    // CheckName holds
	UUID     uuid.UUID // uuid.Nil: derive one
	CPUs     int       // virtual CPUs, 1 to 255
	Memory   Size      // bytes, a multiple of 1 MiB
	Machine  string    // QEMU machine type; "" is the launcher's default
	Accel    Accel
	CPU      string // QEMU CPU model; "" is the launcher's default
	QEMU     string // the QEMU binary: a path, or a name looked up in PATH; "" is qemu-system-x86_64
	Boot     Boot
	Disks    []Disk
	NICs     []NIC
	Console  Console
	Stop     Stop
	QEMUArgs []string // appended to QEMU's command line as they are

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
	Path       string     // the image or block device, absolute
	Format     DiskFormat // as declared, or as the file name's ending implies; never probed
	Base       string     // backing image, absolute; "" for none
	BaseFormat DiskFormat
	Size       Size // bytes of a disk that is created when missing; 0: the base's, or without a base never create
	Readonly   bool
	CDROM      bool // implies Readonly
	Bus        Bus
	Cache      Cache
	Discard    bool
	BootIndex  int // -1: not in the boot order
}

// NIC is one network card: a macvtap child of Parent.
type NIC struct {
	Parent    string // CheckInterface holds
	Mode      Mode
	MAC       net.HardwareAddr   // nil: derive one; CheckMAC holds
	Queues    int                // queue pairs, 1 to 8; more than 1 for virtio models only
	MTU       int                // bytes; 0: the parent's
	Model     string             // a QEMU network device: virtio-net-pci, e1000e, …
	Promisc   bool               // false, in passthru only: do not make the parent promiscuous; else true
	Sources   []net.HardwareAddr // the senders let in; not empty in source mode, and nil elsewhere
	BootIndex int                // -1: not in the boot order
}

// Console says what is kept of the serial console.
type Console struct {
	LogSize Size // bytes of console.log kept before it is rotated once, 4KiB to 1GiB; 0 keeps none
}

// Stop holds the time-outs of the stop ladder: an ACPI power-down, then QMP
// quit, then SIGKILL. Each is at most 24 hours; 0 goes straight on.
type Stop struct {
	Timeout     time.Duration // from the power-down to quit
	QuitTimeout time.Duration // from quit to SIGKILL
}

// Size is a number of bytes.
type Size uint64

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
