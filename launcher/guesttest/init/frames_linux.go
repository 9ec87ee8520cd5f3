package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/netsetup/nettest/wire"
)

func (g *guest) flood(args []string) (answer, error) {
	frame, err := hex.DecodeString(args[1])
	if err != nil {
		return answer{}, err
	}
	count, err := strconv.Atoi(args[2])
	if err != nil {
		return answer{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	start := time.Now()
	sent, err := wire.Flood(ctx, args[0], frame, count)
	if err != nil {
		err = fmt.Errorf("after %d: %w", sent, err)
	}
	return answer{reply: fmt.Sprintf("sent=%d seconds=%.2f", sent, time.Since(start).Seconds())}, err
}

func (g *guest) gratuitous(args []string) (answer, error) {
	addr, err := netip.ParseAddr(args[1])
	if err != nil {
		return answer{}, err
	}
	link, err := net.InterfaceByName(args[0])
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", args[0], err)
	}
	return answer{}, wire.Send(args[0], wire.Announcement(addr, link.HardwareAddr))
}

// storm changes what a link receives until its time is over: it joins and leaves
// more groups than a NIC has room for, and goes in and out of both wider modes.
// All of it ends with the socket.
func (g *guest) storm(args []string) (answer, error) {
	const groups = 100
	return during(args, func(index int) (func(i int) error, func() error, error) {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, nil, err
		}
		change := func(i int) error {
			req := &unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_MULTICAST, Alen: 6,
				Address: [8]uint8{0x33, 0x33, 0xff, 0, 0, byte(i % groups)}}
			how := unix.PACKET_ADD_MEMBERSHIP
			if i/groups%2 == 1 {
				how = unix.PACKET_DROP_MEMBERSHIP
			}
			switch i % groups {
			case 30:
				req.Type = unix.PACKET_MR_PROMISC
			case 60:
				req.Type = unix.PACKET_MR_ALLMULTI
			}
			return unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, how, req)
		}
		return change, func() error { return unix.Close(fd) }, nil
	})
}

// macStorm changes a link's MAC until its time is over, and then back.
func (g *guest) macStorm(args []string) (answer, error) {
	return during(args, func(index int) (func(i int) error, func() error, error) {
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			return nil, nil, err
		}
		old := link.Attrs().HardwareAddr
		change := func(i int) error {
			mac := slices.Clone(old)
			mac[0], mac[4], mac[5] = mac[0]|0x02, byte(i>>8), byte(i)
			return netlink.LinkSetHardwareAddr(link, mac)
		}
		return change, func() error { return netlink.LinkSetHardwareAddr(link, old) }, nil
	})
}

// longest bounds what a command is asked to do for some time.
const longest = 60 * time.Second

// during repeats a change of a link for a time: args are DEV SECONDS. What begin
// returns is the change, and what ends it.
func during(args []string, begin func(ifindex int) (change func(i int) error, end func() error, err error)) (answer, error) {
	length, err := parseDuration(args[1])
	if err != nil {
		return answer{}, err
	}
	link, err := net.InterfaceByName(args[0])
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", args[0], err)
	}
	change, end, err := begin(link.Index)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", args[0], err)
	}
	changes := 0
	for start := time.Now(); err == nil && time.Since(start) < min(length, longest); {
		if err = change(changes); err == nil {
			changes++
		}
	}
	return answer{reply: fmt.Sprintf("changes=%d", changes)}, errors.Join(err, end())
}
