package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/launcher/guesttest"
	"vmrun/netsetup/nettest/wire"
)

// life is what a guest's start and its end take, one after the other.
var life = []work{
	{"start to running", "ms", func(_ context.Context, _ *lab, c *contender) (float64, error) {
		return timed(func() error { return c.start(c.guest(1), false) })
	}},
	{"kill to gone", "ms", func(_ context.Context, _ *lab, c *contender) (float64, error) {
		return timed(func() error { return c.kill(c.guest(1)) })
	}},
}

// boot is what it takes until a guest that is started speaks, and from its power
// button until it is gone. The frame is the guest's own: the host's stack on the
// child, where there is one, does not know the group.
var boot = []work{
	{"start to first frame", "ms", func(ctx context.Context, l *lab, c *contender) (ms float64, err error) {
		g := c.guest(1)
		var frames *wire.Capture
		err = l.outside.Do(func() (err error) { frames, err = wire.NewCapture("wire0", g.group()); return err })
		if err != nil {
			return 0, err
		}
		defer frames.Close()
		ms, err = timed(func() error {
			if err := c.start(g, false); err != nil {
				return err
			}
			if frames.Wait(1, patience).Received() == 0 {
				return fmt.Errorf("%s sends nothing", g.name())
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		console, err := guesttest.Dial(ctx, c.console(g))
		if err != nil {
			return 0, err
		}
		defer console.Close()
		_, err = console.WaitReady(ctx) // for its power button
		return ms, err
	}},
	{"power button to gone", "ms", func(_ context.Context, _ *lab, c *contender) (float64, error) {
		if c.stop == nil {
			return 0, errNone
		}
		return timed(func() error { return c.stop(c.guest(1)) })
	}},
	{"", "", func(_ context.Context, _ *lab, c *contender) (float64, error) {
		if c.stop == nil {
			return 0, c.kill(c.guest(1))
		}
		return 0, nil
	}},
}

// death is what it takes from QEMU's violent end until nothing is left of the guest.
var death = work{"QEMU killed to cleaned up", "ms", func(ctx context.Context, _ *lab, c *contender) (float64, error) {
	if c.cleaned == nil {
		return 0, errNone
	}
	g := c.guest(1)
	if err := c.start(g, true); err != nil {
		return 0, err
	}
	pid, err := c.pid(g)
	if err != nil {
		return 0, err
	}
	cleaned, err := c.cleaned(g)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return timed(func() error {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return err
		}
		return cleaned(ctx)
	})
}}

// errNever is errNone of one who might have.
var errNever = fmt.Errorf("%w: nothing happened within 2 s", errNone)

// news is how soon the host's and the guest's networks hear of each other. They are
// asked as fast as they answer.
func (l *lab) news() []work {
	carrier := func(ctx context.Context, c *contender, state string) (float64, error) {
		return timed(func() error {
			err := l.outside.Do(func() error { _, err := output(nil, "ip", "link", "set", "wire0", state); return err })
			for end := time.Now().Add(2 * time.Second); err == nil && time.Now().Before(end); {
				var reply string
				if reply, _, err = c.booted[1].Run(ctx, "carrier eth0"); reply == state {
					return err
				}
			}
			if err == nil {
				err = errNever
			}
			return err
		})
	}
	round := 0
	return []work{
		{"carrier lost to guest told", "ms", func(ctx context.Context, _ *lab, c *contender) (float64, error) {
			ms, err := carrier(ctx, c, "down")
			if _, err := carrier(ctx, c, "up"); err != nil {
				return 0, err
			}
			time.Sleep(100 * time.Millisecond) // for the others' guests
			return ms, err
		}},
		{"guest joins to child hears", "ms", func(ctx context.Context, _ *lab, c *contender) (float64, error) {
			if !c.syncs {
				return 0, errNone
			}
			pid, err := c.pid(c.guest(1))
			if err != nil {
				return 0, err
			}
			round++
			a, b := round/250, round%250
			group, mac := fmt.Sprintf("239.1.%d.%d", a, b), fmt.Sprintf("01005e01%02x%02x", a, b)
			defer func() { _, _, _ = c.booted[1].Run(ctx, "leave "+group+" eth0") }()
			return timed(func() error {
				if _, _, err := c.booted[1].Run(ctx, "join "+group+" eth0"); err != nil {
					return err
				}
				for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
					// QEMU is where the child is.
					list, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev_mcast", pid))
					if err != nil || strings.Contains(string(list), mac) {
						return err
					}
				}
				return errNever
			})
		}},
	}
}

// timed returns the milliseconds that fn took.
func timed(fn func() error) (float64, error) {
	start := time.Now()
	err := fn()
	return float64(time.Since(start)) / float64(time.Millisecond), err
}

// wakeups are how often a paused guest's supervisor, or the daemon, gives up a CPU in
// 10 s, all its threads together (proc_pid_status(5)). A guest that runs would speak,
// and vmrun's supervisor hears what tells an address.
var wakeups = work{"wake-ups beyond QEMU in 10 s, paused", "", func(ctx context.Context, _ *lab, c *contender) (float64, error) {
	if err := c.start(c.guest(1), true); err != nil {
		return 0, err
	}
	pids := c.others(c.guests(1))
	if err := sleep(ctx, 3*time.Second); err != nil { // what a start leaves to do
		return 0, err
	}
	before, err := switches(pids)
	if err != nil {
		return 0, err
	}
	if err := sleep(ctx, 10*time.Second); err != nil {
		return 0, err
	}
	after, err := switches(pids)
	return after - before, errors.Join(err, c.kill(c.guest(1)))
}}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func switches(pids []int) (sum float64, err error) {
	for _, pid := range pids {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil {
			return 0, err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return 0, err
			}
			for _, line := range strings.Split(string(text), "\n") {
				if value, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
					n, err := strconv.Atoi(strings.TrimSpace(value))
					if err != nil {
						return 0, err
					}
					sum += float64(n)
				}
			}
		}
	}
	return sum, nil
}
