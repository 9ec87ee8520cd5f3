package qmp

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asUser runs fn on a thread of another user's, without capabilities, which is
// thrown away.
func asUser(t *testing.T, uid, gid int, groups []uint32, fn func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
			t.Fatal("not root, and VMRUN_TEST_REQUIRE=1")
		}
		t.Skip("needs root to be somebody else: run go test as root")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		list := append(groups, 0)
		_, _, e1 := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0])), 0)
		_, _, e2 := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
		_, _, e3 := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		if e1|e2|e3 == 0 {
			fn()
			done <- nil
			return
		}
		done <- errors.Join(e1, e2, e3)
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// openSocket lets everybody reach a socket.
func openSocket(t *testing.T, path string) {
	t.Helper()
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
}

func TestPeerOf(t *testing.T) {
	many := make([]uint32, 200)
	for i := range many {
		many[i] = uint32(5000 + i)
	}
	for _, tt := range []struct {
		name   string
		groups []uint32
	}{{"no groups", nil}, {"a few", []uint32{4300, 4301}}, {"more than there is room for", many}} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			openSocket(t, l.Addr().String())
			var conn net.Conn
			asUser(t, 4242, 4243, tt.groups, func() { conn, err = net.Dial("unix", l.Addr().String()) })
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			accepted, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer accepted.Close()
			p := PeerOf(accepted)
			if p.PID != os.Getpid() || p.UID != 4242 || p.GID != 4243 || len(p.Groups) != len(tt.groups) || p.Owns() {
				t.Errorf("%+v", p)
			}
			for _, gid := range append([]uint32{4243}, tt.groups...) {
				if !p.In(int(gid)) {
					t.Errorf("not in %d: %+v", gid, p)
				}
			}
			if p.In(4244) || p.In(-1) || p.In(0) {
				t.Errorf("in groups that it is not in: %+v", p)
			}
		})
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	if p := PeerOf(here); p.PID != -1 || p.Owns() || p.In(-1) || p.In(0) {
		t.Errorf("of no socket: %+v", p)
	}
}

// Who may not be a client is told so, and the owner always finds room.
func TestServerAdmits(t *testing.T) {
	admit := func(p Peer) error {
		if p.Owns() || p.In(4300) {
			return nil
		}
		return &Error{Class: "Denied", Desc: "not you"}
	}
	_, path := serve(t, echo, &ServerOptions{Admit: admit, MaxClients: 4})
	openSocket(t, path)
	asUser(t, 4242, 4242, []uint32{4301}, func() {
		var refused *Error
		if _, err := Dial(testContext(t), path); !errors.As(err, &refused) || refused.Class != "Denied" || refused.Desc != "not you" {
			t.Errorf("a stranger: %v", err)
		}
	})
	var members []*Client
	asUser(t, 4242, 4242, []uint32{4300}, func() {
		for range 2 {
			c, err := Dial(testContext(t), path)
			if err != nil {
				t.Errorf("a member: %v", err)
				return
			}
			members = append(members, c)
		}
		var refused *Error
		if _, err := Dial(testContext(t), path); !errors.As(err, &refused) || refused.Desc != "too many clients: the limit is 2" {
			t.Errorf("a third of theirs: %v", err)
		}
	})
	owner := dialPath(t, path)
	if err := owner.Execute(testContext(t), "x", nil, nil); err != nil {
		t.Error(err)
	}
	for _, c := range members {
		_ = c.Close()
	}
}
