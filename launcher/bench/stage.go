package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageEnv says which of three processes this is. The first, which was called,
// starts the second in namespaces of its own: of PIDs, mounts and the network. The
// second is PID 1 there, reaps, and starts the third, which measures. So whatever
// happens, nothing is left: all processes, mounts and links of the lab end with
// the second.
const stageEnv = "VMRUN_BENCH_STAGE"

// dirEnv says where the lab's files are to be.
const dirEnv = "VMRUN_BENCH_DIR"

// inNamespaces runs the program once more, isolated, and returns how it ended.
func inNamespaces() int {
	dir, err := os.MkdirTemp("/tmp", "vmrun-bench-") // a socket's path has 107 bytes at most
	if err != nil {
		return failed(err)
	}
	defer os.RemoveAll(dir)
	cmd := again("init", dirEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		return failed(fmt.Errorf("namespaces: %w: make bench needs root", err))
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for range signals {
			_ = cmd.Process.Kill()
		}
	}()
	return ended(cmd.Wait())
}

// reap is PID 1: it prepares what belongs to the namespaces, and returns how the
// process that measures ended.
func reap() int {
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		// As /run is. No contender waits for a disk then, be it for a page of a file that
		// was dropped from memory.
		unix.Mount("tmpfs", os.Getenv(dirEnv), "tmpfs", unix.MS_NOSUID, "mode=0755"))
	if err != nil {
		return failed(fmt.Errorf("mount: %w", err))
	}
	cmd := again("measure")
	if err := cmd.Start(); err != nil {
		return failed(err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return failed(err)
		case pid == cmd.Process.Pid:
			return status.ExitStatus()
		}
	}
}

func again(stage string, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), append(env, stageEnv+"="+stage)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

func ended(err error) int {
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode()
	}
	if err != nil {
		return failed(err)
	}
	return 0
}

func failed(err error) int {
	fmt.Fprintln(os.Stderr, "bench:", err)
	return 1
}
