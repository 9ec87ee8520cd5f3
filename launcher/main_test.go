package launcher

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmrun/netsetup/nettest"
)

// childEnv names the part that a re-executed test binary plays: the tests run
// supervisors, and what is confined like QEMU, as processes of their own.
const childEnv = "VMRUN_TEST_CHILD"

// children are those parts by name; test files add theirs in init.
var children = map[string]func() error{}

// reapedEnv marks the process that runs the tests, below the one that reaps.
const reapedEnv = "VMRUN_TEST_REAPED"

func TestMain(m *testing.M) {
	part := os.Getenv(childEnv)
	if name := filepath.Base(os.Args[0]); part == "" && children[name] != nil {
		part = name // started as a guest's QEMU, which gets no environment
	}
	if part != "" {
		if err := children[part](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(reapedEnv) == "" {
		os.Exit(runReaped())
	}
	os.Exit(nettest.M{M: m}.Run())
}

// runReaped runs the tests in children and reaps whatever is orphaned below them.
// Supervisors and QEMUs that outlive the process that started them fall to
// init, and not every init of a container or a CI job reaps.
func runReaped() int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become a reaper:", err)
		return 1
	}
	r := reaper{waiting: deal(os.Args[1:]), running: map[int]*os.File{}}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	go r.passOn(signals)
	for r.start(); len(r.running) > 0; r.start() {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "wait:", err)
			return 1
		default:
			r.ended(pid, status)
		}
	}
	return r.code
}

// atOnce is how many processes run the package's tests: these wait for guests for most
// of their time.
const atOnce = 2

// deals is how many shares of the tests there are, more than processes, so that all of
// these have something to do to the end.
const deals = 12

// deal makes shares of the tests, each as the arguments of a process of its own. Where
// only some of them are asked for, or something else, there is one share.
func deal(args []string) [][]string {
	flag.Parse()
	for _, name := range []string{"run", "skip", "list", "bench", "fuzz", "coverprofile"} {
		if f := flag.Lookup("test." + name); f != nil && f.Value.String() != "" {
			return [][]string{args}
		}
	}
	cmd := exec.Command(os.Args[0], "-test.list=^(Test|Fuzz|Example)")
	cmd.Env = append(os.Environ(), reapedEnv+"=1")
	out, err := cmd.Output()
	names := strings.Fields(string(out))
	if err != nil || len(names) < deals {
		return [][]string{args}
	}
	shares := make([][]string, deals)
	for i, name := range names { // neighbours, which are much alike, to different shares
		shares[i%deals] = append(shares[i%deals], name)
	}
	for i, share := range shares {
		shares[i] = append(slices.Clone(args), "-test.run=^("+strings.Join(share, "|")+")$")
	}
	return shares
}

// reaper runs processes with a share of the tests each.
type reaper struct {
	waiting [][]string
	code    int // of the first that failed

	mu      sync.Mutex
	running map[int]*os.File // by pid: what it says, where that is to be kept for its end
}

// start has as many processes run as may.
func (r *reaper) start() {
	for len(r.running) < atOnce && len(r.waiting) > 0 {
		cmd := exec.Command(os.Args[0], r.waiting[0]...)
		r.waiting = r.waiting[1:]
		// The race detector has a process sleep for a second at its exit.
		cmd.Env = append(os.Environ(), reapedEnv+"=1", "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		var said *os.File
		if len(r.running)+len(r.waiting) > 0 { // or else it may speak for itself
			fd, err := unix.MemfdCreate("tests", unix.MFD_CLOEXEC)
			if err == nil {
				said = os.NewFile(uintptr(fd), "tests")
				cmd.Stdout, cmd.Stderr = said, said
			}
		}
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			r.code, r.waiting = 1, nil
			return
		}
		r.mu.Lock()
		r.running[cmd.Process.Pid] = said
		r.mu.Unlock()
	}
}

// ended is called for each process that was reaped.
func (r *reaper) ended(pid int, status unix.WaitStatus) {
	said, ours := r.running[pid]
	if !ours {
		return
	}
	r.mu.Lock()
	delete(r.running, pid)
	r.mu.Unlock()
	if said != nil {
		_, _ = said.Seek(0, io.SeekStart)
		_, _ = io.Copy(os.Stdout, said)
		said.Close()
	}
	code := 2
	if status.Exited() {
		code = status.ExitStatus()
	}
	if r.code == 0 {
		r.code = code
	}
}

// passOn sends signals on.
func (r *reaper) passOn(signals <-chan os.Signal) {
	for s := range signals {
		r.mu.Lock()
		for pid := range r.running {
			_ = unix.Kill(pid, s.(syscall.Signal))
		}
		r.mu.Unlock()
	}
}
