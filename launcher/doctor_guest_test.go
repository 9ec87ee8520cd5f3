package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// ward is a lab with a guest whose CPUs are halted, which falls ill in one way
// after the other.
type ward struct {
	*bench
	g    *configs.Guest
	qemu Report
	dir  string // of its images
}

// painsOfAGuest are those of a guest that runs. Each leaves the guest to the next.
func painsOfAGuest(t *testing.T) []pain {
	w := &ward{bench: newBench(t), dir: t.TempDir()}
	w.lab.AddNIC("lab1", nettest.NIC{})
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(w.dir, "base.qcow2"), "16M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.g = w.spec("sick", "", w.disk("sick.qcow2"), "[[nic]]\nparent = \"lab1\"\nmode = \"bridge\"")
	w.qemu = w.mustStart(w.g, order{Paused: true})
	return []pain{
		{21, "a second client hangs on QEMU's monitor", "second-client", Warn, w.secondClient},
		{11, "clones of one image", "cloned-guest", Note, func(t *testing.T) []Finding {
			return w.look(t, Subject{Spec: w.spec("twin", "", w.disk("twin.qcow2"))})
		}},
		{15, "somebody else has the disk's lock", "disk-locked", Bad, func(t *testing.T) []Finding {
			return w.look(t, Subject{Spec: w.spec("thief", "", w.disk("sick.qcow2"))})
		}},
		{4, "the MAC is a guest's that no record tells of", "mac-in-use", Bad, w.stranger},
		{9, "nobody answers what the guest sends", "no-answers", Warn, w.unanswered},
		{25, "overload drops frames", "rx-drops", Warn, w.overload},
		{20, "the guest's link is lost", "no-carrier", Warn, w.unplugged},
		{17, "the kernel kills for want of memory", "out-of-memory", Warn, w.outOfMemory},
		{0, "the supervisor is gone", "no-supervisor", Warn, func(t *testing.T) []Finding {
			w.killSupervisor(w.g.Name)
			return w.look(t, Subject{Guest: w.g.Name})
		}},
		{0, "the parent's MTU was lowered and raised", "mtu-drift", Warn, w.drift},
		{10, "the child has another MAC than the guest", "mac-mismatch", Warn, w.mismatch},
		{19, "the parent was made anew", "child-gone", Bad, w.orphaned},
		{14, "a record says that the guest runs", "stale-record", Warn, func(t *testing.T) []Finding {
			w.signalQEMU(w.qemu, syscall.SIGKILL)
			w.waitState(w.g, StateEnded, 5*time.Second)
			return w.look(t)
		}},
		{16, "the disk is full and the guest paused", "disk-error", Bad, w.noSpace},
	}
}

// disk is the lines of an overlay in the ward's directory.
func (w *ward) disk(name string) string {
	return fmt.Sprintf("[[disk]]\npath = %q\nbase = %q", filepath.Join(w.dir, name), filepath.Join(w.dir, "base.qcow2"))
}

// look diagnoses on the lab's host.
func (w *ward) look(t *testing.T, subjects ...Subject) []Finding {
	t.Helper()
	var found []Finding
	if err := w.lab.Host.Do(func() error {
		found = Diagnose(t.Context(), w.base, subjects...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, found)
	return found
}

func (w *ward) examine(t *testing.T) []Finding {
	t.Helper()
	return w.look(t, Subject{Guest: w.g.Name})
}

// inside runs fn in the guest's network namespace.
func (w *ward) inside(t *testing.T, fn func() error) {
	t.Helper()
	ns, err := netsetup.NamespaceOf(w.qemu.Status.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

func (w *ward) mac(t *testing.T) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(w.qemu.Status.NICs[0].MAC)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

func (w *ward) secondClient(t *testing.T) []Finding {
	var conn net.Conn
	if err := w.lab.Host.Do(func() (err error) {
		conn, err = net.Dial("unix", guestDir(w.base, w.g.Name).path(fileMonitor))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return w.examine(t)
}

// stranger looks for the guest's MAC from where its record cannot be seen.
func (w *ward) stranger(t *testing.T) []Finding {
	g := w.spec("stranger", "", fmt.Sprintf("[[nic]]\nparent = \"lab1\"\nmode = \"bridge\"\nmac = %q", w.mac(t)))
	var found []Finding
	if err := w.lab.Host.Do(func() error {
		found = Diagnose(t.Context(), t.TempDir(), Subject{Spec: g})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

func (w *ward) unanswered(t *testing.T) []Finding {
	everybody := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	w.inside(t, func() error {
		for range 2 * enoughSent {
			if err := wire.Send("net0", wire.Tagged(everybody, w.mac(t), "hello")); err != nil {
				return err
			}
		}
		return nil
	})
	return w.examine(t)
}

// overload sends more frames than the ring of a guest that takes none has room
// for. What waits there counts against its sender, hence several of them.
func (w *ward) overload(t *testing.T) []Finding {
	frame := wire.Tagged(w.mac(t), w.lab.Outside.MAC, "flood")
	if err := w.lab.Outside.Do(func() error {
		link, err := net.InterfaceByName("wire-lab1")
		for sender := 0; err == nil && sender < 6; sender++ {
			err = sendMany(link.Index, frame, 100)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return w.examine(t)
}

// sendMany sends a frame many times, and fails where it would have to wait.
func sendMany(link int, frame []byte, count int) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for range count {
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link}); err != nil {
			return err
		}
	}
	return nil
}

func (w *ward) unplugged(t *testing.T) []Finding {
	w.lab.SetCarrier("lab1", false)
	defer w.lab.SetCarrier("lab1", true)
	return w.examine(t)
}

func (w *ward) drift(t *testing.T) []Finding {
	if err := w.lab.Host.Do(func() error {
		link, err := netlink.LinkByName("lab1")
		return errors.Join(err, netlink.LinkSetMTU(link, 1400), netlink.LinkSetMTU(link, 1500))
	}); err != nil {
		t.Fatal(err)
	}
	return w.examine(t)
}

func (w *ward) mismatch(t *testing.T) []Finding {
	w.inside(t, func() error {
		link, err := netlink.LinkByName("net0")
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(link, net.HardwareAddr{2, 0, 0, 0, 0x66, 6})
	})
	return w.examine(t)
}

func (w *ward) orphaned(t *testing.T) []Finding {
	w.lab.RemoveNIC("lab1")
	w.lab.AddNIC("lab1", nettest.NIC{})
	defer w.lab.RemoveNIC("lab1")
	return w.examine(t)
}

// outOfMemory puts QEMU into a control group in which the kernel had to kill.
func (w *ward) outOfMemory(t *testing.T) []Finding {
	group, limit := memoryGroup(t)
	if err := os.WriteFile(filepath.Join(group, limit), []byte("16777216"), 0); err != nil {
		t.Fatal(err)
	}
	procs := filepath.Join(group, "cgroup.procs")
	hog := exec.CommandContext(w.within(20*time.Second), "sh", "-c", "echo $$ > "+procs+"; exec tail /dev/zero")
	if out, err := hog.CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the hog was to be killed: %v: %s", err, out)
	}
	own := ownMemoryGroup()
	err := errors.Join(os.WriteFile(filepath.Join(group, limit), []byte("1073741824"), 0),
		os.WriteFile(procs, fmt.Append(nil, w.qemu.Status.PID), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), fmt.Append(nil, w.qemu.Status.PID), 0); err != nil {
			t.Error(err)
		}
	}()
	return w.examine(t)
}

// ownMemoryGroup is the directory of this process's control group in the
// hierarchy that has the memory controller.
func ownMemoryGroup() string { return memoryOf(os.Getpid()).path }

// memoryGroup makes a control group beside the test's own and names the file
// that limits its memory.
func memoryGroup(t *testing.T) (dir, limit string) {
	t.Helper()
	own := ownMemoryGroup()
	dir, err := os.MkdirTemp(filepath.Dir(own), "vmrun-test-")
	if err != nil {
		t.Skipf("needs control groups that can be made: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	for _, limit := range []string{"memory.max", "memory.limit_in_bytes"} {
		if _, err := os.Stat(filepath.Join(dir, limit)); err == nil {
			return dir, limit
		}
	}
	t.Skip("needs the memory controller: it is not delegated to where the test runs")
	return "", ""
}

// noSpace boots a guest whose disk lies on a file system without a free page,
// and has it write.
func (w *ward) noSpace(t *testing.T) []Finding {
	dir := t.TempDir()
	image := filepath.Join(dir, "full.raw")
	g := w.spec("full", "", fmt.Sprintf("[[disk]]\npath = %q", image))
	w.startElsewhere(t, g, `mount -t tmpfs -o size=1m tmpfs "$1"; truncate -s 8M "$1/full.raw"; ! head -c 2M /dev/zero >"$1/filler" 2>&1`, dir)
	c := w.console(g)
	if _, err := c.WaitReady(w.within(60 * time.Second)); err != nil {
		t.Fatalf("%v\n%s", err, c.Transcript())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	written := make(chan error, 1)
	go func() {
		_, _, err := c.Run(ctx, "writedisk vda 4096 "+strings.Repeat("ff", 512))
		written <- err
	}()
	w.waitState(g, StatePaused, 10*time.Second)
	found := w.look(t, Subject{Guest: g.Name})
	cancel()
	if err := <-written; err == nil {
		t.Error("the write ended all the same")
	}
	w.kill(g.Name)
	return found
}

// startElsewhere starts a guest whose supervisor has a mount namespace of its
// own, with what a script mounts below $1.
func (w *ward) startElsewhere(t *testing.T, g *configs.Guest, script, dir string) {
	t.Helper()
	text, err := json.Marshal(order{Base: w.base})
	if err != nil {
		t.Fatal(err)
	}
	s := Supervisor{
		Path: "unshare",
		Args: []string{"--mount", "sh", "-euc", script + `; shift; exec "$@"`, "sh", dir, os.Args[0]},
		Env:  append(os.Environ(), childEnv+"=supervisor", orderEnv+"="+string(text)),
	}
	if err := w.lab.Host.Do(func() error {
		_, err := Start(w.within(30*time.Second), g, w.base, s)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
