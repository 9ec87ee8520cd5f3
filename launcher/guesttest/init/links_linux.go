package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/netsetup/nettest/wire"
)

// nic is one of the guest's network cards.
type nic struct {
	name, mac, driver, pci string
	mtu                    int
	up, carrier, promisc   bool
	queues                 string
	addresses              []string
}

func (n nic) String() string {
	return fmt.Sprintf("%s mac=%s mtu=%d up=%t carrier=%t promisc=%t driver=%s queues=%s pci=%s addresses=%s",
		n.name, n.mac, n.mtu, n.up, n.carrier, n.promisc, n.driver, n.queues, n.pci, strings.Join(n.addresses, ","))
}

func (g *guest) links([]string) (answer, error) {
	nics, err := listLinks()
	if err != nil {
		return answer{}, err
	}
	a := answer{reply: fmt.Sprintf("links=%d", len(nics))}
	for _, n := range nics {
		a.lines = append(a.lines, n.String())
	}
	return a, nil
}

// nics tells in one line which are there now: eth0=MAC@PCI eth1=...
func (g *guest) nics([]string) (answer, error) {
	nics, err := listLinks()
	var words []string
	for _, n := range nics {
		words = append(words, fmt.Sprintf("%s=%s@%s", n.name, n.mac, n.pci))
	}
	return answer{reply: strings.Join(words, " ")}, err
}

// ofLink answers with an attribute that the kernel has of a link.
func ofLink(dev, attribute string) (answer, error) {
	value, err := os.ReadFile(filepath.Join("/sys/class/net", dev, attribute))
	return answer{reply: strings.TrimSpace(string(value))}, err
}

// carrier is what the NIC's driver was told, of a link that is up.
func (g *guest) carrier(args []string) (answer, error) {
	a, err := ofLink(args[0], "carrier")
	if err != nil {
		return answer{}, err // EINVAL of one that is down
	}
	return answer{reply: map[string]string{"0": "down", "1": "up"}[a.reply]}, nil
}

func (g *guest) driver(args []string) (answer, error) {
	driver, _, err := deviceOf(args[0])
	return answer{reply: driver}, err
}

func (g *guest) pci(args []string) (answer, error) {
	_, pci, err := deviceOf(args[0])
	return answer{reply: pci}, err
}

func deviceOf(dev string) (driver, pci string, err error) {
	dir := filepath.Join("/sys/class/net", dev)
	if _, err := os.Stat(dir); err != nil {
		return "", "", err
	}
	driver, pci = device(dir)
	return driver, pci, nil
}

// offload tells what the NIC does for the kernel, as ethtool -k names it.
func (g *guest) offload(args []string) (answer, error) {
	var words []string
	for _, f := range []struct {
		name string
		cmd  uint32
	}{
		{"rx-checksumming", unix.ETHTOOL_GRXCSUM}, {"tx-checksumming", unix.ETHTOOL_GTXCSUM},
		{"sg", unix.ETHTOOL_GSG}, {"tso", unix.ETHTOOL_GTSO}, {"gso", unix.ETHTOOL_GGSO}, {"gro", unix.ETHTOOL_GGRO},
	} {
		value := struct{ cmd, data uint32 }{cmd: f.cmd} // struct ethtool_value
		if err := ethtool(args[0], unsafe.Pointer(&value)); err != nil {
			return answer{}, fmt.Errorf("%s: %s: %w", args[0], f.name, err)
		}
		words = append(words, f.name+"="+map[bool]string{true: "on", false: "off"}[value.data != 0])
	}
	return answer{reply: strings.Join(words, " ")}, nil
}

func listLinks() ([]nic, error) {
	list, err := wire.Dump(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	var nics []nic
	for _, link := range list {
		attrs := link.Attrs()
		if attrs.Flags&net.FlagLoopback != 0 {
			continue
		}
		n := nic{
			name: attrs.Name, mac: attrs.HardwareAddr.String(), mtu: attrs.MTU,
			up:      attrs.Flags&net.FlagUp != 0,
			promisc: attrs.Promisc > 0,
			queues:  queues(attrs.Name),
		}
		dir := filepath.Join("/sys/class/net", attrs.Name)
		n.carrier = sysfs(dir, "carrier") == "1" // unreadable while down
		n.driver, n.pci = device(dir)
		addrs, err := listAddresses(link)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			n.addresses = append(n.addresses, a.IPNet.String())
		}
		nics = append(nics, n)
	}
	return nics, nil
}

func listAddresses(link netlink.Link) ([]netlink.Addr, error) {
	return wire.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
}

var pciAddress = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// device returns the driver and the PCI address behind a link, "-" for a link
// that has none. A virtio NIC's device is a child of its PCI function.
func device(dir string) (driver, pci string) {
	driver, pci = "-", "-"
	if target, err := os.Readlink(filepath.Join(dir, "device", "driver")); err == nil {
		driver = filepath.Base(target)
	}
	path, err := filepath.EvalSymlinks(filepath.Join(dir, "device"))
	if err != nil {
		return driver, pci
	}
	for ; path != "/"; path = filepath.Dir(path) {
		if pciAddress.MatchString(filepath.Base(path)) {
			return driver, filepath.Base(path)
		}
	}
	return driver, pci
}

// queues tells the queue pairs in use and those there are, as "2/4"; "-" where
// the driver does not know.
func queues(dev string) string {
	ch := channels{cmd: unix.ETHTOOL_GCHANNELS}
	if err := ethtool(dev, unsafe.Pointer(&ch)); err != nil {
		return "-"
	}
	return fmt.Sprintf("%d/%d", ch.combinedCount, ch.maxCombined)
}

func (g *guest) queues(args []string) (answer, error) {
	if len(args) == 1 {
		return countQueues(args[0])
	}
	n, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil {
		return answer{}, err
	}
	ch := channels{cmd: unix.ETHTOOL_GCHANNELS}
	if err := ethtool(args[0], unsafe.Pointer(&ch)); err != nil {
		return answer{}, fmt.Errorf("%s: %w", args[0], err)
	}
	ch.cmd, ch.combinedCount = unix.ETHTOOL_SCHANNELS, uint32(n)
	if err := ethtool(args[0], unsafe.Pointer(&ch)); err != nil {
		return answer{}, fmt.Errorf("%s: %w", args[0], err)
	}
	return answer{}, nil
}

// countQueues counts the queues that the kernel uses of a link.
func countQueues(dev string) (answer, error) {
	entries, err := os.ReadDir(filepath.Join("/sys/class/net", dev, "queues"))
	rx, tx := 0, 0
	for _, e := range entries {
		switch {
		case strings.HasPrefix(e.Name(), "rx-"):
			rx++
		case strings.HasPrefix(e.Name(), "tx-"):
			tx++
		}
	}
	return answer{reply: fmt.Sprintf("rx=%d tx=%d", rx, tx)}, err
}

// channels is struct ethtool_channels of linux/ethtool.h.
type channels struct {
	cmd                                         uint32
	maxRx, maxTx, maxOther, maxCombined         uint32
	rxCount, txCount, otherCount, combinedCount uint32
}

// ethtool asks a link's driver; data is one of linux/ethtool.h's structures, whose
// first word is the command.
func ethtool(dev string, data unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// struct ifreq with a pointer as its value; its size is 40.
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], dev)
	req.data = data
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}
