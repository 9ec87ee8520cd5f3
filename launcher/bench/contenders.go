package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/launcher/guesttest"
	"vmrun/qmp"
)

// contender is one way to start guests and to end them. What it cannot do is nil.
type contender struct {
	name    string
	ordinal int // which of the lab's addresses are its guests'

	prepare func(guest) error // what need not be done at each start
	tidy    func(guest) error // takes back what of that the others would notice
	start   func(g guest, paused bool) error
	kill    func(guest) error
	stop    func(guest) error          // asks the guest to power off, and waits until it is gone
	console func(guest) string         // the path of a socket
	pid     func(guest) (int, error)   // QEMU's
	child   func(guest) string         // a command that shows its link in the kernel
	list    func() error               // all guests
	show    func(guest) error          // one guest
	others  func(all []guest) []int    // the processes that look after guests
	cleaned func(guest) (wait, error)  // to be asked while the guest lives
	syncs   bool                       // the child's filter follows the guest's
	booted  map[int]*guesttest.Console // the guests that have, by number
}

// wait waits until something has happened, or ctx ends.
type wait func(ctx context.Context) error

// errNone says that a contender does not do what is measured.
var errNone = errors.New("it does not do that")

// guest is known by its contender and its number there, from 1.
type guest struct{ ordinal, number int }

func (c *contender) guest(number int) guest { return guest{c.ordinal, number} }

func (c *contender) guests(n int) (list []guest) {
	for i := range n {
		list = append(list, c.guest(i+1))
	}
	return list
}

// The addresses are of the network for benchmarks (RFC 2544, appendix C.2.2), and of
// the one for documentation.
func (g guest) name() string     { return fmt.Sprintf("bench%d-%d", g.ordinal, g.number) }
func (g guest) address4() string { return fmt.Sprintf("198.18.%d.%d", g.ordinal, g.number) }
func (g guest) address6() string { return fmt.Sprintf("2001:db8::aa:%02x%02x", g.ordinal, g.number) }
func (g guest) mac() net.HardwareAddr {
	return net.HardwareAddr{2, 0, 0, 0, byte(g.ordinal), byte(g.number)}
}

// group is the end of the multicast group of address6 (RFC 4291, section 2.7.1),
// which nobody but the guest itself joins.
func (g guest) group() string { return string([]byte{0xff, 0xaa, byte(g.ordinal), byte(g.number)}) }

// cmdline is the guest's kernel's, which sets its addresses.
func (g guest) cmdline() string {
	return fmt.Sprintf("%s vmrun.addr=eth0:%s/15,%s/64", guesttest.Cmdline, g.address4(), g.address6())
}

// ready prepares a guest once.
func (l *lab) ready(c *contender, g guest) error {
	if l.prepared[g] {
		return nil
	}
	l.prepared[g] = true
	if err := os.MkdirAll(l.path(g.name()), 0o700); err != nil || c.prepare == nil {
		return err
	}
	return c.prepare(g)
}

// vmrun starts a guest as its users do.
func (l *lab) vmrun(ordinal int) *contender {
	env := []string{"VMRUN_RUN_DIR=" + l.path("run")}
	do := func(words ...string) error { _, err := output(env, l.path("vmrun"), words...); return err }
	spec := func(g guest) string { return l.path(g.name() + ".toml") }
	status := func(g guest) (s struct{ PID, Supervisor int }, err error) {
		text, err := output(env, l.path("vmrun"), "status", "--json", g.name())
		if err == nil {
			err = json.Unmarshal([]byte(text), &s)
		}
		return s, err
	}
	return &contender{
		name: "vmrun", ordinal: ordinal, syncs: true,
		prepare: func(g guest) error {
			return os.WriteFile(spec(g), fmt.Appendf(nil, "memory = \"192MiB\"\naccel = \"tcg\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n[[nic]]\nparent = \"lab0\"\nmac = %q\n",
				l.files.Kernel, l.files.Initrd, g.cmdline(), g.mac()), 0o600)
		},
		start: func(g guest, paused bool) error {
			if paused {
				return do("start", "--paused", spec(g))
			}
			return do("start", spec(g))
		},
		kill:    func(g guest) error { return do("kill", g.name()) },
		stop:    func(g guest) error { return do("stop", g.name()) },
		console: func(g guest) string { return l.path("run", g.name(), "console.sock") },
		pid:     func(g guest) (int, error) { s, err := status(g); return s.PID, err },
		child: func(g guest) string {
			return fmt.Sprintf("VMRUN_RUN_DIR=%s %s nsenter %s -- ip -d -o link show dev net0", l.path("run"), l.path("vmrun"), g.name())
		},
		list: func() error { return do("ps") },
		show: func(g guest) error { return do("status", g.name()) },
		others: func(all []guest) (pids []int) {
			for _, g := range all {
				if s, err := status(g); err == nil {
					pids = append(pids, s.Supervisor)
				}
			}
			return pids
		},
		cleaned: func(g guest) (wait, error) { // with the supervisor's end, which is its last deed
			s, err := status(g)
			if err != nil {
				return nil, err
			}
			fd, err := unix.PidfdOpen(s.Supervisor, 0)
			if err != nil {
				return nil, err
			}
			return func(ctx context.Context) error { defer unix.Close(fd); return ends(ctx, fd) }, nil
		},
	}
}

// ends waits until a process has ended (pidfd_open(2)).
func ends(ctx context.Context, pidfd int) error {
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 100)
		if err == nil && n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return ctx.Err()
}

// machine are QEMU's words for the guest's hardware, but for the netdev. The ports
// are where vmrun keeps room for NICs to come.
func (l *lab) machine(g guest) []string {
	argv := []string{"-name", g.name(), "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "192M",
		"-serial", "unix:" + l.path(g.name(), "serial") + ",server=on,wait=off",
		"-device", "virtio-rng-pci", "-device", "pvpanic-pci",
		"-chardev", "socket,id=agent,path=" + l.path(g.name(), "agent") + ",server=on,wait=off", "-device", "virtio-serial-pci",
		"-device", "virtserialport,id=agent,chardev=agent,name=org.qemu.guest_agent.0",
		"-kernel", l.files.Kernel, "-initrd", l.files.Initrd, "-append", g.cmdline()}
	for n := range 5 {
		argv = append(argv, "-device", fmt.Sprintf("pcie-root-port,id=port%d,chassis=%d,slot=%d,bus=pcie.0,addr=0x1e.%d,multifunction=on", n, n+1, n, n))
	}
	return append(argv,
		"-netdev", "tap,id=net0,fd=3",
		"-device", fmt.Sprintf("virtio-net-pci,id=nic0,netdev=net0,mac=%s,bus=port0,romfile=,host_mtu=1500", g.mac()),
		"-device", "virtio-balloon-pci,free-page-reporting=on,deflate-on-oom=on")
}

// The script is what one types without a launcher: a child, its tap, and QEMU with
// the same hardware. It returns when QEMU has gone to the background, which is
// when the guest runs. The child is as good as it gets: it hears multicast, and
// the host's IPv6 keeps off it.
const (
	byHandChild = `set -e
ip link add link lab0 name "$NAME" address "$MAC" type macvtap mode bridge
ip link set "$NAME" addrgenmode none allmulticast on up
read major minor <<END
$(tr : ' ' < $(echo /sys/class/net/"$NAME"/macvtap/tap*/dev))
END
mknod "$DIR/tap" c "$major" "$minor"
`
	byHand = byHandChild + `exec 3<>"$DIR/tap"
"$QEMU" "$@" -qmp unix:"$DIR/qmp",server=on,wait=off -pidfile "$DIR/pid" -daemonize
`
	byHandTidy = `ip link del "$NAME"; rm "$DIR/tap"`
	// Of a shell, only by looking again and again.
	byHandGone = `while kill -0 "$pid" 2>/dev/null && ! grep -q '^State:.Z' /proc/"$pid"/status; do sleep 0.001; done
ip link del "$NAME"
rm -f "$DIR/tap" "$DIR/pid" "$DIR/qmp" "$DIR/serial" "$DIR/agent"
`
	byHandKill = `set -e
pid=$(cat "$DIR/pid")
kill -9 "$pid"
` + byHandGone
)

// script runs a part of it for a guest.
func (l *lab) script(g guest, text string, args ...string) error {
	_, err := output([]string{"NAME=" + g.name(), "DIR=" + l.path(g.name()), "QEMU=" + qemu, "MAC=" + g.mac().String()},
		"sh", append([]string{"-c", text, "sh"}, args...)...)
	return err
}

func (l *lab) byHand(name string, ordinal int) *contender {
	return &contender{
		name: name, ordinal: ordinal,
		start: func(g guest, paused bool) error { return l.script(g, byHand, l.words(g, paused)...) },
		kill:  func(g guest) error { return l.script(g, byHandKill) },
		stop: func(g guest) error {
			pid, err := pidIn(l.path(g.name(), "pid"))
			if err != nil {
				return err
			}
			if err := l.powerdown(l.path(g.name(), "qmp")); err != nil {
				return err
			}
			return l.script(g, "pid="+strconv.Itoa(pid)+"\n"+byHandGone)
		},
		console: func(g guest) string { return l.path(g.name(), "serial") },
		pid:     func(g guest) (int, error) { return pidIn(l.path(g.name(), "pid")) },
		child:   func(g guest) string { return "ip -d -o link show dev " + g.name() },
		others:  func([]guest) []int { return nil },
	}
}

func (l *lab) words(g guest, paused bool) []string {
	words := l.machine(g)
	if paused {
		words = append(words, "-S")
	}
	return words
}

// powerdown presses a guest's power button.
func (l *lab) powerdown(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client, err := qmp.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Execute(ctx, "system_powerdown", nil, nil)
}

func pidIn(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// plain is QEMU alone, the floor under all: its child is there already and stays,
// nobody looks after it, and the bench itself starts it and hears its first answer.
func (l *lab) plain(ordinal int) *contender {
	running := map[guest]*exec.Cmd{}
	hand := l.byHand("", ordinal)
	return &contender{
		name: "QEMU alone", ordinal: ordinal,
		prepare: func(g guest) error { return l.script(g, byHandChild) },
		tidy:    func(g guest) error { return l.script(g, byHandTidy) },
		start: func(g guest, paused bool) error {
			cmd, err := l.exec(g, paused)
			if err == nil {
				running[g] = cmd
			}
			return err
		},
		kill: func(g guest) error {
			cmd := running[g]
			if cmd == nil {
				return nil
			}
			delete(running, g)
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // which says that it was killed
			return nil
		},
		console: hand.console,
		pid: func(g guest) (int, error) {
			if running[g] == nil {
				return 0, errors.New("it does not run")
			}
			return running[g].Process.Pid, nil
		},
		child:  hand.child,
		others: hand.others,
	}
}

// exec starts a guest's QEMU and waits until it has answered.
func (l *lab) exec(g guest, paused bool) (*exec.Cmd, error) {
	tap, err := os.OpenFile(l.path(g.name(), "tap"), os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer tap.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "monitor"), os.NewFile(uintptr(pair[1]), "monitor")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, err
	}
	_ = os.Remove(l.path(g.name(), "serial"))
	_ = os.Remove(l.path(g.name(), "agent"))
	cmd := exec.Command(qemu, append(l.words(g, paused), "-chardev", "socket,id=monitor,fd=4", "-mon", "chardev=monitor,mode=control")...)
	cmd.ExtraFiles = []*os.File{tap, theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	defer conn.Close()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if err = conn.SetDeadline(time.Now().Add(patience)); err == nil {
		err = greet(conn)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	return cmd, nil
}

// greet has QEMU accept commands, and hears its answer.
func greet(conn net.Conn) error {
	in := json.NewDecoder(conn)
	var words map[string]any
	if err := in.Decode(&words); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("{\"execute\":\"qmp_capabilities\"}\n")); err != nil {
		return err
	}
	return in.Decode(&words)
}

// childOf names the link below lab0 that has a guest's MAC.
func childOf(g guest) (string, error) {
	links, err := net.Interfaces()
	for _, link := range links {
		if link.HardwareAddr.String() == g.mac().String() {
			return link.Name, nil
		}
	}
	return "", err
}

// gone waits until files and links are no more, looking again and again.
func gone(ctx context.Context, there func() bool) error {
	for there() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(100 * time.Microsecond)
	}
	return nil
}

func exists(names ...string) bool {
	_, err := os.Stat(filepath.Join(names...))
	return err == nil
}
