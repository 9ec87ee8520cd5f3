package netsetup_test

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.M{M: m}.Run()) }

func namespaceID(t testing.TB, ns *netsetup.Namespace) uint64 {
	t.Helper()
	id, err := ns.ID()
	must(t, err)
	return id
}

func TestNamespacesAreApart(t *testing.T) {
	a, b := newNamespace(t), newNamespace(t)
	own, err := netsetup.CurrentNamespace()
	must(t, err)
	defer own.Close()
	ids := []uint64{namespaceID(t, a), namespaceID(t, b), namespaceID(t, own)}
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 3 {
		t.Errorf("not three namespaces: %v", ids)
	}
	if got := linkIn(t, a, "lo").Attrs().Index; got != 1 {
		t.Errorf("lo has index %d", got)
	}
}

func TestNamespaceOf(t *testing.T) {
	ns := newNamespace(t)
	cmd := exec.Command("sleep", "60")
	must(t, ns.Do(cmd.Start))
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	found, err := netsetup.NamespaceOf(cmd.Process.Pid)
	must(t, err)
	defer found.Close()
	if got, want := namespaceID(t, found), namespaceID(t, ns); got != want {
		t.Errorf("namespace %d, want %d", got, want)
	}
	if _, err := netsetup.NamespaceOf(1 << 22); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no process: %v", err)
	}
}

func TestDo(t *testing.T) {
	ns := newNamespace(t)
	want := errors.New("this one")
	if err := ns.Do(func() error { return want }); err != want {
		t.Errorf("%v, want %v", err, want)
	}
	inner, outer := newNamespace(t), uint64(0)
	must(t, ns.Do(func() error { // nested
		err := inner.Do(func() error { return nil })
		own, openErr := netsetup.CurrentNamespace()
		if openErr == nil {
			outer = namespaceID(t, own)
			own.Close()
		}
		return errors.Join(err, openErr)
	}))
	if outer != namespaceID(t, ns) {
		t.Error("a Do inside another changed the outer one's namespace")
	}
	must(t, ns.Close())
	if err := ns.Do(func() error { return nil }); err == nil {
		t.Error("Do works in a namespace that was closed")
	}
}

func TestCloseNamespace(t *testing.T) {
	ns := newNamespace(t)
	must(t, ns.Close())
	must(t, ns.Close())
	must(t, (*netsetup.Namespace)(nil).Close())
	if _, err := ns.ID(); err == nil {
		t.Error("a closed namespace has an id")
	}
}

// A MAC is free again soon after the last handle on its child's namespace,
// whatever that handle is. The launcher retries for a second.
func TestNamespaceEndsWithItsLastHandle(t *testing.T) {
	for _, tt := range []struct {
		name string
		hold func(t *testing.T, ns *netsetup.Namespace, c netsetup.Child) (release func())
	}{
		{"the handle itself", func(*testing.T, *netsetup.Namespace, netsetup.Child) func() { return func() {} }},
		{"a tap", func(t *testing.T, ns *netsetup.Namespace, c netsetup.Child) func() {
			taps, err := ns.OpenTaps(c)
			must(t, err)
			return func() { taps[0].Close() }
		}},
		{"a socket", func(t *testing.T, ns *netsetup.Namespace, _ netsetup.Child) func() {
			fd := -1
			must(t, ns.Do(func() (err error) {
				fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
				return err
			}))
			return func() { unix.Close(fd) }
		}},
		{"a process that is killed", func(t *testing.T, ns *netsetup.Namespace, _ netsetup.Child) func() {
			cmd := exec.Command("sleep", "60")
			must(t, ns.Do(cmd.Start))
			return func() {
				cmd.Process.Kill()
				cmd.Wait()
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := nettest.New(t)
			before := lab.Snapshot(t)
			ns, next := newNamespace(t), newNamespace(t)
			c := testChild(configs.ModeBridge, 1)
			must(t, create(t, lab, ns, c))
			must(t, ns.Up(c))
			release := tt.hold(t, ns, c)
			must(t, ns.Close())
			if tt.name != "the handle itself" {
				time.Sleep(100 * time.Millisecond)
				if err := comesUp(t, lab, next, c); !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("the MAC is free while %s holds the namespace: %v", tt.name, err)
				}
			}
			release()
			start, tries := time.Now(), 0
			for ; ; tries++ {
				err := comesUp(t, lab, next, c)
				if err == nil {
					break
				}
				if !errors.Is(err, unix.EADDRINUSE) || time.Since(start) > time.Second {
					t.Fatalf("after %v: %v", time.Since(start), err)
				}
				time.Sleep(time.Millisecond)
			}
			t.Logf("the MAC was free after %v, %d refusals", time.Since(start).Round(time.Millisecond), tries)
			must(t, next.Delete(c))
			must(t, next.Close())
			before.Check(t)
		})
	}
}

// comesUp makes the child and sets it up, or takes it away again.
func comesUp(t *testing.T, lab *nettest.Lab, ns *netsetup.Namespace, c netsetup.Child) error {
	t.Helper()
	if err := create(t, lab, ns, c); err != nil {
		return err
	}
	err := ns.Up(c)
	if err != nil {
		must(t, ns.Delete(c))
	}
	return err
}
