package launcher

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
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

// runReaped runs the tests in a child and reaps whatever is orphaned below it.
// Supervisors and QEMUs that outlive the process that started them fall to
// init, and not every init of a container or a CI job reaps.
func runReaped() int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become a reaper:", err)
		return 1
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	// The race detector has a process sleep for a second at its exit.
	cmd.Env = append(os.Environ(), reapedEnv+"=1", "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	go func() {
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "wait:", err)
			return 1
		case pid == cmd.Process.Pid && status.Exited():
			return status.ExitStatus()
		case pid == cmd.Process.Pid:
			return 2
		}
	}
}
