package netsetup_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
)

// guest is a namespace with a child that is up.
type guest struct {
	ns    *netsetup.Namespace
	child netsetup.Child
	tag   string // in the frame that is sent to it
}

// twins makes two guests on two NICs whose children have the same index.
func twins(t *testing.T) (lab *nettest.Lab, guests [2]*guest) {
	lab = nettest.New(t)
	lab.AddNIC("lab1", nettest.NIC{})
	for i := range guests {
		g := &guest{ns: newNamespace(t), child: testChild(configs.ModeBridge, i+1), tag: fmt.Sprintf("for guest %d", i)}
		g.child.Index = testIndex + 100
		g.child.Parent = fmt.Sprintf("lab%d", i)
		must(t, g.ns.Quiet())
		must(t, create(t, lab, g.ns, g.child))
		must(t, g.ns.Up(g.child))
		guests[i] = g
	}
	return lab, guests
}

// readTagged reads frames from a tap until one carries a guest's tag, and
// returns the tag.
func readTagged(t *testing.T, tap *os.File, tags ...string) string {
	t.Helper()
	buf := make([]byte, 2048)
	must(t, tap.SetReadDeadline(time.Now().Add(2*time.Second)))
	for {
		n, err := tap.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return "nothing"
		}
		must(t, err)
		for _, tag := range tags {
			if bytes.Contains(buf[:n], []byte(tag)) {
				return tag
			}
		}
	}
}

// whose sends each guest its own frame from across the wire, and returns which
// of them comes out of the tap.
func whose(t *testing.T, lab *nettest.Lab, tap *os.File, guests [2]*guest) string {
	t.Helper()
	for i, wireEnd := range []string{"wire0", "wire-lab1"} {
		g := guests[i]
		must(t, lab.Outside.Send(wireEnd, wire.Tagged(g.child.MAC, lab.Outside.MAC, g.tag)))
	}
	return readTagged(t, tap, guests[0].tag, guests[1].tag)
}

func TestTapIsItsOwnNamespaces(t *testing.T) {
	lab, guests := twins(t)
	for i, g := range guests {
		tap := openTaps(t, g.ns, g.child)[0]
		if got := whose(t, lab, tap, guests); got != g.tag {
			t.Errorf("guest %d's tap has the frame %q, want %q", i, got, g.tag)
		}
	}
}

// The same with the name instead: one of the two guests gets the other's tap.
// This is why OpenTaps does not use it.
func TestTapByNameIsSomebodyElses(t *testing.T) {
	lab, guests := twins(t)
	right := 0
	for i, g := range guests {
		var tap *os.File
		err := g.ns.Do(func() (err error) {
			tap, err = os.OpenFile(fmt.Sprintf("/dev/tap%d", g.child.Index), os.O_RDWR|unix.O_NONBLOCK, 0)
			return err
		})
		if err != nil {
			t.Logf("guest %d: not to be had by name at all: %v", i, err)
			continue
		}
		got := whose(t, lab, tap, guests)
		t.Logf("guest %d opened /dev/tap%d and got the frame %q", i, g.child.Index, got)
		if got == g.tag {
			right++
		}
		tap.Close()
	}
	if right == len(guests) {
		t.Error("both guests got their own tap by name: the detour of OpenTaps is no longer needed")
	}
}

// Each open adds a queue of its own, and they do not block.
func TestQueues(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	c := testChild(configs.ModeBridge, 1)
	c.Queues = 4
	must(t, create(t, lab, ns, c))
	must(t, ns.Up(c))
	seen := map[uintptr]bool{}
	for i, tap := range openTaps(t, ns, c) {
		conn, err := tap.SyscallConn()
		must(t, err)
		must(t, conn.Control(func(fd uintptr) {
			seen[fd] = true
			flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
			if err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("queue %d blocks: flags %#x, %v", i, flags, err)
			}
			if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("queue %d goes to every program that is started: %v", i, err)
			}
			ifr, err := unix.NewIfreq("")
			must(t, err)
			if err := unix.IoctlIfreq(int(fd), unix.TUNGETIFF, ifr); err != nil || ifr.Name() != "net0" {
				t.Errorf("queue %d is of %q, %v", i, ifr.Name(), err)
			}
		}))
	}
	if len(seen) != c.Queues {
		t.Errorf("%d descriptors for %d queues", len(seen), c.Queues)
	}
}

// A failed open leaves neither descriptors nor nodes.
func TestOpenTapsLeavesNothing(t *testing.T) {
	lab := nettest.New(t)
	ns := newNamespace(t)
	c := testChild(configs.ModeBridge, 1)
	must(t, create(t, lab, ns, c))
	before := descriptors(t)
	wrong := c
	wrong.Index++
	for range 10 {
		if _, err := ns.OpenTaps(wrong); err == nil {
			t.Fatal("opened the tap of a link that is another")
		}
	}
	if after := descriptors(t); len(after) > len(before)+1 { // the poller's, perhaps
		t.Errorf("descriptors before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

func descriptors(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var list []string
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			list = append(list, e.Name()+" "+target)
		}
	}
	return list
}
