package configs

import (
	"path/filepath"
	"strings"
)

// sectorSize is the unit of a disk's size.
const sectorSize Size = 512

// disk resolves one [[disk]].
func (c *resolver) disk(key string, raw *rawDisk) Disk {
	d := Disk{
		Path:      c.path(key+".path", raw.Path),
		Base:      c.path(key+".base", raw.Base),
		Size:      c.size(key+".size", raw.Size, 0),
		CDROM:     isTrue(raw.CDROM),
		Readonly:  isTrue(raw.Readonly) || isTrue(raw.CDROM),
		Serial:    c.word(key+".serial", raw.Serial, "._-", "the guest shows it in /dev/disk/by-id"),
		Cache:     oneOf(c, key+".cache", "a cache mode", raw.Cache, CacheWriteback, caches),
		IO:        oneOf(c, key+".io", "a way to read and write", raw.IO, IOThreads, ios),
		IOThread:  isTrue(raw.IOThread),
		Discard:   isTrue(raw.Discard),
		BootIndex: c.bootIndex(key+".boot_index", raw.BootIndex),
	}
	if raw.Path == nil && !d.CDROM {
		c.addf(key+".path", `missing: add the image's file, as path = "disk.qcow2": only the drive of a CD-ROM can be empty`)
	}
	d.Format = c.format(key+".format", d.Path, raw.Format)
	if d.Base != "" {
		d.BaseFormat = c.format(key+".base_format", d.Base, raw.BaseFormat)
	}
	d.Bus = BusVirtio
	if d.CDROM {
		d.Bus = BusIDE
	}
	if d.CDROM && c.arch == ArchARM {
		d.Bus = BusSCSI
	}
	d.Bus = oneOf(c, key+".bus", "a disk bus", raw.Bus, d.Bus, buses)
	c.diskBase(key, raw, &d)
	c.diskSize(key, raw, &d)
	c.diskAccess(key, raw, &d)
	c.diskSpeed(key, raw, &d)
	return d
}

func isTrue(b *bool) bool   { return b != nil && *b }
func notFalse(b *bool) bool { return b == nil || *b }

// format takes a declared format, or the one that the path's ending implies.
// A format is never probed: a guest can write any header onto a raw disk.
func (c *resolver) format(key, path string, text *string) DiskFormat {
	if text != nil {
		return oneOf(c, key, "an image format", text, "", formats)
	}
	if path == "" || c.isKnown(key) {
		return "" // complained about already
	}
	if f := ImageFormat(path); f != "" {
		return f
	}
	name := key[strings.LastIndexByte(key, '.')+1:]
	c.addf(key, `the ending of %s does not tell the format: add %s = "raw" or %[2]s = "qcow2"`, quote(filepath.Base(path)), name)
	return ""
}

// ImageFormat is the format that the ending of an image's name stands for, "" where
// it stands for none.
func ImageFormat(path string) DiskFormat {
	if isDevice(path) {
		return FormatRaw
	}
	switch filepath.Ext(path) {
	case ".raw", ".img", ".iso":
		return FormatRaw
	case ".qcow2":
		return FormatQCOW2
	}
	return ""
}

func isDevice(path string) bool { return strings.HasPrefix(path, "/dev/") }

// diskBase checks a disk that is an overlay of another image.
func (c *resolver) diskBase(key string, raw *rawDisk, d *Disk) {
	if raw.Base == nil {
		if raw.BaseFormat != nil && !c.isKnown(key+".base") {
			c.addf(key+".base_format", "there is no base: add base, or remove base_format")
		}
		return
	}
	switch {
	case d.CDROM:
		c.addf(key+".base", "a CD-ROM is only read and needs no overlay: remove base, or make the base the path")
	case d.Readonly:
		c.addf(key+".base", "a read-only disk needs no overlay: remove readonly, or make the base the path")
	case d.Format == FormatRaw:
		c.addf(key+".base", `only a qcow2 image can be an overlay: use format = "qcow2", or remove base`)
	case d.Base == d.Path && d.Path != "":
		c.addf(key+".base", "a disk cannot be its own base: name another file in path")
	}
}

// diskSize checks the size that a disk is created with, or grown to.
func (c *resolver) diskSize(key string, raw *rawDisk, d *Disk) {
	if raw.Size == nil {
		return
	}
	key += ".size"
	switch {
	case d.CDROM || d.Readonly:
		c.addf(key, "it is for a disk that can be created or grown, and this one is only read: remove size")
	case isDevice(d.Path):
		c.addf(key, "%s is a device and has a size already: remove size", quote(d.Path))
	case d.Size == 0:
		c.addf(key, `a disk cannot be empty: use a size as "20GiB", or remove size`)
	case d.Size%sectorSize != 0:
		c.addf(key, "%s is not a multiple of %s: use %s", d.Size, sectorSize, (d.Size/sectorSize+1)*sectorSize)
	}
}

// diskAccess checks what goes with a disk that is only read.
func (c *resolver) diskAccess(key string, raw *rawDisk, d *Disk) {
	if d.CDROM && raw.Readonly != nil && !*raw.Readonly {
		c.addf(key+".readonly", "a CD-ROM is only read: remove readonly, or cdrom")
	}
	if d.CDROM && d.Bus == BusVirtio {
		c.addf(key+".bus", `virtio has no CD-ROM: use "ide" or "scsi", or remove bus`)
	}
	if d.Readonly && !d.CDROM && d.Bus == BusIDE {
		// QEMU: "Block node is read-only".
		c.addf(key+".bus", `an IDE disk cannot be read-only: use "virtio" or "scsi", or cdrom = true`)
	}
	if d.Readonly && d.Discard {
		c.addf(key+".discard", "a guest discards only what it can write: remove discard")
	}
}

// The longest serial numbers that buses carry (VIRTIO_BLK_ID_BYTES in
// linux/virtio_blk.h; hw/scsi/scsi-disk.c, MAX_SERIAL_LEN).
const (
	maxSerial     = 20
	maxSCSISerial = 36
)

// maxIOPS is far beyond any disk.
const maxIOPS = 1_000_000_000

// diskSpeed checks how a disk is read and written, and how fast.
func (c *resolver) diskSpeed(key string, raw *rawDisk, d *Disk) {
	longest := maxSerial
	if d.Bus == BusSCSI {
		longest = maxSCSISerial
	}
	if len(d.Serial) > longest {
		c.addf(key+".serial", "%s has %d bytes, and a serial number on this bus %d at most", quote(d.Serial), len(d.Serial), longest)
	}
	if d.IO == IONative && d.Cache != CacheNone && d.Cache != CacheDirectsync && d.Cache != "" {
		c.addf(key+".io", `"native" goes around the host's page cache: set cache = "none" or "directsync", or use another`)
	}
	if d.IOThread && d.Bus != BusVirtio && d.Bus != "" {
		c.addf(key+".iothread", `only a virtio disk can have a thread of its own: use bus = "virtio", or remove iothread`)
	}
	if raw.Throttle == nil {
		return
	}
	if d.CDROM {
		c.addf(key+".throttle", "a CD-ROM has no limits: remove it")
	}
	at, t := key+".throttle", raw.Throttle
	d.Throttle = Throttle{
		BPSTotal: c.bps(at+".bps_total", t.BPSTotal), BPSRead: c.bps(at+".bps_read", t.BPSRead), BPSWrite: c.bps(at+".bps_write", t.BPSWrite),
		IOPSTotal: int(c.integer(at+".iops_total", t.IOPSTotal, 0, 1, maxIOPS)),
		IOPSRead:  int(c.integer(at+".iops_read", t.IOPSRead, 0, 1, maxIOPS)),
		IOPSWrite: int(c.integer(at+".iops_write", t.IOPSWrite, 0, 1, maxIOPS)),
	}
	if t.BPSTotal != nil && (t.BPSRead != nil || t.BPSWrite != nil) {
		c.addf(at+".bps_total", "it does not go with bps_read and bps_write: keep the total, or its parts")
	}
	if t.IOPSTotal != nil && (t.IOPSRead != nil || t.IOPSWrite != nil) {
		c.addf(at+".iops_total", "it does not go with iops_read and iops_write: keep the total, or its parts")
	}
}

// minBPS lets a page through each second.
const minBPS = 4 * kib

// bps takes a number of bytes per second.
func (c *resolver) bps(key string, text *sizeText) Size {
	rate := c.size(key, text, 0)
	if text != nil && rate < minBPS && !c.isKnown(key) {
		c.addf(key, "%s each second is too little to work with: use at least %s, or leave it out for no limit", quote(string(*text)), minBPS)
	}
	return rate
}

// disksTogether checks the rules between disks, of as many as there is room for.
func (c *resolver) disksTogether(g *Guest) {
	for i := range min(len(g.Disks), maxDisks) {
		for j := range i {
			c.diskPair(i, j, &g.Disks[i], &g.Disks[j])
		}
	}
}

// diskPair compares a disk with an earlier one.
func (c *resolver) diskPair(i, j int, d, earlier *Disk) {
	key := indexKey("disk", i)
	if d.Serial != "" && d.Serial == earlier.Serial {
		c.addf(key+".serial", "%s is disk[%d]'s already: give each disk its own", quote(d.Serial), j)
	}
	switch {
	case d.Path == "" || earlier.Path == "":
	case d.Path == earlier.Path && !(d.Readonly && earlier.Readonly):
		c.addf(key+".path", "it is the image of disk[%d] already: two disks share one only when both are readonly", j)
	case d.Path == earlier.Base && !d.Readonly:
		c.addf(key+".path", "it is the base of disk[%d], which breaks when its base is written: add readonly = true", j)
	case d.Base == earlier.Path && !earlier.Readonly:
		c.addf(key+".base", "it is the image of disk[%d], and an overlay breaks when its base is written: make disk[%[1]d] readonly", j)
	}
}

// The limits of the buses as the launcher builds them. A q35 machine has one
// AHCI controller with six ports, a pc one PIIX with four drives; a SCSI
// controller of QEMU's has 256 targets, one of them its own.
const (
	maxIDE   = 6
	maxIDEPC = 4
	maxSCSI  = 255
	// maxPCI is how many cards a machine's root bus takes: 32 slots, less
	// the chip set's and what the launcher adds of its own.
	maxPCI = 24

	maxDisks = maxIDE + maxSCSI + maxPCI
)

// room checks that every device finds a place on its bus.
func (c *resolver) room(g *Guest) {
	ide := maxIDE
	if g.Machine == "pc" || strings.HasPrefix(g.Machine, "pc-i440fx") {
		ide = maxIDEPC
	}
	used := map[Bus]int{}
	if g.CloudInit.Hostname != "" {
		used[BusVirtio]++ // the seed
	}
	for i, d := range g.Disks {
		key := indexKey("disk", i)
		used[d.Bus]++
		switch {
		case d.Bus == BusIDE && g.Arch == ArchARM:
			c.addf(key+".bus", `aarch64's machine has no IDE: use "scsi", or "virtio" for what is no CD-ROM`)
		case d.Bus == BusIDE && used[d.Bus] == ide+1:
			c.addf(key+".bus", "the machine has room for %d IDE disks: use another bus for the rest", ide)
		case d.Bus == BusSCSI && used[d.Bus] == maxSCSI+1:
			c.addf(key+".bus", "the controller has room for %d SCSI disks: use another bus for the rest", maxSCSI)
		case d.Bus == BusVirtio && used[d.Bus] == maxPCI+1:
			c.addf(key+".bus", `the machine has room for %d virtio disks and NICs: use "scsi" for the rest`, maxPCI)
		}
	}
	if virtio := min(used[BusVirtio], maxPCI); virtio+len(g.NICs) > maxPCI {
		c.addf(indexKey("nic", maxPCI-virtio), `the machine has room for %d virtio disks and NICs: remove some, or use bus = "scsi" for disks`, maxPCI)
	}
}
