package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
)

// lease is an address that a DHCP server gave to a link. It is not renewed: its
// hour is longer than a test.
type lease struct {
	*nclient4.Lease
	dev  string
	addr *netlink.Addr
}

func (g *guest) dhcp(args []string) (answer, error) {
	dev, limit := args[0], 10*time.Second
	if len(args) > 1 {
		var err error
		if limit, err = parseDuration(args[1]); err != nil {
			return answer{}, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	l, err := requestLease(ctx, dev)
	if err != nil {
		return answer{}, err
	}
	if err := l.apply(); err != nil {
		return answer{}, fmt.Errorf("%s: %w", dev, err)
	}
	g.held.put("dhcp "+dev, l)
	return answer{reply: fmt.Sprintf("address=%s server=%s lease=%v", l.addr.IPNet, l.ACK.ServerIdentifier(), l.ACK.IPAddressLeaseTime(0))}, nil
}

// requestLease asks again every half second: a NIC that came a moment ago may
// lose what it sends.
func requestLease(ctx context.Context, dev string) (*lease, error) {
	client, err := nclient4.New(dev, nclient4.WithTimeout(500*time.Millisecond), nclient4.WithRetry(1000))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	got, err := client.Request(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dev, err)
	}
	mask := got.ACK.SubnetMask()
	if mask == nil {
		return nil, fmt.Errorf("%s: the server's answer has no subnet mask", dev)
	}
	return &lease{got, dev, &netlink.Addr{IPNet: &net.IPNet{IP: got.ACK.YourIPAddr, Mask: mask}}}, nil
}

// apply gives the link the address, and the guest the default route.
func (l *lease) apply() error {
	link, err := netlink.LinkByName(l.dev)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, l.addr); err != nil {
		return fmt.Errorf("address %s: %w", l.addr.IPNet, err)
	}
	routers := l.ACK.Router()
	if len(routers) == 0 {
		return nil
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: routers[0]}); err != nil {
		return fmt.Errorf("route by %s: %w", routers[0], err)
	}
	return nil
}

func (g *guest) dhcpRelease(args []string) (answer, error) {
	key := "dhcp " + args[0]
	l, ok := g.held.get(key).(*lease)
	if !ok {
		return answer{}, fmt.Errorf("%s has no lease", args[0])
	}
	err := l.release()
	g.held.drop(key)
	return answer{}, err
}

// release tells the server, from the address itself (RFC 2131, 4.4.6), and gives
// the address up.
func (l *lease) release() error {
	client, err := nclient4.New(l.dev, nclient4.WithUnicast(&net.UDPAddr{IP: l.ACK.YourIPAddr, Port: dhcpv4.ClientPort}))
	if err != nil {
		return err
	}
	err = client.Release(l.Lease)
	link, lerr := netlink.LinkByName(l.dev)
	if lerr == nil {
		lerr = netlink.AddrDel(link, l.addr)
	}
	return errors.Join(err, client.Close(), lerr)
}

// Close forgets the lease, and tells nobody.
func (l *lease) Close() error { return nil }
