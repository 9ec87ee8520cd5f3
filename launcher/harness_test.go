package launcher

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup/nettest"
	"vmrun/qmp"
)

// bench is a lab with a run directory, in which supervisors run as processes
// of their own.
type bench struct {
	t      testing.TB
	lab    *nettest.Lab
	base   string // of the run directories
	specs  string
	files  guesttest.Files
	before *nettest.Snapshot
	force  bool // start with --force: the lab's host has addresses on lab0
}

// newBench builds a lab and, at the test's end, ends every guest in it.
func newBench(t testing.TB, opts ...nettest.Option) *bench {
	t.Helper()
	b := newBareBench(t, opts...)
	b.files = guesttest.Image(t)
	return b
}

// newBareBench is newBench without a kernel for guests.
func newBareBench(t testing.TB, opts ...nettest.Option) *bench {
	t.Helper()
	nettest.Root(t)
	requireQEMU(t)
	base, err := os.MkdirTemp("/tmp", "vmrun-") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base); os.RemoveAll(stateBase(base)) })
	b := &bench{t: t, base: base, specs: t.TempDir(), lab: nettest.New(t, opts...)}
	b.before = b.lab.Snapshot(t, base)
	t.Cleanup(b.endAll)
	return b
}

func requireQEMU(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath(platforms[configs.ArchX86].binary); err != nil {
		if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs QEMU: apt-get install qemu-system-x86")
	}
}

// requireCompanions skips a test where there is no swtpm or no virtiofsd.
func requireCompanions(t testing.TB) {
	t.Helper()
	_, err := exec.LookPath("swtpm")
	if err == nil && findVirtiofsd() != "" {
		return
	}
	if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
		t.Fatal("no swtpm, or no virtiofsd")
	}
	t.Skip("needs swtpm and virtiofsd: apt-get install swtpm qemu-system-common")
}

func (b *bench) endAll() {
	for _, name := range guestNames(b.base) {
		if log, _ := os.ReadFile(guestDir(b.base, name).path(fileSupervisorLog)); strings.Contains(string(log), "DATA RACE") || strings.Contains(string(log), "panic: ") {
			b.t.Errorf("%s's supervisor:\n%s", name, log)
		}
		if b.t.Failed() {
			b.t.Logf("%s's supervisor said:\n%s", name, strings.Join(tail(guestDir(b.base, name).path(fileSupervisorLog), 10), "\n"))
			b.t.Logf("%s's console said:\n%s", name, strings.Join(tail(guestDir(b.base, name).path(fileConsoleLog), 15), "\n"))
		}
		if _, err := Kill(context.Background(), b.base, name); err != nil && KindOf(err) != KindState {
			b.t.Errorf("end %s: %v", name, err)
		}
	}
	if _, err := Cleanup(context.Background(), b.base); err != nil {
		b.t.Error(err)
	}
	b.before.Check(b.t)
}

// spec writes and reads the spec of a test guest with these further lines;
// addr, if not empty, is for its first NIC.
func (b *bench) spec(name, addr string, lines ...string) *configs.Guest {
	b.t.Helper()
	cmdline := guesttest.Cmdline
	if addr != "" {
		cmdline += " vmrun.addr=eth0:" + addr
	}
	return b.rawSpec(name, cmdline, lines...)
}

func (b *bench) rawSpec(name, cmdline string, lines ...string) *configs.Guest {
	b.t.Helper()
	text := fmt.Sprintf("memory = \"192MiB\"\naccel = \"tcg\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n%s\n",
		b.files.Kernel, b.files.Initrd, cmdline, strings.Join(lines, "\n"))
	path := filepath.Join(b.specs, name+".toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	g, err := configs.Load(path)
	if err != nil {
		b.t.Fatal(err)
	}
	return g
}

// nic is the lines of a NIC on the lab's first link.
func nic(mode string, lines ...string) string {
	return fmt.Sprintf("[[nic]]\nparent = \"lab0\"\nmode = %q\n%s", mode, strings.Join(lines, "\n"))
}

// order is what a supervisor is told through its environment.
type order struct {
	Base   string
	Paused bool
	Force  bool
	Lack   string // a privilege that the supervisor has not
	Fault  fault
	Cgroup string // to be in, or ""
}

const orderEnv = "VMRUN_TEST_ORDER"

func init() { children["supervisor"] = superviseForTest }

// superviseForTest is the supervisor's part of the test binary.
func superviseForTest() error {
	var o order
	if err := json.Unmarshal([]byte(os.Getenv(orderEnv)), &o); err != nil {
		return err
	}
	if err := lackPrivilege(o.Lack); err != nil {
		return err
	}
	reporter, err := NewReporter(os.Args[len(os.Args)-2])
	if err != nil {
		return err
	}
	g, err := configs.Load(os.Args[len(os.Args)-1])
	if err == nil && o.Cgroup != "" {
		err = writeGroup(o.Cgroup, "cgroup.procs", strconv.Itoa(os.Getpid()))
	}
	if err != nil {
		return err
	}
	opts := Options{RunDir: o.Base, Paused: o.Paused, Force: o.Force, Ready: reporter.Ready,
		Log: slog.New(slog.NewTextHandler(SupervisorLog(o.Base, g.Name), nil))}
	opts.step = func(when, step string) error { return o.strike(guestDir(o.Base, g.Name), when, step) }
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if _, err := Run(ctx, g, opts); err != nil {
		reporter.Failed(err)
		return err
	}
	return nil
}

// start starts a guest on the lab's host, as vmrun start does.
func (b *bench) start(g *configs.Guest, o order) (Report, error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return b.startWithin(ctx, g, o)
}

func (b *bench) startWithin(ctx context.Context, g *configs.Guest, o order) (Report, error) {
	b.t.Helper()
	o.Base = b.base
	text, err := json.Marshal(o)
	if err != nil {
		b.t.Fatal(err)
	}
	var report Report
	s := Supervisor{Path: os.Args[0], Env: append(os.Environ(), childEnv+"=supervisor", orderEnv+"="+string(text))}
	err = b.lab.Host.Do(func() (err error) {
		report, err = Start(ctx, g, b.base, s)
		return err
	})
	return report, err
}

func (b *bench) mustStart(g *configs.Guest, o order) Report {
	b.t.Helper()
	report, err := b.start(g, o)
	if err != nil {
		b.t.Fatalf("start %s: %v", g.Name, err)
	}
	return report
}

// boot starts guests together and waits until all serve commands.
func (b *bench) boot(guests ...*configs.Guest) []*guesttest.Console {
	b.t.Helper()
	var consoles []*guesttest.Console
	for _, g := range guests {
		b.mustStart(g, order{Force: b.force})
		consoles = append(consoles, b.console(g))
	}
	for i, c := range consoles {
		if _, err := c.WaitReady(b.within(60 * time.Second)); err != nil {
			b.t.Fatalf("%s: %v\n%s", guests[i].Name, err, c.Transcript())
		}
	}
	return consoles
}

func (b *bench) console(g *configs.Guest) *guesttest.Console {
	b.t.Helper()
	c, err := guesttest.Dial(b.within(5*time.Second), ConsoleSocket(b.base, g.Name))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

// say gives a guest a command and returns its reply.
func (b *bench) say(c *guesttest.Console, format string, args ...any) string {
	b.t.Helper()
	reply, _, err := c.Run(b.within(30*time.Second), fmt.Sprintf(format, args...))
	if err != nil {
		b.t.Fatal(err)
	}
	return reply
}

func (b *bench) observe(g *configs.Guest) Status {
	b.t.Helper()
	s, err := Observe(context.Background(), b.base, g.Name)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// waitState waits until the guest is in a state.
func (b *bench) waitState(g *configs.Guest, want State, limit time.Duration) Status {
	b.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		s := b.observe(g)
		if s.State == want {
			return s
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s is %s after %v, want %s", g.Name, s.State, limit, want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (b *bench) stop(g *configs.Guest, want Rung) {
	b.t.Helper()
	o, err := Stop(b.within(2*time.Minute), b.base, g.Name)
	if err != nil {
		b.t.Fatalf("stop %s: %v", g.Name, err)
	}
	if o.Reason != ReasonStopped || o.Rung != want {
		b.t.Errorf("stop %s: %+v, want rung %s", g.Name, o, want)
	}
}

// within is a context that ends with the test or after limit.
func (b *bench) within(limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	b.t.Cleanup(cancel)
	return ctx
}

// clean waits until nothing of any guest is left but records and logs.
func (b *bench) clean(what string) {
	b.t.Helper()
	if left := b.left(3 * time.Second); left != "" {
		b.t.Errorf("%s: left behind:\n%s", what, left)
	}
}

// left says what is left of any guest after limit, but for records and logs.
func (b *bench) left(limit time.Duration) string {
	b.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		left := b.before.Wait(0)
		if left == "" {
			left = strings.Join(slices.Concat(b.holders(), b.locks(), b.sockets()), "\n")
		}
		if left == "" || time.Now().After(end) {
			return left
		}
	}
}

func mustLoad(t testing.TB, path string) *configs.Guest {
	t.Helper()
	g, err := configs.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// rewrite puts a line on top of a guest's spec.
func (b *bench) rewrite(g *configs.Guest, line string) {
	b.t.Helper()
	text, err := os.ReadFile(g.Path)
	if err == nil {
		err = os.WriteFile(g.Path, append([]byte(line+"\n"), text...), 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) signalQEMU(r Report, sig syscall.Signal) {
	b.t.Helper()
	if err := syscall.Kill(r.Status.PID, sig); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) kill(name string) {
	b.t.Helper()
	if _, err := Kill(context.Background(), b.base, name); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) control(name string) *qmp.Client {
	b.t.Helper()
	c, err := Control(context.Background(), b.base, name)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}
