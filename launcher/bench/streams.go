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
	outside4 = "192.0.2.1"
	outside6 = "2001:db8::1"
	port     = 5001
)

// bootPairs starts all guests, waits until they are ready, and has them take
// streams. They boot beside each other.
func (l *lab) bootPairs(ctx context.Context) error {
	for _, c := range l.contenders {
		for _, g := range c.guests {
			if err := c.start(g); err != nil {
				return fmt.Errorf("%s: start: %w", c.name, err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, c := range l.contenders {
		for i, g := range c.guests {
			var err error
			if c.consoles[i], err = ready(ctx, c.console(g)); err != nil {
				return fmt.Errorf("%s: %s: %w", c.name, g.name(), err)
			}
		}
	}
	return l.checkClocks(ctx)
}

// errClock says that a guest's clock is not the host's.
var errClock = errors.New("the guest's clock is wrong")

// checkClocks compares what a second is to the guests and to the host. A guest
// measures its processor's counter against its timers while it boots, and where
// the host let it wait meanwhile, its time goes too fast for as long as it runs:
// thirty times has been seen. All that TCP does by the clock is wrong in it.
func (l *lab) checkClocks(ctx context.Context) error {
	for _, c := range l.contenders {
		for i, console := range c.consoles {
			var before, after float64
			ms, err := timed(func() (err error) {
				if before, err = uptime(ctx, console); err == nil {
					time.Sleep(time.Second)
					after, err = uptime(ctx, console)
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %s: %w", c.name, c.guests[i].name(), err)
			}
			if rate := (after - before) * 1000 / ms; rate < 0.85 || rate > 1.1 {
				return fmt.Errorf("%s: %s: %w: it goes %.2f times as fast as the host's", c.name, c.guests[i].name(), errClock, rate)
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

func ready(ctx context.Context, socket string) (*guesttest.Console, error) {
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
func (l *lab) bootUntilRight(ctx context.Context) error {
	for try := 1; ; try++ {
		err := l.bootPairs(ctx)
		if !errors.Is(err, errClock) || try == 5 {
			return err
		}
		fmt.Println("starting the guests again:", err)
		if err := l.endPairs(); err != nil {
			return err
		}
	}
}

// endPairs ends what bootPairs began.
func (l *lab) endPairs() error {
	var errs []error
	for _, c := range l.contenders {
		for i, g := range c.guests {
			errs = append(errs, c.consoles[i].Close(), c.end(g))
		}
	}
	return errors.Join(errs...)
}

// streams are those of the cases, of a length.
func (l *lab) streams(cases []string, length time.Duration) (list []work) {
	out := func(to string) func(context.Context, *contender) (float64, error) {
		return func(ctx context.Context, c *contender) (float64, error) { return send(ctx, c.consoles[0], to, length) }
	}
	in := func(ctx context.Context, c *contender) (float64, error) {
		return l.sendIn(ctx, c.guests[0].address4(), length)
	}
	pair := func(ctx context.Context, c *contender) (float64, error) {
		return send(ctx, c.consoles[0], c.guests[1].address4(), length)
	}
	known := map[string]work{
		"out":  {"TCP guest to outside", "Mbit/s", out(outside4)},
		"in":   {"TCP outside to guest", "Mbit/s", in},
		"pair": {"TCP guest to guest", "Mbit/s", pair},
		"out6": {"TCP guest to outside, IPv6", "Mbit/s", out(outside6)},
	}
	for _, name := range cases {
		if w, ok := known[name]; ok {
			list = append(list, w)
		}
	}
	return list
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
