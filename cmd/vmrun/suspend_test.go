package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/launcher"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup/nettest"
)

// A guest goes on from the disk as if nothing had been: on the same MACs, a hot
// plugged one among them, with its disk, its uptime and an open connection.
func TestSuspendResume(t *testing.T) {
	h := newHost(t)
	h.lab.AddNIC("lab1", nettest.NIC{})
	spec := h.diskSpec("lazarus", "qcow2")
	h.cleanup("lazarus")
	h.vmrun(0, `^lazarus: running: lab0 bridge `, "start", spec)
	console := h.console("lazarus")
	h.vmrun(0, `net1 attached`, "nic", "lazarus", "attach", "parent=lab1", "mac=02:00:00:00:00:51")
	h.say(console, "tcp serve 7")
	h.say(console, "writedisk vda 0 c0ffee")
	conn := h.connect("192.0.2.11:7")
	conn.echo("before")
	before := h.status("lazarus")

	h.vmrun(0, `^lazarus: suspended$`, "suspend", "lazarus")
	h.vmrun(0, `\A[^\n]*\n\z`, "ps")
	h.vmrun(0, `^lazarus +suspended +- +- +lab0 bridge `, "ps", "--all")
	h.vmrun(0, `^state +suspended at 20.*: vmrun resume lazarus lets it go on`, "status", "lazarus")
	h.vmrun(3, `it is suspended, and has ended: vmrun start --fresh lazarus`, "stop", "lazarus")
	h.vmrun(3, `it is suspended: vmrun resume lazarus$`, "pause", "lazarus")
	h.vmrun(0, `have QEMU take over the memory of 20`, "plan", spec)
	memory := filepath.Join(h.run+".state", "lazarus", "memory")
	if info, err := os.Stat(memory); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	h.vmrun(0, `^lazarus: cleaned up`, "cleanup") // as a boot would
	h.vmrun(0, `^lazarus +suspended`, "ps", "--all")

	wire := h.listenFor(before.NICs[0].MAC)
	began := time.Now()
	h.vmrun(0, `^lazarus: resumed, running: lab0 bridge .*, lab1 bridge 02:00:00:00:00:51$`, "resume", "lazarus")
	t.Logf("resumed in %v", time.Since(began).Round(time.Millisecond))
	if !wire.heard(5 * time.Second) {
		t.Error("nothing on the wire says where the guest is by now")
	}
	conn.echo("after")
	if _, err := os.Stat(memory); err == nil {
		t.Error("the memory outlives the guest's going on")
	}
	after := h.status("lazarus")
	if after.UUID != before.UUID || after.NICs[0].MAC != before.NICs[0].MAC || !after.Ready {
		t.Errorf("%+v, was %+v", after, before)
	}
	console = h.console("lazarus")
	if got := h.say(console, "readdisk vda 0 3"); got != "c0ffee" {
		t.Errorf("the disk holds %s", got)
	}
	h.vmrun(0, `net1 detached`, "nic", "lazarus", "detach", "net1")

	h.vmrun(0, `^lazarus: paused$`, "pause", "lazarus")
	h.vmrun(0, `^lazarus: suspended$`, "suspend", "lazarus")
	h.vmrun(0, `^lazarus: resumed, paused: lab0 bridge [^,]*$`, "start", spec) // as it was
	h.vmrun(0, `^lazarus: running$`, "resume", "lazarus")
	conn.echo("again")

	h.vmrun(0, `^lazarus: suspended$`, "suspend", "lazarus")
	if err := os.Chtimes(filepath.Join(filepath.Dir(spec), "disk.img"), time.Time{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	h.vmrun(2, `disk.img has changed since when lazarus was suspended, and its memory would spoil what is on it: vmrun start --fresh lazarus throws`, "resume", "lazarus")
	h.vmrun(0, `^lazarus +suspended`, "ps", "--all")
	h.vmrun(0, `--force overrides that.*\n^lazarus: resumed, running`, "resume", "--force", "lazarus")
	conn.echo("at last")
	h.vmrun(0, `^lazarus: suspended$`, "suspend", "lazarus")
	h.vmrun(0, `its memory was thrown away\n^lazarus: paused`, "start", "--fresh", "--paused", spec)
	h.vmrun(0, `^lazarus: stopped`, "kill", "lazarus")
	if left, _ := filepath.Glob(filepath.Join(h.run+".state", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// diskSpec writes the spec of a test guest with the address 192.0.2.11 and a disk.
func (h *host) diskSpec(name, format string) string {
	h.t.Helper()
	files := guesttest.Image(h.t)
	path := filepath.Join(h.t.TempDir(), name+".toml")
	text := fmt.Sprintf("memory = \"192MiB\"\naccel = \"tcg\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n[[disk]]\npath = \"disk.img\"\nformat = %q\nsize = \"64MiB\"\n[[nic]]\nparent = \"lab0\"\n",
		files.Kernel, files.Initrd, guesttest.Cmdline+" vmrun.addr=eth0:192.0.2.11/24", format)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// console is the guest's, when it has booted.
func (h *host) console(name string) *guesttest.Console {
	h.t.Helper()
	c, err := guesttest.Dial(h.t.Context(), launcher.ConsoleSocket(h.run, name))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	if _, err := c.WaitReady(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *host) say(c *guesttest.Console, command string) string {
	h.t.Helper()
	reply, _, err := c.Run(h.t.Context(), command)
	if err != nil {
		h.t.Fatal(err)
	}
	return reply
}

// connection is one from the wire to an echo server in a guest.
type connection struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func (h *host) connect(address string) *connection {
	h.t.Helper()
	c := &connection{t: h.t}
	err := h.lab.Outside.Do(func() (err error) {
		c.conn, err = net.DialTimeout("tcp", address, 10*time.Second)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.conn.Close() })
	c.in = bufio.NewReader(c.conn)
	return c
}

func (c *connection) echo(text string) {
	c.t.Helper()
	c.conn.SetDeadline(time.Now().Add(30 * time.Second))
	_, err := fmt.Fprintln(c.conn, text)
	var got string
	if err == nil {
		got, err = c.in.ReadString('\n')
	}
	if err != nil || got != text+"\n" {
		c.t.Fatalf("%q came back as %q, %v", text, got, err)
	}
}

// ear hears on the wire what comes from a MAC.
type ear struct {
	fd  int
	mac net.HardwareAddr
}

func (h *host) listenFor(mac string) *ear {
	h.t.Helper()
	e := &ear{}
	var err error
	if e.mac, err = net.ParseMAC(mac); err != nil {
		h.t.Fatal(err)
	}
	err = h.lab.Outside.Do(func() (err error) {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
		e.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { unix.Close(e.fd) })
	return e
}

// heard reports whether a broadcast came from it by which others learn where it is.
func (e *ear) heard(limit time.Duration) bool {
	frame := make([]byte, 2048)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(e.fd, frame, unix.MSG_DONTWAIT)
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		kind := int(frame[12])<<8 | int(frame[13])
		if n >= 14 && slices.Equal(frame[6:12], e.mac) && frame[0] == 0xff && (kind == unix.ETH_P_ARP || kind == unix.ETH_P_RARP) {
			return true
		}
	}
	return false
}
