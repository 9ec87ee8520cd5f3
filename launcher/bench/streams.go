package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"vmrun/launcher/guesttest"
	"vmrun/netsetup/nettest/wire"
)

// The machine outside, and where every machine takes streams and throws them away.
const (
	outside4 = "198.18.255.1"
	outside6 = "2001:db8::1"
	port     = 5001
)

// bootPairs starts two guests of each contender, waits until they are ready, and
// has them take streams. They boot beside each other.
func (l *lab) bootPairs(ctx context.Context, contenders []*contender) error {
	for _, c := range contenders {
		c.booted = map[int]*guesttest.Console{}
		for _, g := range c.guests(2) {
			if err := l.ready(c, g); err != nil {
				return err
			}
			if err := c.start(g, false); err != nil {
				return fmt.Errorf("%s: start: %w", c.name, err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, c := range contenders {
		for _, g := range c.guests(2) {
			console, err := awaitReady(ctx, c.console(g))
			if err != nil {
				return fmt.Errorf("%s: %s: %w", c.name, g.name(), err)
			}
			c.booted[g.number] = console
		}
	}
	return checkClocks(ctx, contenders)
}

// errClock says that a guest's clock is not the host's.
var errClock = errors.New("the guest's clock is wrong")

// checkClocks compares what a second is to the guests and to the host. A guest
// measures its processor's counter against its timers while it boots, and where
// the host let it wait meanwhile, its time goes too fast for as long as it runs:
// thirty times has been seen. All that TCP does by the clock is wrong in it.
func checkClocks(ctx context.Context, contenders []*contender) error {
	for _, c := range contenders {
		for n, console := range c.booted {
			var before, after float64
			ms, err := timed(func() (err error) {
				if before, err = uptime(ctx, console); err == nil {
					time.Sleep(time.Second)
					after, err = uptime(ctx, console)
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %s: %w", c.name, c.guest(n).name(), err)
			}
			if rate := (after - before) * 1000 / ms; rate < 0.85 || rate > 1.1 {
				return fmt.Errorf("%s: %s: %w: it goes %.2f times as fast as the host's", c.name, c.guest(n).name(), errClock, rate)
			}
		}
	}
	return nil
}

// uptime is a guest's, in seconds.
func uptime(ctx context.Context, console *guesttest.Console) (float64, error) {
	reply, _, err := console.Run(ctx, "uptime")
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(reply, 64)
}

func awaitReady(ctx context.Context, socket string) (*guesttest.Console, error) {
	console, err := guesttest.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	if _, err := console.WaitReady(ctx); err != nil {
		return nil, err
	}
	_, _, err = console.Run(ctx, fmt.Sprintf("tcp sink %d", port))
	return console, err
}

// bootUntilRight is bootPairs, again while a clock is wrong, five times at most.
func (l *lab) bootUntilRight(ctx context.Context, contenders []*contender) error {
	for try := 1; ; try++ {
		err := l.bootPairs(ctx, contenders)
		if !errors.Is(err, errClock) || try == 5 {
			return err
		}
		tell("starting the guests again: %v", err)
		if err := endPairs(contenders); err != nil {
			return err
		}
	}
}

// endPairs ends what bootPairs began.
func endPairs(contenders []*contender) error {
	var errs []error
	for _, c := range contenders {
		for _, g := range c.guests(2) {
			errs = append(errs, c.booted[g.number].Close(), c.kill(g))
		}
	}
	return errors.Join(errs...)
}

// streams are TCP's, of a length, with nothing else going on.
func (l *lab) streams(length time.Duration) []work {
	out := func(to string) func(context.Context, *lab, *contender) (float64, error) {
		return func(ctx context.Context, _ *lab, c *contender) (float64, error) {
			return send(ctx, c.booted[1], to, length)
		}
	}
	return []work{
		{"TCP guest to outside", "Mbit/s", out(outside4)},
		{"TCP guest to outside, IPv6", "Mbit/s", out(outside6)},
		{"TCP outside to guest", "Mbit/s", func(ctx context.Context, l *lab, c *contender) (float64, error) {
			return l.sendIn(ctx, c.guest(1).address4(), length)
		}},
		{"TCP guest to guest", "Mbit/s", func(ctx context.Context, _ *lab, c *contender) (float64, error) {
			return send(ctx, c.booted[1], c.guest(2).address4(), length)
		}},
	}
}

// send streams from a guest, and returns Mbit/s by the host's clock. The console's
// answer is in the time, too.
func send(ctx context.Context, from *guesttest.Console, to string, length time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, length+patience)
	defer cancel()
	var reply string
	ms, err := timed(func() (err error) {
		reply, _, err = from.Run(ctx, fmt.Sprintf("tcp send %s %d %v", to, port, length))
		return err
	})
	if err != nil {
		return 0, err
	}
	var bytes int64
	if _, err := fmt.Sscanf(reply, "bytes=%d", &bytes); err != nil {
		return 0, fmt.Errorf("the guest says %q: %w", reply, err)
	}
	return float64(bytes) * 8 / 1e3 / ms, nil
}

// sendIn streams from the machine outside, and returns Mbit/s.
func (l *lab) sendIn(ctx context.Context, to string, length time.Duration) (float64, error) {
	addr, err := netip.ParseAddr(to)
	if err != nil {
		return 0, err
	}
	var done wire.Throughput
	err = l.outside.Do(func() (err error) {
		done, err = wire.SendTCP(ctx, netip.AddrPortFrom(addr, port), length)
		return err
	})
	return done.Mbit(), err
}
