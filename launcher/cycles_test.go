package launcher

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"vmrun/configs"
)

// TestCycles starts and stops a paused guest 200 times, all supervised by this
// one process, and then looks at what has grown in it and in the kernel.
func TestCycles(t *testing.T) {
	b := newBench(t)
	g := b.spec("cycle", "", nic("bridge"), nic("private", "queues = 2"))
	for range 5 { // caches fill, thread pools grow
		b.cycle(g.Path)
	}
	before, files := takeUsage(t), b.filesOf(g)
	start := time.Now()
	cycles := soakOr(1000, 60)
	for range cycles {
		b.cycle(g.Path)
		if t.Failed() {
			return
		}
	}
	took := time.Since(start)
	b.clean("cycles")
	t.Logf("%d cycles, %v each", cycles, (took / time.Duration(cycles)).Round(time.Millisecond))
	before.check(t, takeUsage(t), cycles)
	if now := b.filesOf(g); now != files {
		t.Errorf("the run directory has %s, and had %s", now, files)
	}
}

// filesOf names what there is in a guest's run directory.
func (b *bench) filesOf(g *configs.Guest) string {
	var names []string
	for _, e := range entries(b.t, string(guestDir(b.base, g.Name))) {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// check compares two usages with so many starts of guests between them.
func (before usage) check(t *testing.T, after usage, starts int) {
	t.Helper()
	t.Logf("before %+v\nafter  %+v", before, after)
	if after.descriptors > before.descriptors {
		t.Errorf("descriptors grew from %d to %d", before.descriptors, after.descriptors)
	}
	if after.goroutines > before.goroutines {
		t.Errorf("goroutines grew from %d to %d", before.goroutines, after.goroutines)
	}
	if after.heap > before.heap+1<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before.heap, after.heap)
	}
	if after.threads > before.threads+8 { // the runtime keeps idle threads
		t.Errorf("threads grew from %d to %d", before.threads, after.threads)
	}
	// A leaked namespace costs the kernel about 115 KiB. The rest is for what else
	// goes on meanwhile, other packages' tests for example, whose end is waited for.
	limit := before.unreclaimable + uint64(starts)*16<<10 + 8<<20
	for end := time.Now().Add(20 * time.Second); after.unreclaimable > limit && time.Now().Before(end); time.Sleep(time.Second) {
		after.unreclaimable = kernelField(t, "SUnreclaim:") << 10
	}
	if after.unreclaimable > limit {
		t.Errorf("the kernel's unreclaimable memory grew from %d to %d bytes", before.unreclaimable, after.unreclaimable)
	}
	if after.cgroups > before.cgroups {
		t.Errorf("control groups of vmrun grew from %d to %d", before.cgroups, after.cgroups)
	}
}

// cycle starts the guest paused and stops it as soon as it is there.
func (b *bench) cycle(path string) {
	b.t.Helper()
	g := mustLoad(b.t, path)
	err := b.lab.Host.Do(func() error {
		ctx, stop := context.WithTimeout(context.Background(), time.Minute)
		defer stop()
		o, err := Run(ctx, g, Options{RunDir: b.base, Paused: true, Ready: func(Report) { stop() }})
		if err == nil && (o.Reason != ReasonStopped || o.Rung != RungQuit) {
			err = fmt.Errorf("outcome %+v", o)
		}
		return err
	})
	if err != nil {
		b.t.Error(err)
	}
}

// usage is what a process and the kernel hold.
type usage struct {
	descriptors, goroutines, threads int
	cgroups                          int    // that vmrun names
	heap, unreclaimable              uint64 // bytes
}

func takeUsage(t *testing.T) usage {
	t.Helper()
	time.Sleep(500 * time.Millisecond) // the kernel frees namespaces behind our back
	runtime.GC()
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return usage{
		descriptors:   len(entries(t, "/proc/self/fd")),
		goroutines:    runtime.NumGoroutine(),
		threads:       len(entries(t, "/proc/self/task")),
		cgroups:       countGroups(),
		heap:          mem.HeapAlloc,
		unreclaimable: kernelField(t, "SUnreclaim:") << 10,
	}
}

// countGroups counts the control groups of ours below the test's own.
func countGroups() (n int) {
	own, err := cgroupOf(os.Getpid(), "")
	for _, name := range []string{qemuGroup, supervisorGroup} {
		if _, statErr := os.Stat(filepath.Join(own, name)); err == nil && statErr == nil {
			n++
		}
	}
	return n
}

func entries(t testing.TB, dir string) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// kernelField reads a line of /proc/meminfo, in KiB.
func kernelField(t *testing.T, name string) (n uint64) {
	t.Helper()
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
			fmt.Sscan(rest, &n)
		}
	}
	return n
}
