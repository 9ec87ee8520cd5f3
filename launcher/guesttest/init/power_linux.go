package main

import (
	"bytes"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watchPowerButton obeys the ACPI power button, of which the kernel tells the
// generic netlink group of drivers/acpi/event.c.
func (g *guest) watchPowerButton() error {
	family, err := netlink.GenlFamilyGet("acpi_event")
	if err != nil {
		return fmt.Errorf("acpi_event: %w", err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for _, group := range family.Groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group.ID)); err != nil {
			return err
		}
	}
	go func() {
		buf := make([]byte, 1<<13)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil && err != unix.EINTR && err != unix.ENOBUFS {
				g.warn("power button", err)
				return
			}
			if err == nil && bytes.Contains(buf[:n], []byte("button/power")) {
				g.powerButton()
			}
		}
	}()
	return nil
}

func (g *guest) powerButton() {
	if g.silent.Load() {
		return
	}
	if g.params.ignorePowerButton {
		g.console.say("power button (ignored)")
		return
	}
	g.console.say("power button")
	g.silent.Store(true)
	end(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func (g *guest) powerOff([]string) (answer, error) {
	return answer{then: func() { end(unix.LINUX_REBOOT_CMD_POWER_OFF) }}, nil
}

func (g *guest) reboot([]string) (answer, error) {
	return answer{then: func() { end(unix.LINUX_REBOOT_CMD_RESTART) }}, nil
}

func (g *guest) crash([]string) (answer, error) {
	return answer{then: func() { _ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) }}, nil
}

// hang keeps the guest running and deaf, to the power button as well.
func (g *guest) hang([]string) (answer, error) {
	return answer{then: func() {}}, nil
}

func end(how int) {
	unix.Sync()
	_ = unix.Reboot(how)
}
