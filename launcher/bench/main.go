// Command bench puts vmrun beside what people do by hand, on the same work and
// in the same run: A, B, A, B, … It prints medians with their quartiles and ratios
// with the interval in which they are certain by 95 %. It asserts nothing but that
// both give their guests the same hardware.
//
//	go run ./launcher/bench [-n 21] [-length 2s] [-cases life,out] [-quick]
//
// The cases:
//
//	life  ms from the command that starts a guest until it runs, and from the
//	      one that kills it until it is gone
//	out   Mbit/s by TCP from a guest to a machine at the other end of the wire
//	in    Mbit/s from there to a guest
//	pair  Mbit/s from a guest to another on the same NIC
//	out6  as out, by IPv6
//
// The streams are between guests that stay up for all of them: two of vmrun's and
// two by hand, on one NIC. While one pair is measured the other is idle. vmrun's
// have its defaults, so what it does while a guest runs (it follows the groups
// that the guest joins, and learns its addresses) is in its figures.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

var caseNames = []string{"life", "out", "in", "pair", "out6"}

func main() {
	n := flag.Int("n", 21, "repetitions of each case")
	length := flag.Duration("length", 2*time.Second, "length of each stream, at most 1m")
	cases := flag.String("cases", strings.Join(caseNames, ","), "what to measure")
	quick := flag.Bool("quick", false, "only 5 repetitions, and streams of 1s")
	flag.Parse()
	if *quick {
		*n, *length = 5, time.Second
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *n, *length, strings.Split(*cases, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, n int, length time.Duration, cases []string) (err error) {
	if unknown := without(cases, caseNames); len(unknown) > 0 {
		return fmt.Errorf("no case %q: %s", unknown[0], strings.Join(caseNames, ", "))
	}
	if n < 1 {
		return fmt.Errorf("%d repetitions are none", n)
	}
	l, err := newLab()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	fmt.Printf("%s, %d CPUs, %s, accelerator tcg (no KVM)\n", kernel(), runtime.NumCPU(), qemuVersion())
	fmt.Printf("%d repetitions, interleaved, streams of %v; load average %s\n", n, length, load())
	if slices.Contains(cases, "life") {
		fmt.Print(heading)
		if err := repeat(ctx, n, l.contenders, life...); err != nil {
			return err
		}
	}
	if cases = without(cases, []string{"life"}); len(cases) == 0 {
		return nil
	}
	if err := l.bootPairs(ctx); err != nil {
		return err
	}
	if err := l.compareHardware(); err != nil {
		return err
	}
	fmt.Print(heading)
	streams := l.streams(length)
	for _, name := range cases {
		if err := repeat(ctx, n, l.contenders, streams[name]); err != nil {
			return err
		}
	}
	fmt.Printf("\nload average at the end %s\n", load())
	return nil
}

// work is something of which each contender has a figure.
type work struct {
	name, unit string
	do         func(context.Context, *contender) (float64, error)
}

// repeat has the contenders do all work in turn, n times, and prints the figures.
// A first round warms the caches and is not counted.
func repeat(ctx context.Context, n int, contenders []*contender, all ...work) error {
	figures := map[string]sample{} // by work and contender
	for round := range n + 1 {
		for _, c := range contenders {
			for _, w := range all {
				figure, err := w.do(ctx, c)
				if err = cmp.Or(ctx.Err(), err); err != nil {
					return fmt.Errorf("%s: %s: %w", c.name, w.name, err)
				}
				if key := w.name + c.name; round > 0 {
					figures[key] = append(figures[key], figure)
				}
			}
		}
	}
	for _, w := range all {
		fmt.Print(rows(w, contenders, figures))
	}
	return nil
}

func kernel() string {
	out, err := exec.Command("uname", "-sr").Output()
	if err != nil {
		return "unknown kernel"
	}
	return strings.TrimSpace(string(out))
}

func qemuVersion() string {
	out, err := exec.Command(qemu, "--version").Output()
	if err != nil {
		return "unknown QEMU"
	}
	version, _, _ := strings.Cut(string(out), "\n")
	return version
}

// load is the load average of the last minute (proc_loadavg(5)).
func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	average, _, _ := strings.Cut(string(text), " ")
	return average
}
