package netsetup_test

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

func acquireVLAN(t *testing.T, lab *nettest.Lab, owner int, parent string, id int) (name string, err error) {
	t.Helper()
	err = lab.Host.Do(func() error {
		name, err = netsetup.AcquireVLAN(t.Context(), owner, parent, id)
		return err
	})
	return name, err
}

func releaseVLAN(t *testing.T, lab *nettest.Lab, owner int, parent string, id int) {
	t.Helper()
	inLab(t, lab, func() error { return netsetup.ReleaseVLAN(t.Context(), owner, parent, id) })
}

func TestVLANIsShared(t *testing.T) {
	lab := nettest.New(t)
	nettest.Kernel(t, "vlan")
	before := lab.Snapshot(t)
	for _, owner := range []int{owner1, owner2, owner1} {
		if name, err := acquireVLAN(t, lab, owner, "lab0", 20); err != nil || name != "lab0.20" {
			t.Fatalf("%q, %v", name, err)
		}
	}
	link, err := lab.Host.Link("lab0.20")
	must(t, err)
	vlan, ok := link.(*netlink.Vlan)
	if !ok || vlan.VlanId != 20 || vlan.VlanProtocol != netlink.VLAN_PROTOCOL_8021Q || vlan.Flags&net.FlagUp == 0 || len(vlan.AltNames) != 2 {
		t.Errorf("%+v", link)
	}
	releaseVLAN(t, lab, owner1, "lab0", 20)
	if _, err := lab.Host.Link("lab0.20"); err != nil {
		t.Errorf("gone with its first user: %v", err)
	}
	inLab(t, lab, func() error { return netsetup.RepairShared(t.Context(), func(int) bool { return true }) })
	if _, err := lab.Host.Link("lab0.20"); err != nil {
		t.Errorf("repaired away: %v", err)
	}
	releaseVLAN(t, lab, owner2, "lab0", 20)
	before.Check(t)
	_, err = acquireVLAN(t, lab, owner1, "lab0", 20)
	must(t, err)
	inLab(t, lab, func() error { return netsetup.RepairShared(t.Context(), func(int) bool { return false }) })
	before.Check(t)
}

// A VLAN device of the host's owner is used, never marked, and never removed.
func TestVLANOfSomebodyElse(t *testing.T) {
	lab := nettest.New(t)
	nettest.Kernel(t, "vlan")
	lab0 := indexOf(t, lab, "lab0")
	inLab(t, lab, addLink(&netlink.Vlan{LinkAttrs: attrs("lab0.20", lab0), VlanId: 20, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}),
		addLink(&netlink.Vlan{LinkAttrs: attrs("dmz", lab0), VlanId: 30, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}))
	if name, err := acquireVLAN(t, lab, owner1, "lab0", 20); err != nil || name != "lab0.20" {
		t.Errorf("%q, %v", name, err)
	}
	releaseVLAN(t, lab, owner1, "lab0", 20)
	inLab(t, lab, func() error { return netsetup.RepairShared(t.Context(), func(int) bool { return false }) })
	if _, err := lab.Host.Link("lab0.20"); err != nil {
		t.Error(err)
	}
	if _, err := acquireVLAN(t, lab, owner1, "lab0", 30); err == nil || !strings.Contains(err.Error(), `parent = "dmz"`) {
		t.Errorf("%v", err)
	}
}

// A VLAN device of ours that somebody has given an address is theirs, not deleted.
func TestVLANIsGivenAway(t *testing.T) {
	lab := nettest.New(t)
	nettest.Kernel(t, "vlan")
	_, err := acquireVLAN(t, lab, owner1, "lab0", 20)
	must(t, err)
	inLab(t, lab, linkDo("lab0.20", func(l netlink.Link) error {
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(198, 51, 100, 2).To4(), Mask: net.CIDRMask(24, 32)}})
	}))
	releaseVLAN(t, lab, owner1, "lab0", 20)
	link, err := lab.Host.Link("lab0.20")
	must(t, err)
	if link.Attrs().Group != 0 {
		t.Errorf("%+v", link.Attrs())
	}
}

func TestVLANNameTaken(t *testing.T) {
	lab := nettest.New(t)
	inLab(t, lab, addLink(&netlink.Bridge{LinkAttrs: attrs("lab0.20", 0)}))
	if _, err := acquireVLAN(t, lab, owner1, "lab0", 20); err == nil || !strings.Contains(err.Error(), "a bridge of that name") {
		t.Errorf("%v", err)
	}
	releaseVLAN(t, lab, owner1, "lab0", 20)
	if _, err := lab.Host.Link("lab0.20"); err != nil {
		t.Error(err)
	}
}

// A kernel without VLAN devices says so, and nothing is left.
func TestVLANUnsupported(t *testing.T) {
	lab := nettest.New(t)
	before := lab.Snapshot(t)
	name, err := acquireVLAN(t, lab, owner1, "lab0", 20)
	if err == nil {
		t.Skip("this kernel has VLAN devices: " + name)
	}
	if !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("%v", err)
	}
	before.Check(t)
}

// On a parent that is down a VLAN device waits, and comes up with it.
func TestVLANOnADownParent(t *testing.T) {
	lab := nettest.New(t)
	nettest.Kernel(t, "vlan")
	inLab(t, lab, linkDo("lab0", netlink.LinkSetDown))
	_, err := acquireVLAN(t, lab, owner1, "lab0", 20)
	must(t, err)
	inLab(t, lab, linkDo("lab0", netlink.LinkSetUp))
	link, err := lab.Host.Link("lab0.20")
	must(t, err)
	if link.Attrs().Flags&net.FlagUp == 0 || slices.Contains(link.Attrs().AltNames, "") {
		t.Errorf("%+v", link.Attrs())
	}
}
