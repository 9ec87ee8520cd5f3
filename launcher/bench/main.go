// Command bench puts vmrun beside what people do by hand, on the same work and
// in the same run: A, B, A, B, … It prints medians with their quartiles and ratios
// with the interval in which they are certain by 95 %. It asserts nothing but that
// both give their guests the same hardware.
//
//	go run ./launcher/bench [-n 21] [-boots 4] [-length 500ms] [-cases life,out] [-control] [-quick]
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
// The streams are between guests that stay up for all cases: two of vmrun's and
// two by hand, on one NIC. While one pair is measured the others are idle. vmrun's
// have its defaults, so what it does while a guest runs (it follows the groups
// that the guest joins, and learns its addresses) is in its figures. Guests are
// started anew -boots times, lest the luck of one (where its memory is, how its
// boot went) pass for a difference. With -control there is a third pair, by hand
// again: how far its ratio is from 1 is what the figures cannot tell.
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

// plan is what is to be measured.
type plan struct {
	rounds  int // of each case, at each boot
	boots   int
	length  time.Duration // of a stream
	cases   []string
	control bool
}

func main() {
	var p plan
	flag.IntVar(&p.rounds, "n", 21, "repetitions of each case; of streams, at each boot")
	flag.IntVar(&p.boots, "boots", 4, "how often the guests of the streams are started anew")
	flag.DurationVar(&p.length, "length", 500*time.Millisecond, "length of each stream, at most 1m")
	flag.BoolVar(&p.control, "control", false, "measure what is done by hand twice")
	cases := flag.String("cases", strings.Join(caseNames, ","), "what to measure")
	quick := flag.Bool("quick", false, "only 5 repetitions and one boot")
	flag.Parse()
	p.cases = strings.Split(*cases, ",")
	if *quick {
		p.rounds, p.boots = 5, 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := p.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (p plan) run(ctx context.Context) (err error) {
	if unknown := without(p.cases, caseNames); len(unknown) > 0 {
		return fmt.Errorf("no case %q: %s", unknown[0], strings.Join(caseNames, ", "))
	}
	if p.rounds < 1 || p.boots < 1 {
		return errors.New("-n and -boots are 1 at least")
	}
	l, err := newLab(p.control)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	fmt.Printf("%s, %d CPUs, %s, accelerator tcg (no KVM)\n", kernel(), runtime.NumCPU(), qemuVersion())
	fmt.Printf("%d repetitions, interleaved; streams of %v, %d boots; load average %s\n", p.rounds, p.length, p.boots, load())
	if slices.Contains(p.cases, "life") {
		f := figures{}
		if err := f.repeat(ctx, p.rounds, l.contenders, life...); err != nil {
			return err
		}
		fmt.Print(f.table(l.contenders, life))
	}
	if streams := l.streams(p.cases, p.length); len(streams) > 0 {
		if err := p.stream(ctx, l, streams); err != nil {
			return err
		}
	}
	fmt.Printf("\nload average at the end %s\n", load())
	return nil
}

// stream measures streams, between guests that it starts and ends.
func (p plan) stream(ctx context.Context, l *lab, streams []work) error {
	f := figures{}
	for boot := range p.boots {
		if err := l.bootUntilRight(ctx); err != nil {
			return err
		}
		if boot == 0 {
			if err := l.compareHardware(); err != nil {
				return err
			}
		}
		for _, s := range streams {
			if err := f.repeat(ctx, p.rounds, l.contenders, s); err != nil {
				return err
			}
		}
		if err := l.endPairs(); err != nil {
			return err
		}
	}
	fmt.Print(f.table(l.contenders, streams))
	return nil
}

// work is something of which each contender has a figure.
type work struct {
	name, unit string
	do         func(context.Context, *contender) (float64, error)
}

// repeat has the contenders do all work in turn, n times. A first round warms the
// caches and is not counted.
func (f figures) repeat(ctx context.Context, n int, contenders []*contender, all ...work) error {
	for round := range n + 1 {
		for _, c := range contenders {
			for _, w := range all {
				figure, err := w.do(ctx, c)
				if err = cmp.Or(ctx.Err(), err); err != nil {
					return fmt.Errorf("%s: %s: %w", c.name, w.name, err)
				}
				if round > 0 {
					f.add(w, c, figure)
				}
			}
		}
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
