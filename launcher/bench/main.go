// Command bench puts vmrun beside what people do by hand, on the same work and
// in the same run: A, B, A, B, … It prints medians, quartiles and their ratio,
// and asserts nothing.
//
//	go run ./launcher/bench [-n 11] [-quick]
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

func main() {
	n := flag.Int("n", 21, "repetitions of each case")
	quick := flag.Bool("quick", false, "only 5 repetitions")
	flag.Parse()
	if *quick {
		*n = 5
	}
	if err := run(*n); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(n int) (err error) {
	l, err := newLab()
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := l.close(); err == nil {
			err = closeErr
		}
	}()
	fmt.Printf("%s, %d CPUs, %s, accelerator tcg, %d repetitions, interleaved\n\n", kernel(), runtime.NumCPU(), qemuVersion(), n)
	contenders := []contender{l.vmrun(), l.script()}
	times := map[string]*sample{}
	for i := range n + 1 { // the first round warms the caches and is not counted
		for _, c := range contenders {
			if err := measure(c, times, i > 0); err != nil {
				return err
			}
		}
	}
	printTable(contenders, times)
	return nil
}

// contender is one way to start a guest and to end it.
type contender struct {
	name       string
	start, end func() error
}

func measure(c contender, times map[string]*sample, count bool) error {
	for _, phase := range []struct {
		name string
		act  func() error
	}{{"start to running", c.start}, {"kill to gone", c.end}} {
		took, err := timed(phase.act)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", c.name, phase.name, err)
		}
		key := phase.name + "/" + c.name
		if times[key] == nil {
			times[key] = &sample{}
		}
		if count {
			times[key].add(took)
		}
	}
	return nil
}

func printTable(contenders []contender, times map[string]*sample) {
	fmt.Printf("%-18s %-8s %9s %9s %9s  %s\n", "case", "who", "median", "1st qu.", "3rd qu.", "ratio of medians")
	for _, phase := range []string{"start to running", "kill to gone"} {
		floor := times[phase+"/"+contenders[len(contenders)-1].name]
		for _, c := range contenders {
			s := times[phase+"/"+c.name]
			fmt.Printf("%-18s %-8s %7.1fms %7.1fms %7.1fms  %.2f\n", phase, c.name,
				s.quantile(0.5), s.quantile(0.25), s.quantile(0.75), s.quantile(0.5)/floor.quantile(0.5))
		}
	}
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
