package systemdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/netsetup/nettest"
)

const (
	bootTimeout = 60 * time.Second // a second is enough where nobody else wants the processor
	runTimeout  = 60 * time.Second
	endTimeout  = 10 * time.Second
)

// remedy installs what Boot needs.
const remedy = "apt-get install systemd-container dbus libpam-systemd"

// needed are files of Debian's packages in remedy.
var needed = []string{
	"/usr/bin/systemd-nspawn",
	"/usr/lib/systemd/systemd",
	"/usr/lib/systemd/system/dbus.service",
	"/usr/lib*/*/security/pam_systemd.so",
}

// Options add to the container; the zero value is a bare system.
type Options struct {
	// Etc are files to have in /etc: name below it to content. They replace the
	// container's own.
	Etc map[string]string
	// Binds are files and directories of this machine to see, read-only: path
	// there to path here. What is to be seen below /usr must be there on this
	// machine too: a directory over /usr/local/bin adds programs.
	Binds map[string]string
	// Packages lets the container have /usr and Debian's list of packages to itself, to
	// install some: what is written there does not reach this machine's.
	Packages bool
}

// Container is a systemd that has booted.
type Container struct {
	t      testing.TB
	nspawn *exec.Cmd
	leader int             // the container's PID 1, as this machine counts
	alive  context.Context // ends when nspawn is gone
	output bytes.Buffer    // what nspawn and the container's console say; read once alive has ended
}

// Boot boots a container that ends with the test.
func Boot(t testing.TB, o Options) *Container {
	t.Helper()
	Require(t)
	dir, err := os.MkdirTemp("", "vmrun-systemd-") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	root := filepath.Join(dir, "root")
	if err := plant(root, o.Etc); err != nil {
		t.Fatal(err)
	}
	g, err := newGroup()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.remove(endTimeout); err != nil {
			t.Error(err)
		}
	})
	c := &Container{t: t}
	word, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "notify")})
	if err != nil {
		t.Fatal(err)
	}
	defer word.Close()
	if err := c.spawn(root, filepath.Join(dir, "notify"), g, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.end)
	if err := c.await(word); err != nil {
		t.Fatal(err)
	}
	return c
}

// Require skips the test where Boot cannot work, or fails it when
// VMRUN_TEST_REQUIRE is 1.
func Require(t testing.TB) {
	t.Helper()
	nettest.Root(t)
	for _, pattern := range needed {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			continue
		}
		if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
			t.Fatalf("%s is missing: %s", pattern, remedy)
		}
		t.Skipf("needs %s: %s", pattern, remedy)
	}
}

// stage gives nspawn a world in which it finds the unified hierarchy of control
// groups wherever this machine keeps that, and leaves nothing in /run.
const stage = `[ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
exec systemd-nspawn "$@"`

// spawn starts nspawn as the first of its own PID namespace, so that nobody in
// the container outlives it (pid_namespaces(7)), and on a thread that lives as
// long as it does: prctl(2), PR_SET_PDEATHSIG, is about the death of a thread.
func (c *Container) spawn(root, notify string, g *group, o Options) error {
	args := []string{
		"-euc", stage, "systemd-nspawn", "--quiet",
		"--directory=" + root, "--machine=vmrun-test", "--boot", "--notify-ready=yes",
		"--register=no", "--keep-unit", "--private-network", "--capability=all",
		"--link-journal=no", "--resolv-conf=off", "--timezone=off",
	}
	usr, err := o.usr(root)
	if err != nil {
		return err
	}
	args = append(args, usr...)
	colon := strings.NewReplacer(`\`, `\\`, ":", `\:`)
	for there, here := range o.Binds {
		args = append(args, "--bind-ro="+colon.Replace(here)+":"+colon.Replace(there))
	}
	c.nspawn = exec.Command("sh", append(args, "systemd.unit=multi-user.target")...)
	c.nspawn.Env = append(environment(), "NOTIFY_SOCKET="+notify,
		// Otherwise nspawn looks for the systemd in root, which has no /usr yet.
		"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	c.nspawn.Stdout, c.nspawn.Stderr = &c.output, &c.output
	c.nspawn.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, Setsid: true,
		Cloneflags: unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS,
		UseCgroupFD: true, CgroupFD: int(g.dir.Fd()),
	}
	alive, over := context.WithCancel(context.Background())
	c.alive = alive
	started := make(chan error)
	go func() {
		defer over()
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.nspawn.Start()
		started <- err
		if err == nil {
			_ = c.nspawn.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("systemd-nspawn: %w", err)
	}
	return nil
}

// usr are the words by which nspawn shows this machine's programs. What is written
// over them is beside root.
func (o Options) usr(root string) ([]string, error) {
	if !o.Packages {
		return []string{"--bind-ro=/usr"}, nil
	}
	var words []string
	for _, shared := range []string{"/usr", "/var/lib/dpkg"} {
		own := root + "-" + filepath.Base(shared)
		if err := os.Mkdir(own, 0o755); err != nil {
			return nil, err
		}
		words = append(words, fmt.Sprintf("--overlay=%s:%s:%[1]s", shared, own))
	}
	return words, nil
}

// await waits until the container runs, and then until it has booted.
func (c *Container) await(word *net.UnixConn) error {
	ctx, cancel := context.WithTimeout(c.alive, bootTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { word.SetReadDeadline(time.Now()) })
	defer stop()
	for buf := make([]byte, 4096); c.leader == 0; {
		n, err := word.Read(buf)
		if err != nil {
			return fmt.Errorf("systemd-nspawn: no word that the container runs: %w", err)
		}
		if !slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			continue
		}
		// nspawn says its pid, too, but as its own namespace counts.
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", c.nspawn.Process.Pid))
		if err == nil {
			c.leader, err = strconv.Atoi(strings.TrimSpace(string(children)))
		}
		if err != nil {
			return fmt.Errorf("systemd-nspawn: its container: %w", err)
		}
	}
	for {
		out, err := c.Command(ctx, "systemctl", "is-system-running", "--wait").CombinedOutput()
		switch state := strings.TrimSpace(string(out)); {
		case state == "running":
			return nil
		case state == "degraded": // a unit of a package that this machine happens to have
			c.t.Logf("booted without\n%s", c.Run("systemctl", "--failed", "--no-legend", "--plain"))
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("the container did not boot: %s: %w", state, errors.Join(err, ctx.Err()))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// end kills nspawn and with it the container.
func (c *Container) end() {
	if c.t.Failed() && c.leader != 0 {
		ctx, cancel := context.WithTimeout(c.alive, endTimeout)
		defer cancel()
		out, _ := c.Command(ctx, "journalctl", "--no-pager", "--lines=60", "--output=short-monotonic").CombinedOutput()
		c.t.Logf("the container's journal ends with:\n%s", out)
	}
	_ = c.nspawn.Process.Kill()
	select {
	case <-c.alive.Done():
	case <-time.After(endTimeout):
		c.t.Fatalf("systemd-nspawn (pid %d) did not die within %v", c.nspawn.Process.Pid, endTimeout)
	}
	if c.t.Failed() {
		c.t.Logf("systemd-nspawn said:\n%s", c.output.String())
	}
}

// environment is that of a command which is to behave the same everywhere.
func environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME=/root", "LANG=C.UTF-8"}
}

// Command is a command in the container, as root. It is of no unit there;
// systemd-run is for one that has to be. When ctx ends it is no longer waited
// for, and lives on until the container ends.
func (c *Container) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--all", "--target", strconv.Itoa(c.leader), "--", name}, args...)...)
	cmd.Env = environment()
	cmd.WaitDelay = time.Second
	return cmd
}

// Run runs a command in the container and returns what it wrote to its standard
// output, without space around it. The test fails when the command does.
func (c *Container) Run(name string, args ...string) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.alive, runTimeout)
	defer cancel()
	var stderr bytes.Buffer
	cmd := c.Command(ctx, name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// For is the container for a part of the test.
func (c *Container) For(t testing.TB) *Container {
	return &Container{t: t, nspawn: c.nspawn, leader: c.leader, alive: c.alive}
}

// Path is where a path of the container's is to be found from here.
func (c *Container) Path(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", c.leader, path)
}

// Login logs root in by PAM and runs a shell script as the session's leader,
// with the unit NAME.service to know it by. It returns the session's name.
func (c *Container) Login(name, script string) string {
	c.t.Helper()
	before := c.sessions()
	c.Run("systemd-run", "--quiet", "--collect", "--unit="+name, "--property=PAMName=login", "--property=User=root",
		"sh", "-euc", script)
	// The script runs once PAM has opened the session.
	for deadline := time.Now().Add(runTimeout); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for session := range c.sessions() {
			if !before[session] {
				return session
			}
		}
	}
	c.t.Fatalf("%s: no session of logind's after %v", name, runTimeout)
	return ""
}

func (c *Container) sessions() map[string]bool {
	c.t.Helper()
	list := make(map[string]bool)
	for line := range strings.Lines(c.Run("loginctl", "list-sessions", "--no-legend")) {
		if words := strings.Fields(line); len(words) > 0 {
			list[words[0]] = true
		}
	}
	return list
}

// Keep returns a path by which a directory of the container's is to be found from
// here until the test ends, whatever becomes of the container.
func (c *Container) Keep(path string) string {
	c.t.Helper()
	dir, err := os.Open(c.Path(path))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { dir.Close() })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), dir.Fd()) // for other processes, too
}

// PowerOff has the container shut down, and waits until it has.
func (c *Container) PowerOff(limit time.Duration) {
	c.t.Helper()
	c.Run("systemctl", "poweroff")
	select {
	case <-c.alive.Done():
	case <-time.After(limit):
		c.t.Fatalf("the container has not shut down within %v", limit)
	}
}
