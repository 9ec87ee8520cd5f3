package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
	"vmrun/launcher/systemdtest"
	"vmrun/qmp"
)

// lent is a group that every Debian has, and nobody is in.
const lent = "games"

// club is a bench with people who are not root.
type club struct {
	*bench
	vmrun string
	gid   int
}

func newClub(t *testing.T) *club {
	b := newBench(t)
	group, err := user.LookupGroup(lent)
	if err != nil {
		lack(t, err.Error())
	}
	gid, err := strconv.Atoi(group.Gid)
	b.must(err)
	c := &club{bench: b, vmrun: systemdtest.BuildVmrun(t), gid: gid}
	for _, dir := range []string{b.base, filepath.Dir(c.vmrun), filepath.Dir(filepath.Dir(c.vmrun)), b.specs} {
		b.must(os.Chmod(dir, 0o755))
	}
	return c
}

// shared is a guest for the group.
func (c *club) shared(name string, lines ...string) *configs.Guest {
	c.t.Helper()
	g := c.spec(name, "", lines...)
	c.rewrite(g, fmt.Sprintf("group = %q", lent))
	c.must(os.Chmod(g.Path, 0o644))
	return mustLoad(c.t, g.Path)
}

func (c *club) member() *syscall.Credential {
	return &syscall.Credential{Uid: 4242, Gid: 4242, Groups: []uint32{uint32(c.gid)}}
}

func (c *club) stranger() *syscall.Credential { return &syscall.Credential{Uid: 4243, Gid: 4243} }

func (c *club) command(who *syscall.Credential, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(c.within(60*time.Second), c.vmrun, append([]string{"--run-dir", c.base}, args...)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	return cmd
}

// types has somebody type a command, and wants this exit status and output that
// matches.
func (c *club) types(who *syscall.Credential, status int, pattern string, args ...string) {
	c.t.Helper()
	out, err := c.command(who, args...).CombinedOutput()
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got, err = exit.ExitCode(), nil
	}
	if err != nil || got != status || !regexp.MustCompile("(?m)"+pattern).Match(out) {
		c.t.Errorf("uid %d: vmrun %s: %v, exit status %d, want %d and %q in:\n%s", who.Uid, strings.Join(args, " "), err, got, status, pattern, out)
	}
}

// A guest's group, by the program as it is installed.
func TestMembers(t *testing.T) {
	c := newClub(t)
	for _, part := range []struct {
		name string
		run  func(*club, *testing.T)
	}{
		{"verbs", (*club).testVerbs},
		{"without a supervisor", (*club).testUnsupervised},
		{"sockets know their peers", (*club).testPeers},
		{"modes of files", (*club).testModes},
		{"wrong groups", (*club).testWrong},
	} {
		t.Run(part.name, func(t *testing.T) {
			of := *c.bench
			of.t = t
			part.run(&club{&of, c.vmrun, c.gid}, t)
		})
	}
}

// What the members of a guest's group can do with it, and nobody else.
func (c *club) testVerbs(t *testing.T) {
	g := c.shared("ours", nic("bridge"))
	own := c.spec("roots", "", nic("bridge"))
	c.mustStart(g, order{Paused: true})
	c.mustStart(own, order{Paused: true})
	primary := &syscall.Credential{Uid: 4244, Gid: uint32(c.gid)}

	const denied, sudo = "permission denied$", "^vmrun: this needs root: sudo vmrun "
	for _, who := range []*syscall.Credential{primary, c.member()} {
		c.types(who, 0, `\ANAME .*\nours +paused .*\n\z`, "ps")
		c.types(who, 0, "^state +paused$", "status", "ours")
		c.types(who, 0, "^net0 +lab0 +bridge", "nic", "ours")
		c.types(who, 0, "^ours +net0", "stats")
		c.types(who, 0, "net0 .* ours", "tree", "--interval=0")
		c.types(who, 3, "no address of it is known yet", "ip", "ours")
		c.types(who, 0, `guest is up`, "logs", "ours")
		c.types(who, 0, "", "logs", "--qemu", "ours")
		c.types(who, 0, "", "logs", "--console", "ours")
		c.types(who, 0, `"status": "prelaunch"`, "qmp", "ours", "query-status")
		c.types(who, 0, "^ours: running$", "resume", "ours")
		c.types(who, 0, "^ours: paused$", "pause", "ours")
		c.types(who, 0, "^ours: reset$", "reset", "ours")
		c.types(who, 4, "it is paused: vmrun resume ours$", "wait", "--timeout=100ms", "ours")
		c.types(who, 3, "^vmrun: ours is paused already", "start", "ours")
	}
	member := c.member()
	for _, args := range [][]string{
		{"nic", "ours", "attach", "parent=lab0"}, {"nic", "ours", "set", "net0", "trust=all"}, {"nic", "ours", "detach", "net0"},
		{"qmp", "ours", "screendump", `{"filename": "/tmp/x"}`}, {"qmp", "ours", "qom-get", `{"path": "/", "property": "type"}`},
		{"qmp", "ours", "block_set_io_throttle"}, {"qmp", "ours", "quit"},
	} {
		c.types(member, 1, "^vmrun: ours: only root may do that.*"+denied, args...)
	}
	for _, args := range [][]string{{"restart", g.Name}, {"nsenter", "ours", "--", "true"}, {"cleanup"}} {
		out, err := c.command(member, args...).CombinedOutput()
		if err == nil || !regexp.MustCompile("(?m)"+sudo).Match(out) {
			t.Errorf("a member's vmrun %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	for _, args := range [][]string{{"status"}, {"stop"}, {"kill"}, {"pause"}, {"logs"}, {"console"}, {"events", "--follow"}, {"wait"}, {"nic"}, {"ip"}, {"stats"}} {
		c.types(member, 1, denied+"(.|\n)*"+sudo, append(args, "roots")...)
		c.types(c.stranger(), 1, denied+"(.|\n)*"+sudo, append(args, "ours")...)
	}
	c.types(c.stranger(), 1, denied, "ps")
	for _, file := range []string{fileMonitor, fileSerial, fileAgent, fileStderr} {
		if out, err := c.as(member, "test", "-r", guestDir(c.base, "ours").path(file)).CombinedOutput(); err == nil {
			t.Errorf("a member can read %s %s", file, out)
		}
	}

	events, console := c.follow(member, fileControl, "events", "--follow", "ours"), c.follow(member, fileConsole, "console", "ours")
	c.types(member, 0, "^ours: running$", "resume", "ours")
	c.types(member, 0, "^ours: stopped", "kill", "ours")
	if said := events(); !strings.Contains(said, " RESUME\n") || !strings.Contains(said, "ours has ended") {
		t.Errorf("events told a member %q", said)
	}
	if said := console(); !strings.Contains(said, "ours has ended") {
		t.Errorf("the console told a member %q", said)
	}
	c.types(member, 0, "^ours +ended", "ps", "--all")
	c.types(member, 0, "guest has ended", "logs", "ours")
	c.types(member, 1, "supervisor.log: "+denied, "start", g.Path)
}

// as has somebody run another program than vmrun.
func (c *club) as(who *syscall.Credential, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(c.within(10*time.Second), name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	return cmd
}

// follow starts a command that goes on until its guest ends, and returns what
// waits for it and says what it printed.
func (c *club) follow(who *syscall.Credential, socket string, args ...string) func() string {
	c.t.Helper()
	cmd := c.command(who, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	stdin, err := cmd.StdinPipe() // stays open
	c.must(err)
	c.must(cmd.Start())
	dir := guestDir(c.base, args[len(args)-1])
	c.eventually(10*time.Second, args[0]+" connects", func() string {
		list, err := os.ReadFile("/proc/net/unix") // the listener is in the lab's
		c.must(err)
		if !strings.Contains(string(list), dir.path(socket)) {
			return "not yet"
		}
		return ""
	})
	time.Sleep(200 * time.Millisecond) // until it is let in
	return func() string {
		if err := cmd.Wait(); err != nil {
			c.t.Errorf("vmrun %s: %v", strings.Join(args, " "), err)
		}
		stdin.Close()
		return out.String()
	}
}

// A member's guest without a supervisor is shown, and left to root.
func (c *club) testUnsupervised(t *testing.T) {
	g := c.shared("ours")
	c.mustStart(g, order{Paused: true})
	c.killSupervisor(g.Name)
	member := c.member()
	before := c.state(g)
	c.types(member, 0, "^ours +paused", "ps")
	c.types(member, 0, "^supervisor +none", "status", "ours")
	c.types(member, 1, "only root can adopt it: permission denied$", "stop", "ours")
	c.types(member, 1, "only root can: permission denied$", "kill", "ours")
	c.types(member, 3, "it runs without a supervisor", "pause", "ours")
	if diff := cmp.Diff(before, c.state(g)); diff != "" {
		t.Errorf("a member has changed the state file (-before +after):\n%s", diff)
	}
	c.mustStart(g, order{})
	c.types(member, 0, "^ours: running$", "resume", "ours")
	c.types(member, 0, "^ours: stopped", "kill", "ours")
	c.types(member, 3, "it has ended already$", "kill", "ours")
	c.types(member, 3, "no such guest$", "kill", "nobodys")
}

func (c *club) state(g *configs.Guest) string {
	c.t.Helper()
	text, err := os.ReadFile(guestDir(c.base, g.Name).path(fileState))
	c.must(err)
	return string(text)
}

// What the kernel says of who is there counts, whatever modes the files have.
func (c *club) testPeers(t *testing.T) {
	ours, roots := c.shared("ours"), c.spec("alone", "")
	c.mustStart(ours, order{Paused: true})
	c.mustStart(roots, order{Paused: true})
	for _, g := range []*configs.Guest{ours, roots} {
		dir := guestDir(c.base, g.Name)
		for _, file := range []string{"", fileControl, fileConsole} {
			c.must(os.Chmod(dir.path(file), 0o777))
		}
	}
	users, err := guestUsers()
	c.must(err)
	guest := &syscall.Credential{Uid: uint32(users.first), Gid: uint32(users.first), Groups: []uint32{uint32(c.gid)}}
	const control = `VmrunDenied.*uid %d is neither root nor in this guest's group \(gid %d\)`
	for _, tt := range []struct {
		name  string
		who   *syscall.Credential
		guest string
		want  string
	}{
		{"a stranger", c.stranger(), "ours", fmt.Sprintf(control, 4243, c.gid)},
		{"a guest's QEMU that got into the group", guest, "ours", fmt.Sprintf(control, users.first, c.gid)},
		{"a member, of another guest", c.member(), "alone", "VmrunDenied.*root's alone, and not for uid 4242"},
		{"a member", c.member(), "ours", `^\{"QMP"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := guestDir(c.base, tt.guest)
			if said := c.hears(tt.who, dir.path(fileControl)); !regexp.MustCompile(tt.want).MatchString(said) {
				t.Errorf("control.sock said %q, want %q", said, tt.want)
			}
			said := c.hears(tt.who, dir.path(fileConsole))
			if refused := strings.HasPrefix(said, "[vmrun: VmrunDenied: "); refused != !strings.HasPrefix(tt.want, "^") {
				t.Errorf("console.sock said %q", said)
			}
		})
	}
	c.types(c.stranger(), 1, "^vmrun: ours: uid 4243 is neither root", "pause", "ours")
}

func init() { children["listener"] = listenForTest }

// listenForTest connects to the socket that standard input is, and prints its
// first words.
func listenForTest() error {
	conn, err := net.Dial("unix", os.Getenv(orderEnv))
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Now().Add(500 * time.Millisecond)) // a console may have nothing to say
	words := make([]byte, 4096)
	n, err := conn.Read(words)
	os.Stdout.Write(words[:n])
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// hears is what somebody hears first on a socket.
func (c *club) hears(who *syscall.Credential, socket string) string {
	c.t.Helper()
	self, err := os.Open("/proc/self/exe") // which is in a directory of root's
	c.must(err)
	defer self.Close()
	cmd := c.as(who, "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Env = append(os.Environ(), childEnv+"=listener", orderEnv+"="+socket)
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Errorf("listen to %s: %v: %s", socket, err, out)
	}
	return string(out)
}

// modesBelow lists what is below a directory, with modes and groups.
func modesBelow(t *testing.T, dir string) map[string]string {
	t.Helper()
	modes := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		name, _ := filepath.Rel(dir, path)
		modes[name] = fmt.Sprintf("%v %d:%d", info.Mode(), st.Uid, st.Gid)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return modes
}

// All that a guest has on disk is root's alone, but for what its group is to have.
func (c *club) testModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // which is the starter's, and the supervisor has its own
	roots := func(mode string) string { return mode + " 0:0" }
	ours := func(mode string) string { return fmt.Sprintf("%s 0:%d", mode, c.gid) }
	closed := map[string]string{
		".": roots("drwx------"), fileLock: roots("-rw-------"), fileState: roots("-rw-------"),
		fileControl: roots("Srw-------"), fileConsole: roots("Srw-------"), fileMonitor: roots("Srw-------"),
		fileSerial: roots("Srw-------"), fileAgent: roots("Srw-------"), fileStderr: roots("prw-------"),
		fileConsoleLog: roots("-rw-------"), fileQEMULog: roots("-rw-------"), fileSupervisorLog: roots("-rw-------"),
	}
	open := map[string]string{
		".": ours("drwxr-x---"), fileLock: ours("-rw-r-----"), fileState: ours("-rw-r-----"),
		fileControl: ours("Srw-rw----"), fileConsole: ours("Srw-rw----"), fileMonitor: roots("Srw-------"),
		fileSerial: roots("Srw-------"), fileAgent: roots("Srw-------"), fileStderr: roots("prw-------"),
		fileConsoleLog: ours("-rw-r-----"), fileQEMULog: ours("-rw-r-----"), fileSupervisorLog: ours("-rw-r-----"),
	}
	check := func(what string, g *configs.Guest, want map[string]string) {
		t.Helper()
		if diff := cmp.Diff(want, modesBelow(t, string(guestDir(c.base, g.Name)))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	disk := filepath.Join(c.specs, "new.qcow2")
	g := c.spec("mine", "", fmt.Sprintf("[[disk]]\npath = %q\nsize = \"1MiB\"", disk))
	c.mustStart(g, order{Paused: true})
	check("without a group", g, closed)
	info, err := os.Stat(disk)
	c.must(err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the disk that was made has mode %v", info.Mode())
	}
	kept, _ := filepath.Glob("/run/vmrun.*")
	for _, path := range kept {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	c.kill(g.Name)

	text, err := os.ReadFile(g.Path)
	c.must(err)
	c.rewrite(g, fmt.Sprintf("group = %q", lent))
	c.mustStart(mustLoad(t, g.Path), order{Paused: true})
	check("with a group", g, open)
	c.killSupervisor(g.Name)
	c.mustStart(mustLoad(t, g.Path), order{})
	check("adopted", g, open)
	c.kill(g.Name)
	c.must(os.WriteFile(g.Path, text, 0o600))
	c.mustStart(mustLoad(t, g.Path), order{Paused: true})
	check("with none any more", g, closed)
}

// The next part of a log is for those who could read the one before.
func TestRotationKeepsReaders(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "log")
	r, err := openRotating(path, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := errors.Join(os.Chown(path, -1, 4242), os.Chmod(path, 0o640)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Write(make([]byte, 2500)); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"log", "log" + olderPart} {
		if got := modesBelow(t, filepath.Dir(path))[part]; got != "-rw-r----- 0:4242" {
			t.Errorf("%s: %s", part, got)
		}
	}
}

// A group that cannot be is a wrong spec, and nothing is created.
func (c *club) testWrong(t *testing.T) {
	for _, tt := range []struct{ group, want string }{
		{"no-such-group", `wrong\.toml:1: group: the host has no group no-such-group: groupadd --system no-such-group`},
		{"root", `wrong\.toml:1: group: root is root's own: leave the key out`},
	} {
		g := c.spec("wrong", "")
		c.rewrite(g, fmt.Sprintf("group = %q", tt.group))
		for _, args := range [][]string{{"start", g.Path}, {"plan", g.Path}} {
			c.types(&syscall.Credential{}, 2, tt.want, args...)
		}
		if _, err := os.Stat(string(guestDir(c.base, "wrong"))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("there is a run directory, %v", err)
		}
	}
}

// Who may be a client, and of what, as a table.
func TestAdmits(t *testing.T) {
	needRoot(t)
	closed, open := runDir(filepath.Join(t.TempDir(), "closed")), runDir(filepath.Join(t.TempDir(), "open"))
	for _, d := range []runDir{closed, open} {
		if err := d.make(); err != nil {
			t.Fatal(err)
		}
	}
	if err := open.admit(4300); err != nil {
		t.Fatal(err)
	}
	users, err := guestUsers()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name         string
		peer         qmp.Peer
		closed, open bool
	}{
		{"root", qmp.Peer{UID: 0, GID: 5}, true, true},
		{"unknown", qmp.Peer{PID: -1, UID: -1, GID: -1}, false, false},
		{"nobody's member", qmp.Peer{UID: 7, GID: 0, Groups: []int{0, 1, 2}}, false, false},
		{"primary member", qmp.Peer{UID: 7, GID: 4300}, false, true},
		{"supplementary member", qmp.Peer{UID: 7, GID: 7, Groups: []int{8, 4300}}, false, true},
		{"a guest", qmp.Peer{UID: users.first + users.count - 1, GID: 4300}, false, false},
	} {
		if got := closed.admits(tt.peer) == nil; got != tt.closed {
			t.Errorf("%s, to a closed directory: %t", tt.name, got)
		}
		if got := open.admits(tt.peer) == nil; got != tt.open {
			t.Errorf("%s, to a group's directory: %t", tt.name, got)
		}
	}
	serve := guarded(func(context.Context, qmp.Request) (any, error) { return nil, nil })
	for command := range passedOn {
		_, err := serve(t.Context(), qmp.Request{Command: command, Peer: qmp.Peer{UID: 0}})
		if err != nil {
			t.Errorf("root may not run %s: %v", command, err)
		}
	}
	for _, command := range memberCommands {
		if _, ok := passOnLimit(command); !ok && !strings.HasPrefix(command, "vmrun-") {
			t.Errorf("members may run %s, which is not passed on", command)
		}
	}
}
