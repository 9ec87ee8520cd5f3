package nettest

import (
	"errors"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/netsetup"
)

// kernelEnv is "guest" where make test-kernel runs tests in a guest of its own,
// whose kernel has it all and whose NIC may be played with.
const kernelEnv = "VMRUN_TEST_KERNEL"

// kernelParts are what a kernel may lack: the modules, and a try.
var kernelParts = map[string]struct {
	module string
	try    func(parent int) error
}{
	"vlan":  {"8021q", func(parent int) error { return netlink.LinkAdd(&netlink.Vlan{LinkAttrs: onParent(parent), VlanId: 1}) }},
	"bond":  {"bonding", func(int) error { return netlink.LinkAdd(netlink.NewLinkBond(onParent(0))) }},
	"dummy": {"dummy", func(int) error { return netlink.LinkAdd(&netlink.Dummy{LinkAttrs: onParent(0)}) }},
	"ipvtap": {"ipvtap", func(parent int) error {
		return netlink.LinkAdd(&netlink.IPVtap{IPVlan: netlink.IPVlan{LinkAttrs: onParent(parent)}})
	}},
	"vhost": {"vhost_net", func(int) error {
		_, err := os.Stat("/dev/vhost-net")
		return err
	}},
}

func onParent(parent int) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = "try", parent
	return attrs
}

// Kernel skips the test where the kernel lacks one of these parts. make
// test-kernel runs it where none is missing.
func Kernel(t testing.TB, parts ...string) {
	t.Helper()
	Root(t)
	for _, name := range parts {
		part, ok := kernelParts[name]
		if !ok {
			t.Fatalf("no part of a kernel is known as %s", name)
		}
		switch err := tryKernel(part.try); {
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, os.ErrNotExist):
			t.Skipf("this kernel has no %s: modprobe %s, or make test-kernel", name, part.module)
		case err != nil:
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// tryKernel runs try in a namespace of its own, on a link made for that.
func tryKernel(try func(parent int) error) error {
	ns, err := netsetup.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		attrs := onParent(0)
		attrs.Name = "parent"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}); err != nil {
			return err
		}
		link, err := netlink.LinkByName(attrs.Name)
		if err != nil {
			return err
		}
		return try(link.Attrs().Index)
	})
}

// InGuest skips the test unless make test-kernel runs it, in a guest whose NIC
// eth0, clock and cgroups are there to be tried out.
func InGuest(t testing.TB) {
	t.Helper()
	Root(t)
	if os.Getenv(kernelEnv) != "guest" {
		t.Skip("needs a machine of its own: make test-kernel")
	}
}
