package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmrun/launcher"
)

// standing writes the spec of a guest that never runs and costs little: it has a
// disk and a NIC.
func (h *host) standing(name string) string {
	h.t.Helper()
	dir := h.t.TempDir()
	disk, spec := filepath.Join(dir, name+".img"), filepath.Join(dir, name+".toml")
	text := fmt.Sprintf("memory = \"64MiB\"\naccel = \"tcg\"\n[[disk]]\npath = %q\nformat = \"raw\"\n[[nic]]\nparent = \"lab0\"\n", disk)
	err := errors.Join(os.WriteFile(disk, make([]byte, 1<<20), 0o600), os.WriteFile(spec, []byte(text), 0o600))
	if err != nil {
		h.t.Fatal(err)
	}
	return spec
}

// stand starts guests whose CPUs stand still, and ends them with the test.
func (h *host) stand(names ...string) {
	h.t.Helper()
	specs := make(chan string, len(names))
	for _, name := range names {
		specs <- h.standing(name)
	}
	close(specs)
	h.t.Cleanup(func() {
		h.command(append([]string{"kill"}, names...)...).Run()
		h.vmrun(0, "", "cleanup")
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for spec := range specs {
				cmd := h.command("start", "--paused", spec)
				if out, err := h.lab.Host.Run(cmd); err != nil {
					h.t.Errorf("%v: %s", err, out)
				}
			}
		})
	}
	wg.Wait()
	if h.t.Failed() {
		h.t.FailNow()
	}
}

// leavesNothing makes sure that nothing is left at the test's end.
func (h *host) leavesNothing() {
	before := h.lab.Snapshot(h.t, h.run)
	h.t.Cleanup(func() {
		if diff := before.Wait(3 * time.Second); diff != "" {
			h.t.Errorf("left behind:\n%s", diff)
		}
	})
}

// onlooker is a vmrun that goes on and on.
type onlooker struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	seen  []string
}

// onlook begins to look on.
func (h *host) onlook(args ...string) *onlooker {
	h.t.Helper()
	o := &onlooker{t: h.t, cmd: h.command(args...), lines: make(chan string, 1000)}
	out, err := o.cmd.StdoutPipe()
	o.cmd.Stderr = os.Stderr
	if err == nil {
		err = h.lab.Host.Do(o.cmd.Start)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { o.cmd.Process.Kill() })
	go func() {
		defer close(o.lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			o.lines <- in.Text()
		}
	}()
	return o
}

// sees waits for a line that matches, and returns what its groups match.
func (o *onlooker) sees(pattern string) []string {
	o.t.Helper()
	re, late := regexp.MustCompile(pattern), time.After(30*time.Second)
	for {
		select {
		case line, ok := <-o.lines:
			if o.seen = append(o.seen, line); re.MatchString(line) {
				return re.FindStringSubmatch(line)
			}
			if !ok {
				o.t.Fatalf("it ended without %q in:\n%s", pattern, strings.Join(o.seen, "\n"))
			}
		case <-late:
			o.t.Fatalf("no %q in:\n%s", pattern, strings.Join(o.seen, "\n"))
		}
	}
}

// interrupt types Ctrl-C, with which all that look on end well.
func (o *onlooker) interrupt() {
	o.t.Helper()
	o.cmd.Process.Signal(syscall.SIGINT)
	o.ends()
}

func (o *onlooker) ends() {
	o.t.Helper()
	for line := range o.lines {
		o.seen = append(o.seen, line)
	}
	if err := o.cmd.Wait(); err != nil {
		o.t.Errorf("%s ended with %v", strings.Join(o.cmd.Args[3:], " "), err)
	}
}

// What changes is seen by those who look on, and nothing else; a guest that comes
// later is looked at like those that were there.
func TestWatching(t *testing.T) {
	h := newHost(t)
	h.leavesNothing()
	h.stand("web1", "web2")

	ps, psJSON := h.onlook("ps", "--watch"), h.onlook("ps", "--watch", "--json")
	stats, events := h.onlook("stats", "--watch", "--interval=300ms", "--sort=name"), h.onlook("events", "--follow")
	one, logs := h.onlook("events", "--follow", "--json", "web1", "web2"), h.onlook("logs", "--follow")
	ps.sees(`^TIME +NAME +STATE +PID`)
	ps.sees(`^\d\d:\d\d:\d\d +web2 +paused +\d+ +\S+ +lab0 bridge `)
	psJSON.sees(`^\[{"name":"web1",.*"name":"web2".*\]$`)
	stats.sees(`^TIME +GUEST +CPU +MEMORY +READ/s`)
	stats.sees(`^\d\d:\d\d:\d\d  web1 +0\.\d % +\d+ MB +0 B +0 B +\S+ k?bit +0 bit +0$`)
	for range 2 {
		logs.sees(`^web[12] \| .*guest is up`)
	}
	time.Sleep(200 * time.Millisecond) // so that all listen

	h.vmrun(0, `^web1: running$`, "resume", "web1")
	ps.sees(`web1 +running`)
	psJSON.sees(`^\[{"name":"web1",[^{]*"state":"running"`)
	events.sees(`^web1 \| \d\d:\d\d:\d\d\.\d{3} RESUME$`)
	var ev guestEvent
	if line := one.sees(`.*"RESUME".*`)[0]; json.Unmarshal([]byte(line), &ev) != nil || ev.Guest != "web1" || ev.Event.Event != "RESUME" || ev.Timestamp.Seconds == 0 {
		t.Errorf("%+v from %s", ev, line)
	}
	h.vmrun(0, `^web1: paused$`, "pause", "web1")
	psJSON.sees(`^\[{"name":"web1",[^{]*"state":"paused"`)

	h.stand("web11")
	ps.sees(`web11 +paused`)
	logs.sees(`^web11 \| .*guest is up`)
	stats.sees(`  web11 +0\.\d %`)
	h.vmrun(0, `^web11: running$`, "resume", "web11")
	events.sees(`^web11 \| .* RESUME$`)

	h.vmrun(0, `^web2: stopped`, "kill", "web2")
	ps.sees(`web2 +ended`)
	psJSON.sees(`^\[{"name":"web1",.*"name":"web11"`)
	logs.sees(`^web2  \| .*guest has ended`)
	for _, o := range []*onlooker{ps, psJSON, stats, events, logs} {
		o.interrupt()
	}
	for _, line := range ps.seen[1:] {
		if regexp.MustCompile(`^\S+ +web\d+ +starting`).MatchString(line) {
			continue // it may have been seen at that
		}
		if n := strings.Count(strings.Join(ps.seen, "\n"), line[8:]); n > 1 && !strings.Contains(line, "web1 ") {
			t.Errorf("%d times, and nothing new: %s", n, line)
		}
	}
	follow := h.onlook("logs", "--follow", "-n", "1", "web1") // alone, and without its name
	follow.sees(`^time=.*msg=`)
	h.vmrun(0, `^web1: stopped`, "kill", "web1")
	follow.sees(`guest has ended`)
	follow.ends()
	one.ends()
	h.vmrun(0, `\A[^|\n]*guest has ended.*\n\z`, "logs", "-n1", "web1")
	h.vmrun(0, `^web2  \| .*guest has ended`, "logs", "-n1", "web2", "web11")
}

// A guest's counters hold its disk, and say so where its QEMU does not answer.
func TestStatsOfAGuest(t *testing.T) {
	h := newHost(t)
	h.leavesNothing()
	h.stand("web1")
	var list []guestStats
	read := func() guestStats {
		t.Helper()
		list = nil
		if err := json.Unmarshal([]byte(h.vmrun(0, `^\[`, "stats", "--json", "web1")), &list); err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		return list[0]
	}
	g := read()
	if g.CPUTime <= 0 || g.Memory < 10<<20 || len(g.Disks) != 1 || g.Disks[0].Name != "disk0" || len(g.NICs) != 1 || g.NICs[0].Parent != "lab0" {
		t.Errorf("%+v", g)
	}
	h.vmrun(0, `^web1 +\d+(\.\d+)?m?s +\d+ MB$`, "stats")
	h.vmrun(0, `^web1 +disk0 +0 B +0 +0 B +0 +0$`, "stats")
	h.vmrun(0, `^web1: running$`, "resume", "web1")
	for deadline := time.Now().Add(30 * time.Second); read().Disks[0].Reads == 0; { // firmware looks for what to boot
		if time.Now().After(deadline) {
			t.Fatalf("nothing was read: %+v", list)
		}
	}
	s, err := launcher.Observe(t.Context(), h.run, "web1")
	if err == nil {
		err = syscall.Kill(s.PID, syscall.SIGSTOP)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(s.PID, syscall.SIGCONT)
	if g := read(); g.Disks != nil || len(g.NICs) != 1 || g.CPUTime <= 0 {
		t.Errorf("of a QEMU that does not answer: %+v", g)
	}
}
