package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// fleetSize is how many paused guests a contender starts one after the other.
const fleetSize = 50

// isStage reports whether a fleet is looked at when it has so many guests.
func isStage(n int) bool { return n == 1 || n == 10 || n == fleetSize }

// each is the work of the start of the nth guest, when the others are there.
func each(n int) work { return work{name: fmt.Sprintf("start of guest %d", n), unit: "ms"} }

var (
	total     = func(n int) work { return work{name: fmt.Sprintf("%d paused guests", n), unit: "ms"} }
	processor = func(n int) work {
		return work{name: fmt.Sprintf("%d paused guests, processor time", n), unit: "CPU ms"}
	}
	private = func(n int) work {
		return work{name: fmt.Sprintf("%d paused guests, private beyond QEMU", n), unit: "kB a guest"}
	}
	proportional = func(n int) work {
		return work{name: fmt.Sprintf("%d paused guests, PSS beyond QEMU", n), unit: "kB a guest"}
	}
)

// fleets has each contender start fleetSize paused guests and end them, n times in
// turn.
func (l *lab) fleets(ctx context.Context, f *figures, n int, contenders []*contender) error {
	for round := range n {
		for _, c := range contenders {
			if err := l.fleet(ctx, f, c); err != nil {
				return fmt.Errorf("%s: fleet: %w", c.name, err)
			}
			tell("fleet of %s, round %d of %d", c.name, round+1, n)
		}
	}
	return nil
}

func (l *lab) fleet(ctx context.Context, f *figures, c *contender) error {
	guests := c.guests(fleetSize)
	for _, g := range guests {
		if err := l.ready(c, g); err != nil {
			return err
		}
	}
	before, err := busy()
	if err != nil {
		return err
	}
	sum := 0.0
	for i, g := range guests {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		ms, err := timed(func() error { return c.start(g, true) })
		if err != nil {
			return err
		}
		sum += ms
		f.add(each(i+1), c, ms)
		if n := i + 1; isStage(n) {
			now, err := busy()
			if err != nil {
				return err
			}
			f.add(total(n), c, sum)
			f.add(processor(n), c, now-before)
			if err := f.memory(c, guests[:n]); err != nil {
				return err
			}
			again, err := busy() // what it cost to look is nobody's
			if err != nil {
				return err
			}
			before += again - now
		}
	}
	for _, g := range guests {
		if err := c.kill(g); err != nil {
			return err
		}
	}
	if c.tidy == nil {
		return nil
	}
	for _, g := range guests[1:] {
		if err := c.tidy(g); err != nil {
			return err
		}
		delete(l.prepared, g)
	}
	return nil
}

// memory is that of all processes that look after these guests, for each guest.
func (f *figures) memory(c *contender, guests []guest) error {
	var sum struct{ private, pss float64 }
	for _, pid := range c.others(guests) {
		rollup, err := memoryOf(pid)
		if err != nil {
			return err
		}
		sum.private += rollup["Private_Clean"] + rollup["Private_Dirty"]
		sum.pss += rollup["Pss"]
	}
	n := len(guests)
	f.add(private(n), c, sum.private/float64(n))
	f.add(proportional(n), c, sum.pss/float64(n))
	return nil
}

// memoryOf is a process's, in kB (proc_pid_smaps(5)).
func memoryOf(pid int) (map[string]float64, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	rollup := map[string]float64{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 3 && words[2] == "kB" {
			if rollup[strings.TrimSuffix(words[0], ":")], err = strconv.ParseFloat(words[1], 64); err != nil {
				return nil, err
			}
		}
	}
	return rollup, lines.Err()
}

// busy is what all CPUs have done since the machine's boot, in ms, at the 10 ms of
// USER_HZ (proc_stat(5)). Nothing else may run beside the bench.
func busy() (float64, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	words := strings.Fields(line)
	if len(words) < 9 || words[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	ticks := 0
	for i, word := range words[1:9] {
		n, err := strconv.Atoi(word)
		if err != nil {
			return 0, err
		}
		if i != 3 && i != 4 && i != 7 { // idle, iowait and steal
			ticks += n
		}
	}
	return float64(ticks) * 10, nil
}

// lists is how long it takes to tell of all guests, and of one, where there are so
// many.
func lists(n int) []work {
	return []work{
		{fmt.Sprintf("list of %d guests", n), "ms", func(_ context.Context, _ *lab, c *contender) (float64, error) { return timed(c.list) }},
		{fmt.Sprintf("status of one of %d", n), "ms", func(_ context.Context, _ *lab, c *contender) (float64, error) {
			return timed(func() error { return c.show(c.guest(n)) })
		}},
	}
}

// standing has the contenders' guests stand beside each other, ever more of them,
// and asks for them.
func (l *lab) standing(ctx context.Context, f *figures, n int, sizes []int, contenders []*contender) error {
	there := 0
	for _, size := range sizes {
		for _, c := range contenders {
			for number := there + 1; number <= size; number++ {
				g := c.guest(number)
				if err := l.ready(c, g); err != nil {
					return err
				}
				if err := c.start(g, true); err != nil {
					return err
				}
			}
			tell("%d guests of %s stand", size, c.name)
		}
		there = size
		if err := l.repeat(ctx, f, n, contenders, lists(size)...); err != nil {
			return err
		}
	}
	for _, c := range contenders {
		for _, g := range c.guests(there) {
			if err := c.kill(g); err != nil {
				return err
			}
		}
	}
	return nil
}
