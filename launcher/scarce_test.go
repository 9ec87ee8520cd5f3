package launcher

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// openFilesEnv limits how many files a test's supervisor, and its QEMU, may have
// open.
const openFilesEnv = "VMRUN_TEST_OPEN_FILES"

func init() {
	if n, err := strconv.ParseUint(os.Getenv(openFilesEnv), 10, 64); err == nil && os.Getenv(childEnv) == "supervisor" {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			panic(err)
		}
	}
}

// TestFewDescriptorsAtStart starts a guest that may have ever more files open:
// each start that fails says why, and leaves nothing.
func TestFewDescriptorsAtStart(t *testing.T) {
	b := newBench(t)
	g := b.spec("few", "", nic("bridge", "queues = 2", "host_access = true"))
	var rows []string
	enough := 0
	for n := 10; n <= 60; n++ {
		if enough > 0 && n > enough+4 && n%8 != 0 {
			continue
		}
		t.Setenv(openFilesEnv, strconv.Itoa(n))
		_, err := b.start(g, order{Paused: true})
		switch {
		case err == nil && enough == 0:
			enough = n
			fallthrough
		case err == nil:
			b.kill(g.Name)
		case !strings.Contains(err.Error(), "too many open files") || enough > 0:
			t.Errorf("%d files: %v", n, err)
		}
		rows = append(rows, fmt.Sprintf("%d: %v", n, err))
		dir := guestDir(b.base, g.Name)
		if _, there := os.Stat(string(dir)); there == nil && err != nil && len(tail(dir.path(fileQEMULog), 1)) == 0 && n < 16 {
			t.Errorf("%d files: the run directory is left", n)
		}
		b.clean(fmt.Sprint(n, " files"))
	}
	if enough == 0 {
		t.Error("60 files are not enough")
	}
	t.Logf("starts by the number of files that may be open:\n%s", strings.Join(rows, "\n"))
}

// TestFewDescriptorsAtRunTime has clients eat all that a supervisor may open. The
// guest lives on, and everything works again when they are gone.
func TestFewDescriptorsAtRunTime(t *testing.T) {
	b := newBench(t)
	g := b.spec("eaten", "", nic("bridge"))
	report := b.mustStart(g, order{Paused: true})
	used, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", report.Status.Supervisor))
	b.must(err)
	limit := uint64(len(used) + 8)
	b.must(unix.Prlimit(report.Status.Supervisor, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}, nil))
	dir := guestDir(b.base, g.Name)
	var clients []net.Conn
	for range 20 {
		for _, file := range []string{fileControl, fileConsole} {
			conn, err := net.Dial("unix", dir.path(file))
			b.must(err)
			defer conn.Close()
			clients = append(clients, conn)
		}
	}
	b.timed("status", observeTimeout, func() {
		if s := b.observe(g); s.State != StateUnresponsive || s.Silent != silentSupervisor || s.PID != report.Status.PID {
			t.Errorf("while nobody can be let in: %+v", s)
		}
	})
	if _, err := startTime(report.Status.PID); err != nil {
		t.Fatalf("the guest is gone: %v", err)
	}
	log := string(readFile(t, dir.path(fileSupervisorLog)))
	if n := strings.Count(log, "cannot accept a client"); n == 0 || n > 50 {
		t.Errorf("the log says %d times that clients cannot be let in:\n%s", n, log)
	}
	for _, conn := range clients {
		conn.Close()
	}
	b.waitState(g, StatePaused, 10*time.Second)
	viewer, err := net.Dial("unix", dir.path(fileConsole))
	b.must(err)
	defer viewer.Close()
	b.must(b.control(g.Name).Cont(b.within(5 * time.Second)))
	b.kill(g.Name)
	b.clean("few descriptors")
}

// TestNoMemory starts guests that are larger than the host, and one whose QEMU
// may not have what it needs: the words name the memory.
func TestNoMemory(t *testing.T) {
	b := newBench(t)
	for _, tt := range []struct{ name, memory, behaviour string }{
		{"as much as the largest hosts have", "1TiB", ""},
		{"more than the host has", (configs.Size(kernelField(t, "MemTotal:")>>10<<20) * 2).String(), ""},
		{"more than QEMU may have", "2GiB", "qemu-poor"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := b.spec("large", "", nic("bridge"))
			if tt.behaviour == "" && strings.TrimSpace(string(readFile(t, "/proc/sys/vm/overcommit_memory"))) == "1" {
				t.Skip("this host gives any memory away: sysctl vm.overcommit_memory=0")
			}
			if tt.behaviour != "" {
				g = b.faked("large", tt.behaviour, nic("bridge"), "[confine]\nroot = false\nlandlock = false")
			}
			text := strings.Replace(string(readFile(t, g.Path)), `memory = "192MiB"`, fmt.Sprintf("memory = %q", tt.memory), 1)
			b.must(os.WriteFile(g.Path, []byte(text), 0o600))
			_, err := b.start(mustLoad(t, g.Path), order{Paused: true})
			if want := fmt.Sprintf("the host does not give QEMU %s for the guest", tt.memory); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
			t.Log(err)
			b.clean(tt.name)
		})
	}
}

// poorQEMU is a real QEMU that may have 1.75 GiB of address space, which is room
// for its translator.
func poorQEMU() error {
	const limit = 1792 << 20
	path, err := exec.LookPath(platforms[configs.ArchX86].binary)
	if err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		return err
	}
	return unix.Exec(path, os.Args, os.Environ())
}

func init() { children["qemu-poor"] = poorQEMU }
