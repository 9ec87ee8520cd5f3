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

func listLinks() ([]nic, error) {
	list, err := netlink.LinkList()
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
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
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
	if err := ch.ioctl(dev); err != nil {
		return "-"
	}
	return fmt.Sprintf("%d/%d", ch.combinedCount, ch.maxCombined)
}

func (g *guest) queues(args []string) (answer, error) {
	n, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil {
		return answer{}, err
	}
	ch := channels{cmd: unix.ETHTOOL_GCHANNELS}
	if err := ch.ioctl(args[0]); err != nil {
		return answer{}, fmt.Errorf("%s: %w", args[0], err)
	}
	ch.cmd, ch.combinedCount = unix.ETHTOOL_SCHANNELS, uint32(n)
	if err := ch.ioctl(args[0]); err != nil {
		return answer{}, fmt.Errorf("%s: %w", args[0], err)
	}
	return answer{}, nil
}

// channels is struct ethtool_channels of linux/ethtool.h.
type channels struct {
	cmd                                         uint32
	maxRx, maxTx, maxOther, maxCombined         uint32
	rxCount, txCount, otherCount, combinedCount uint32
}

func (ch *channels) ioctl(dev string) error {
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
	req.data = unsafe.Pointer(ch)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}
