package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"image"
	"image/png"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/guesttest"
)

// needFirmware skips the test where there is no UEFI, or fails it when
// VMRUN_TEST_REQUIRE is 1.
func needFirmware(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/usr/share/OVMF/OVMF_CODE_4M.fd"); err == nil {
		return
	}
	if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
		t.Fatal("needs UEFI: apt-get install ovmf")
	}
	t.Skip("needs UEFI: apt-get install ovmf")
}

// A guest that boots by UEFI has variables of its own, and a screen that is seen
// from the sockets, from a TCP port and in a picture, by several at once and after
// its supervisor was killed.
func TestUEFIAndScreen(t *testing.T) {
	needFirmware(t)
	h := newHost(t)
	files := guesttest.Image(t)
	before := h.lab.Snapshot(t, h.run, h.run+".state")
	start := time.Now()
	spec := fmt.Sprintf("memory = \"256MiB\"\naccel = \"tcg\"\nfirmware = \"uefi\"\ndisplay = \"vnc\"\nboot = { kernel = %q, initrd = %q, cmdline = %q }\n",
		files.Kernel, files.Initrd, "console=tty0 "+guesttest.Cmdline+" loglevel=7")
	console := h.boot("uefi1", spec)
	first := h.view("uefi1")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	words, err := console.WaitReady(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %v: %s", time.Since(start).Round(time.Millisecond), words)
	if !strings.Contains(console.Transcript(), "efi: EFI v2") {
		t.Error("the kernel does not know of UEFI")
	}
	vars := filepath.Join(h.run+".state", "uefi1", "uefi.vars")
	if info, err := os.Stat(vars); err != nil || info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("variables: %v, %v", info, err)
	}

	picture := h.picture("uefi1")
	if lit := litShare(picture); lit < 0.005 {
		t.Errorf("%v, of which %.2f %% are not black", picture.Bounds(), 100*lit)
	}
	h.vmrun(0, "", "sendkey", "uefi1", "ctrl-alt-f1", "ret")
	h.vmrun(1, `^vmrun: uefi1: .*'delet'`, "sendkey", "uefi1", "ctrl-alt-delet")
	socket := strings.TrimSpace(h.vmrun(0, `/uefi1/vnc\.sock$`, "vnc", "uefi1"))
	h.vmrun(0, `"socket": "`+socket+`"`, "vnc", "--json", "uefi1")
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	h.relayed("uefi1")

	h.killSupervisor("uefi1")
	h.vmrun(3, `it has no supervisor: vmrun start uefi1$`, "vnc", "uefi1")
	h.vmrun(0, `^uefi1: adopted, running`, "start", "uefi1")
	h.view("uefi1")
	first.stillSees()

	h.vmrun(0, `^uefi1: stopped`, "kill", "uefi1")
	h.vmrun(3, `it has ended: vmrun start uefi1$`, "vnc", "uefi1")
	first.hungUp()
	if err := os.Truncate(vars, 512); err != nil {
		t.Fatal(err)
	}
	h.vmrun(1, `firmware open: .* has 512 bytes, .*: rm `+regexp.QuoteMeta(vars)+`$`, "start", filepath.Join(h.specs, "uefi1.toml"))
	if diff := before.Wait(3 * time.Second); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// A guest without a screen has none to show.
func TestNoScreen(t *testing.T) {
	h := newHost(t)
	files := guesttest.Image(t)
	h.boot("blind1", fmt.Sprintf("memory = \"64MiB\"\naccel = \"tcg\"\nboot.kernel = %q\n", files.Kernel))
	h.vmrun(3, `it has no screen: display = "vnc" in its spec gives it one with its next start$`, "vnc", "blind1")
	h.vmrun(1, `^vmrun: blind1: the guest has no screen: display = "vnc"`, "screenshot", "blind1", filepath.Join(t.TempDir(), "x.png"))
	h.vmrun(0, `^blind1: stopped`, "kill", "blind1")
}

// picture takes a screenshot.
func (h *host) picture(name string) image.Image {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), "screen.png")
	h.vmrun(0, `\A\z`, "screenshot", name, path)
	data, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		h.t.Fatal(err)
	}
	return picture
}

// litShare is how much of a picture is not black.
func litShare(picture image.Image) float64 {
	lit, b := 0, picture.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			if r, g, b, _ := picture.At(x, y).RGBA(); r+g+b > 0 {
				lit++
			}
		}
	}
	return float64(lit) / float64(b.Dx()*b.Dy())
}

// viewer is a VNC client (RFC 6143).
type viewer struct {
	t    *testing.T
	conn net.Conn
}

// view looks at a guest's screen through its socket.
func (h *host) view(name string) *viewer {
	h.t.Helper()
	conn, err := net.DialTimeout("unix", launcher.DisplaySocket(h.run, name), 10*time.Second)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.greet(name, conn)
}

// greet does what a viewer does first, as one that leaves others theirs.
func (h *host) greet(name string, conn net.Conn) *viewer {
	h.t.Helper()
	h.t.Cleanup(func() { conn.Close() })
	v := &viewer{h.t, conn}
	if version := string(v.read(12)); version != "RFB 003.008\n" {
		h.t.Fatalf("version %q", version)
	}
	v.write([]byte("RFB 003.008\n"))
	if kinds := v.read(2); kinds[0] != 1 || kinds[1] != 1 {
		h.t.Fatalf("security types: %v, want none alone", kinds)
	}
	v.write([]byte{1})
	if result := v.read(4); binary.BigEndian.Uint32(result) != 0 {
		h.t.Fatalf("security result %v", result)
	}
	v.write([]byte{1}) // shared
	screen := v.read(24)
	title := string(v.read(int(binary.BigEndian.Uint32(screen[20:]))))
	if !strings.Contains(title, name) {
		h.t.Errorf("the screen is called %q", title)
	}
	return v
}

func (v *viewer) read(n int) []byte {
	v.t.Helper()
	data := make([]byte, n)
	v.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(v.conn, data); err != nil {
		v.t.Fatalf("VNC: %v", err)
	}
	return data
}

func (v *viewer) write(data []byte) {
	v.t.Helper()
	if _, err := v.conn.Write(data); err != nil {
		v.t.Fatalf("VNC: %v", err)
	}
}

// stillSees asks for the upper left corner, and wants an update (RFC 6143, 7.5.3).
func (v *viewer) stillSees() {
	v.t.Helper()
	v.write([]byte{3, 0, 0, 0, 0, 0, 0, 16, 0, 16})
	if kind := v.read(1); kind[0] != 0 {
		v.t.Errorf("message %d", kind[0])
	}
}

func (v *viewer) hungUp() {
	v.t.Helper()
	v.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, v.conn); err != nil {
		v.t.Errorf("the guest is gone, and its screen is not: %v", err)
	}
}

// relayed looks at the screen through a TCP port of the lab's host, until the
// command is interrupted.
func (h *host) relayed(name string) {
	h.t.Helper()
	h.vmrun(2, `others can reach "0\.0\.0\.0"`, "vnc", name, "--listen", "0.0.0.0:5901")
	h.vmrun(2, `write it as 127\.0\.0\.1:5901`, "vnc", name, "--listen", "5901")
	cmd := exec.Command(h.bin, "--run-dir", h.run, "vnc", name, "--listen", "127.0.0.1:5901")
	said, err := cmd.StderrPipe()
	if err == nil {
		err = h.lab.Host.Start(cmd)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	line := make([]byte, 200)
	n, _ := said.Read(line)
	if want := name + ": VNC on 127.0.0.1:5901"; !strings.Contains(string(line[:n]), want) {
		h.t.Errorf("%q, want %q", line[:n], want)
	}
	var conn net.Conn
	if err := h.lab.Host.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", "127.0.0.1:5901", 10*time.Second)
		return err
	}); err != nil {
		h.t.Fatal(err)
	}
	v := h.greet(name, conn)
	v.stillSees()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		h.t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		h.t.Errorf("interrupted: %v", err)
	}
	v.hungUp()
}
