package launcher

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"vmrun/configs"
)

// The words by which QEMU is told of disks.

const scsiController = "virtio-scsi-pci,id=scsi0"

// driveID is a disk's device in QEMU, and diskNode the block node that it reads and
// writes.
func driveID(i int) string  { return fmt.Sprintf("drive%d", i) }
func diskNode(i int) string { return fmt.Sprintf("disk%d", i) }

// addDisk builds the chain of block nodes bottom up. Each layer is opened by
// number and has its format and its backing spelt out, so that QEMU looks into
// no image to find out.
func (c *commandLine) addDisk(i int, d configs.Disk, chain []layer, fds *descriptors) {
	top := diskNode(i)
	if d.Throttle != (configs.Throttle{}) {
		top += "-image" // below the node that throttles it
	}
	var backing any // nil: JSON null, which forbids a backing file named inside the image
	for n := len(chain) - 1; n >= 0; n-- {
		node := top
		if n > 0 {
			node = layerName(i, n)
		}
		c.addLayer(layerName(i, n), node, chain[n], under(d, n), backing, fds)
		backing = node
	}
	if d.Throttle != (configs.Throttle{}) {
		group := fmt.Sprintf("throttle%d", i)
		c.addJSON("-object", map[string]any{"qom-type": "throttle-group", "id": group, "limits": throttleLimits(d.Throttle)})
		c.addJSON("-blockdev", map[string]any{"driver": "throttle", "node-name": diskNode(i), "throttle-group": group, "file": top})
	}
	if d.Bus == configs.BusSCSI && !slices.Contains(*c, scsiController) {
		c.add("-device", scsiController)
	}
	device := diskDevice(d) + c.idePort(d) + ",id=" + driveID(i)
	if len(chain) > 0 {
		device += ",drive=" + diskNode(i)
	}
	if d.IOThread {
		thread := fmt.Sprintf("iothread%d", i)
		c.add("-object", "iothread,id="+thread)
		device += ",iothread=" + thread
	}
	if d.Serial != "" {
		device += ",serial=" + d.Serial
	}
	if !d.Readonly && (d.Cache == configs.CacheWritethrough || d.Cache == configs.CacheDirectsync) {
		device += ",write-cache=off"
	}
	c.add("-device", device+bootIndex(d.BootIndex, ""))
}

func diskDevice(d configs.Disk) string {
	kind := "hd"
	if d.CDROM {
		kind = "cd"
	}
	switch d.Bus {
	case configs.BusSCSI:
		return "scsi-" + kind + ",bus=scsi0.0"
	case configs.BusIDE:
		return "ide-" + kind
	}
	return "virtio-blk-pci"
}

// idePort says where a drive on IDE goes: each port of q35's controller takes one,
// and QEMU would put the second on the first port too.
func (c commandLine) idePort(d configs.Disk) string {
	ports, drives := false, 0
	for i, word := range c {
		ports = ports || i > 0 && c[i-1] == "-machine" && strings.Contains(word, "q35")
		if strings.HasPrefix(word, "ide-") {
			drives++
		}
	}
	if d.Bus != configs.BusIDE || !ports {
		return ""
	}
	return fmt.Sprintf(",bus=ide.%d", drives)
}

// addLayer adds one image, which is open under a name, as a node.
func (c *commandLine) addLayer(name, node string, l layer, d configs.Disk, backing any, fds *descriptors) {
	fd, set := fds.addSet(name, l.Path)
	c.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, set))
	file, format := layerNodes(node, l, d, set, backing)
	c.addJSON("-blockdev", file)
	c.addJSON("-blockdev", format)
}

// layerNodes are the two nodes of an image in a fdset: one for the open file and one
// for its format (qapi/block-core.json, BlockdevOptions).
func layerNodes(node string, l layer, d configs.Disk, set int, backing any) (file, format map[string]any) {
	discard := "ignore"
	if d.Discard {
		discard = "unmap"
	}
	driver := "file"
	if l.Device {
		driver = "host_device"
	}
	file = map[string]any{
		"driver":         driver,
		"node-name":      node + "-file",
		"filename":       fmt.Sprintf("/dev/fdset/%d", set),
		"read-only":      d.Readonly,
		"auto-read-only": false,
		"discard":        discard,
		"cache": map[string]bool{
			"direct":   d.Cache == configs.CacheNone || d.Cache == configs.CacheDirectsync,
			"no-flush": d.Cache == configs.CacheUnsafe,
		},
	}
	if d.IO != "" && d.IO != configs.IOThreads {
		file["aio"] = string(d.IO)
	}
	format = map[string]any{
		"driver":         string(l.Format),
		"node-name":      node,
		"file":           node + "-file",
		"read-only":      d.Readonly,
		"auto-read-only": false,
		"discard":        discard,
	}
	if l.Format == configs.FormatQCOW2 {
		format["backing"] = backing
	}
	return file, format
}

// throttleLimits are the limits as QEMU has them (qapi/qom.json, ThrottleLimits).
func throttleLimits(t configs.Throttle) map[string]any {
	limits := map[string]any{}
	for name, value := range map[string]uint64{
		"bps-total": uint64(t.BPSTotal), "bps-read": uint64(t.BPSRead), "bps-write": uint64(t.BPSWrite),
		"iops-total": uint64(t.IOPSTotal), "iops-read": uint64(t.IOPSRead), "iops-write": uint64(t.IOPSWrite),
	} {
		if value != 0 {
			limits[name] = value
		}
	}
	return limits
}

// under is how a layer of a disk is used: those below its own image are only read.
func under(d configs.Disk, n int) configs.Disk {
	if n > 0 {
		d.Readonly, d.Discard = true, false
	}
	return d
}

// addJSON writes an option as JSON, which needs no escaping of its own.
func (c *commandLine) addJSON(option string, value map[string]any) {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // strings, numbers, booleans and nil only
	}
	c.add(option, string(text))
}
