package guesttest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// The guest, its NIC on the lab's, reaches the outside and is reached.
func TestGuestOnMacvtap(t *testing.T) {
	lab := nettest.New(t)
	before := lab.Snapshot(t)
	ns, err := netsetup.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	child := netsetup.Child{
		Name: "net0", Index: 700000 + os.Getpid(), NIC: configs.NIC{Parent: lab.Host.NIC, Mode: configs.ModeBridge,
			MAC: net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}, Queues: 1},
	}
	var taps []*os.File
	err = errors.Join(
		ns.Quiet(),
		lab.Host.Do(func() error { return ns.Create(child) }),
		ns.Up(child),
	)
	if err == nil {
		taps, err = ns.OpenTaps(child)
	}
	if err != nil {
		t.Fatal(err)
	}
	start := func(cmd *exec.Cmd) error {
		cmd.ExtraFiles = taps
		defer taps[0].Close()
		return ns.Do(cmd.Start)
	}
	m := bootBy(t, start, "vmrun.addr=eth0:192.0.2.11/24,2001:db8::11/64",
		"-netdev", "tap,id=n0,fd=3", "-device", "virtio-net-pci,netdev=n0,mac="+child.MAC.String())
	for _, addr := range []netip.Prefix{nettest.OutsideAddr4, nettest.OutsideAddr6} {
		if reply, _ := m.run(t, fmt.Sprintf("ping %s 3", addr.Addr())); reply != "sent=3 received=3" {
			t.Errorf("ping of %s by the guest: %s", addr.Addr(), reply)
		}
	}
	sent, received, err := lab.Outside.Ping(within30s(t), netip.MustParseAddr("192.0.2.11"), 3, 0)
	if err != nil || sent != 3 || received != 3 {
		t.Errorf("ping of the guest: %d sent, %d received, %v", sent, received, err)
	}
	m.run(t, "count eth0 start to-you")
	for _, dst := range []net.HardwareAddr{child.MAC, wire.Broadcast} {
		if err := lab.Outside.Send(lab.Outside.NIC, wire.Tagged(dst, lab.Outside.MAC, "to-you")); err != nil {
			t.Error(err)
		}
	}
	want := "unicast=1 broadcast=1 multicast=0 other=0 outgoing=0"
	var got string
	for range 100 {
		if got, _ = m.run(t, "count eth0 read to-you"); got == want {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if got != want {
		t.Errorf("the guest counted %s, want %s", got, want)
	}
	m.run(t, "poweroff")
	m.waitEnd(t)
	ns.Close()
	before.Check(t)
}
