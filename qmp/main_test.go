package qmp

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what must end; nothing here is expected to take as long.
const patience = 60 * time.Second

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// lack skips a test for want of something, or fails it where everything must
// be there.
func lack(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// qemu is a real one, with nothing in it.
type qemu struct {
	path   string // of the monitor
	second string // of another monitor
	cmd    *exec.Cmd
}

func startQEMU(t testing.TB) *qemu {
	t.Helper()
	bin, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		lack(t, "no qemu-system-x86_64: apt-get install qemu-system-x86")
	}
	dir := t.TempDir()
	q := &qemu{path: filepath.Join(dir, "monitor"), second: filepath.Join(dir, "second")}
	q.cmd = exec.Command(bin, "-name", "lab", "-machine", "none", "-accel", "tcg", "-S",
		"-display", "none", "-nodefaults",
		"-chardev", "socket,id=m1,fd=3,server=on,wait=off", "-mon", "chardev=m1,mode=control",
		"-chardev", "socket,id=m2,fd=4,server=on,wait=off", "-mon", "chardev=m2,mode=control")
	for _, path := range []string{q.path, q.second} {
		file := listenFile(t, path)
		defer file.Close()
		q.cmd.ExtraFiles = append(q.cmd.ExtraFiles, file)
	}
	q.cmd.Stderr = os.Stderr
	if err := q.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = q.cmd.Process.Kill()
		_ = q.cmd.Wait()
	})
	return q
}

// listenFile returns a listening unix socket for another process.
func listenFile(t testing.TB, path string) *os.File {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func (q *qemu) dial(t testing.TB) *Client {
	t.Helper()
	c, err := Dial(testContext(t), q.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// socketPair returns two ends of a unix stream.
func socketPair(t testing.TB) (near, far *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pair")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	far, err = l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}
