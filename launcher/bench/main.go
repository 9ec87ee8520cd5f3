package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// parts are groups of cases, in the order in which they are measured.
var parts = []string{"life", "boot", "death", "idle", "children", "streams", "list", "fleet"}

// plan is what is to be measured.
type plan struct {
	rounds  int // of each case; of streams, at each boot
	boots   int
	length  time.Duration // of a stream
	parts   []string
	lists   []int // how many guests there are to be listed
	libvirt bool
	control bool
	keep    string // a directory
	check   string // a file
}

func main() {
	switch os.Getenv(stageEnv) {
	case "":
		os.Exit(inNamespaces())
	case "init":
		os.Exit(reap())
	}
	var p plan
	flag.IntVar(&p.rounds, "n", 11, "repetitions of each case; of streams, at each boot")
	flag.IntVar(&p.boots, "boots", 2, "how often the guests of the streams are started anew")
	flag.DurationVar(&p.length, "length", 500*time.Millisecond, "length of each stream, at most 1m")
	flag.BoolVar(&p.libvirt, "libvirt", true, "measure libvirt, too")
	flag.BoolVar(&p.control, "control", false, "measure the script twice")
	flag.StringVar(&p.keep, "keep", "", "write figures.json, RESULTS.md and charts into this directory")
	flag.StringVar(&p.check, "check", "", "compare ratios with a figures.json, and tell what moved by more than 20 %")
	words := flag.String("cases", strings.Join(parts, ","), "what to measure")
	quick := flag.Bool("quick", false, "only 5 repetitions, one boot, no fleet, nobody idle, lists of 10 guests at most")
	flag.Parse()
	p.parts, p.lists = strings.Split(*words, ","), []int{1, 10, 100}
	if *quick {
		p.rounds, p.boots, p.lists = 5, 1, p.lists[:2]
		p.parts = slices.DeleteFunc(p.parts, func(part string) bool { return part == "fleet" || part == "idle" })
	}
	if err := p.run(context.Background()); err != nil {
		os.Exit(failed(err))
	}
}

func (p plan) run(ctx context.Context) error {
	if unknown := without(p.parts, parts); len(unknown) > 0 {
		return fmt.Errorf("no case %q: %s", unknown[0], strings.Join(parts, ", "))
	}
	if p.rounds < 1 || p.boots < 1 {
		return errors.New("-n and -boots are 1 at least")
	}
	var kept *report
	if p.check != "" {
		var err error
		if kept, err = readReport(p.check); err != nil {
			return err
		}
	}
	r := &report{Date: time.Now().Format(time.DateOnly), Machine: machine(), Versions: versions(), Load: load(),
		Plan: fmt.Sprintf("%d repetitions, interleaved; streams of %v, %d boots", p.rounds, p.length, p.boots)}
	l, err := newLab(ctx, os.Getenv(dirEnv), p.libvirt)
	if err != nil {
		return err
	}
	f, err := p.measure(ctx, l)
	if err != nil {
		return err
	}
	r.Cases, r.Load = f.entries(), r.Load+" at the beginning, "+load()+" at the end"
	fmt.Printf("%s\n%s\n%s\nload average %s\n\n%s%s", r.Machine, r.Versions, r.Plan, r.Load, r.table(), r.goals())
	if kept != nil {
		moved, compared := r.moved(kept)
		fmt.Printf("\n%d ratios compared with those of %s, %d moved by more than 20 %%\n", compared, kept.Date, len(moved))
		for _, line := range moved {
			fmt.Println(line)
		}
	}
	if p.keep != "" {
		return r.keep(p.keep)
	}
	return nil
}

// measure does what is planned. Contenders that cannot do a thing are left out of it.
func (p plan) measure(ctx context.Context, l *lab) (*figures, error) {
	all := []*contender{l.plainC, l.handC, l.vmrunC}
	if p.control {
		all = append(all, l.controlC)
	}
	managed := []*contender{l.vmrunC} // which can be asked
	if p.libvirt {
		all, managed = append(all, l.libvirtC), append(managed, l.libvirtC)
	}
	f := newFigures()
	for _, c := range all {
		if err := l.ready(c, c.guest(1)); err != nil {
			return nil, err
		}
	}
	if err := l.sameHardware(all); err != nil {
		return nil, err
	}
	measures := map[string]func() error{
		"life":     func() error { return l.repeat(ctx, f, p.rounds, all, life...) },
		"boot":     func() error { return l.repeat(ctx, f, p.rounds, all, boot...) },
		"death":    func() error { return l.repeat(ctx, f, p.rounds, managed, death) },
		"idle":     func() error { return l.repeat(ctx, f, 3, managed, wakeups) },
		"children": func() error { return l.children(ctx, f, p.rounds) },
		"streams":  func() error { return p.stream(ctx, l, f, all[1:], managed) },
		"list":     func() error { return l.standing(ctx, f, p.rounds, p.lists, managed) },
		"fleet":    func() error { return l.fleets(ctx, f, p.rounds, all) },
	}
	for _, part := range parts {
		if !slices.Contains(p.parts, part) {
			continue
		}
		if err := measures[part](); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// sameHardware makes sure that all give their guests the same, and shows in what
// their words differ.
func (l *lab) sameHardware(all []*contender) error {
	for _, c := range all {
		if err := c.start(c.guest(1), true); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	said, err := l.compareHardware(all)
	if err != nil {
		return err
	}
	if os.Getenv("VMRUN_BENCH_SHOW") != "" {
		fmt.Fprint(os.Stderr, said)
	}
	for _, c := range all {
		if err := c.kill(c.guest(1)); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// stream measures guests that are up: what they send, and what they hear.
func (p plan) stream(ctx context.Context, l *lab, f *figures, all, managed []*contender) error {
	for range p.boots {
		if err := l.bootUntilRight(ctx, all); err != nil {
			return err
		}
		if err := l.repeat(ctx, f, p.rounds, all, l.streams(p.length)...); err != nil {
			return err
		}
		if err := l.repeat(ctx, f, p.rounds, managed, l.news()...); err != nil {
			return err
		}
		if err := endPairs(all); err != nil {
			return err
		}
	}
	return nil
}
