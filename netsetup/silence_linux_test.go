package netsetup_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// listenTime is longer than the host's stack waits before it solicits a router
// (RFC 4861, 6.3.7: up to a second) or repeats its DAD and MLD.
const listenTime = 2 * time.Second

// arpRequest asks everybody who has an address (RFC 826).
func arpRequest(from net.HardwareAddr, sender, target net.IP) []byte {
	frame := append(bytes.Clone(wire.Broadcast), from...)
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_ARP)
	frame = append(frame, 0, 1, 8, 0, 6, 4, 0, 1)
	frame = append(frame, from...)
	frame = append(frame, sender.To4()...)
	frame = append(frame, make([]byte, 6)...)
	return append(frame, target.To4()...)
}

// spoken describes the frames that came from a MAC.
func spoken(c *wire.Capture, from net.HardwareAddr) []string {
	var said []string
	for _, f := range c.Frames() {
		if bytes.Equal(f[6:12], from) {
			said = append(said, fmt.Sprintf("to %v, type %#04x: % x", net.HardwareAddr(f[:6]), f[12:14], f[14:min(len(f), 70)]))
		}
	}
	return said
}

// The guest's MAC is the guest's alone: the host's own stack sends nothing with
// it, neither by itself nor when it is asked.
func TestChildIsSilent(t *testing.T) {
	for _, tt := range []struct {
		name   string
		quiet  bool
		silent bool
	}{{"as it is used", true, true}, {"without Quiet, to see that the test hears", false, false}} {
		t.Run(tt.name, func(t *testing.T) {
			lab := nettest.New(t)
			lab.AddNIC("lab1", nettest.NIC{})
			// In passthru the parent has the guest's MAC, and what the host has on
			// it still speaks; here it is the child that is listened to.
			inLab(t, lab, func() error {
				return os.WriteFile("/proc/sys/net/ipv6/conf/lab1/disable_ipv6", []byte("1"), 0)
			})
			children := map[string]netsetup.Child{} // by the far end of their wire
			captures := map[string]*wire.Capture{}
			for i, far := range []string{"wire0", "wire-lab1"} {
				c := testChild([]configs.Mode{configs.ModeBridge, configs.ModePassthru}[i], i)
				c.Parent = fmt.Sprintf("lab%d", i)
				ns := newNamespace(t)
				if tt.quiet {
					must(t, ns.Quiet())
				}
				captures[far] = lab.Outside.Capture(far, "")
				must(t, create(t, lab, ns, c))
				openTaps(t, ns, c)
				must(t, ns.Up(c))
				children[far] = c
			}
			for far := range children {
				for _, target := range []string{"192.0.2.77", "127.0.0.1", "0.0.0.0"} {
					must(t, lab.Outside.Send(far, arpRequest(lab.Outside.MAC, net.IPv4(192, 0, 2, 1), net.ParseIP(target))))
				}
			}
			time.Sleep(listenTime)
			for far, c := range children {
				said := spoken(captures[far], c.MAC)
				if silent := len(said) == 0; silent != tt.silent {
					t.Errorf("%s said %d frames: %q", c.Mode, len(said), said)
				}
			}
		})
	}
}
