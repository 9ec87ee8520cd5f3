package launcher

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/qmp"
)

func TestDiskOf(t *testing.T) {
	g := &configs.Guest{Disks: []configs.Disk{{Path: "/a"}, {Path: "/b"}}}
	for node, want := range map[string]string{
		"disk0": "/a", "disk1": "/b", "disk2": `QEMU's block node "disk2"`, "disk1-file": `QEMU's block node "disk1-file"`, "": `QEMU's block node ""`,
	} {
		if got := diskOf(g, node); got != want {
			t.Errorf("%s: %s, want %s", node, got, want)
		}
	}
}

// Whatever the record says, QEMU knows better, and nobody goes on whom an owner
// has paused.
func TestFound(t *testing.T) {
	running := situation{Ran: true}
	for _, tt := range []struct {
		name     string
		recorded situation
		run      qmp.Status
		stalled  string
		want     situation
	}{
		{"as it was", running, qmp.Status{Running: true, Status: "running"}, "", running},
		{"resumed meanwhile", situation{Ran: true, Paused: true, Stalled: "/a", Held: true}, qmp.Status{Running: true, Status: "running"}, "", running},
		{"first run meanwhile", situation{Paused: true}, qmp.Status{Running: true, Status: "running"}, "", running},
		{"stalled meanwhile", running, qmp.Status{Status: "io-error"}, "/a", situation{Ran: true, Paused: true, Stalled: "/a"}},
		{"stalled and held", situation{Ran: true, Paused: true, Stalled: "/b", Held: true}, qmp.Status{Status: "io-error"}, "/a",
			situation{Ran: true, Paused: true, Stalled: "/a", Held: true}},
		{"another error", situation{Ran: true, Paused: true, Stalled: "/a"}, qmp.Status{Status: "io-error"}, "", situation{Ran: true, Paused: true}},
		{"paused meanwhile", situation{Ran: true, Paused: true, Stalled: "/a"}, qmp.Status{Status: "paused"}, "", situation{Ran: true, Paused: true, Held: true}},
		{"never ran", situation{Paused: true}, qmp.Status{Status: "prelaunch"}, "", situation{Paused: true}},
		{"reset while stalled", situation{Ran: true, Paused: true, Stalled: "/a"}, qmp.Status{Status: "prelaunch"}, "",
			situation{Ran: true, Paused: true, Stalled: "/a"}},
		{"stopping", situation{Ran: true, Asked: true, Rung: RungPowerdown, Presses: 2}, qmp.Status{Running: true, Status: "running"}, "",
			situation{Ran: true, Asked: true, Rung: RungPowerdown, Presses: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.recorded.found(tt.run, tt.stalled)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFreeSpace(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "removed.qcow2")} {
		if free, err := freeSpace(path); err != nil || free == 0 {
			t.Errorf("%s: %d, %v", path, free, err)
		}
	}
	for _, path := range []string{"", `QEMU's block node "x"`, filepath.Join(dir, "no/directory")} {
		if free, err := freeSpace(path); err == nil {
			t.Errorf("%s has %d bytes", path, free)
		}
	}
}

// tmpfs mounts a file system of its own, with this many bytes, until the test ends.
func tmpfs(t testing.TB, size int) string {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("/tmp", "vmrun-") // short: it may be a run directory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := unix.Mount("vmrun-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func resize(t testing.TB, dir string, size int) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
}

const (
	writerSize  = 4 << 20 // bytes of its disk
	writerChunk = 32 << 10
	writerFirst = 1 << 20 // where on its disk it begins to write
)

// writer is a guest as small as can be: a boot sector that fills its disk from
// 1 MiB on with copies of itself, 32 KiB each, of which each holds its own place
// in a long number at byte 66. It says D on the serial line when it is done, and
// E when it could not write. In GNU as:
//
//	      xor %ax,%ax; mov %ax,%ds; mov %ax,%es; mov %ax,%ss; mov $0x7c00,%sp
//	      mov %dl,drive              # from the firmware
//	next: mov drive,%dl; mov $0x4300,%ax; mov $dap,%si; int $0x13; mov $'E',%al; jc say
//	      addl $64,dap+8; cmpl $8192,dap+8; jb next; mov $'D',%al
//	say:  mov $0x3f8,%dx; out %al,%dx
//	stop: hlt; jmp stop
//	drive: .byte 0
//	dap:  .byte 16,0; .word 64,0x7c00,0; .quad 2048
func writer() []byte {
	const code = "\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0\xbc\x00\x7c\x88\x16\x39\x7c\x8a\x16\x39\x7c\xb8\x00\x43\xbe\x3a\x7c\xcd\x13\xb0\x45\x72\x13\x66" +
		"\x83\x06\x42\x7c\x40\x66\x81\x3e\x42\x7c\x00\x20\x00\x00\x72\xdf\xb0\x44\xba\xf8\x03\xee\xf4\xeb\xfd\x00\x10\x00\x40\x00\x00\x7c" +
		"\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00"
	sector := make([]byte, 512)
	copy(sector, code)
	copy(sector[510:], "\x55\xaa")
	return sector
}

// staller is a guest that is about to fill a small file system with its disk.
type staller struct {
	*configs.Guest
	fs     string // its own
	image  string
	format string
	events *qmp.Subscription
}

// staller starts a writer, with its CPUs halted, on a file system of 1 MiB.
func (b *bench) staller(name, bus, format string, lines ...string) *staller {
	b.t.Helper()
	s := &staller{fs: tmpfs(b.t, 1<<20), format: format}
	s.image = filepath.Join(s.fs, "disk."+format)
	raw := filepath.Join(b.specs, name+".raw")
	b.must(os.WriteFile(raw, writer(), 0o600))
	b.must(os.Truncate(raw, writerSize))
	qemuImg(b.t, "convert", "-f", "raw", "-O", format, raw, s.image)
	spec := filepath.Join(b.specs, name+".toml")
	b.must(os.WriteFile(spec, fmt.Appendf(nil, "memory = \"64MiB\"\naccel = \"tcg\"\n[[disk]]\npath = %q\nformat = %q\nbus = %q\n%s\n",
		s.image, format, bus, strings.Join(lines, "\n")), 0o600))
	s.Guest = mustLoad(b.t, spec)
	b.mustStart(s.Guest, order{Paused: true})
	s.events = b.control(name).Subscribe()
	return s
}

func (s *staller) why() string { return "no space left for " + s.image }

// names drains the events that came so far.
func (s *staller) names() []string {
	var names []string
	for {
		select {
		case ev, ok := <-s.events.Events():
			if !ok {
				return names
			}
			if text, ok := ev.Data["text"].(string); ok {
				names = append(names, text)
			}
			names = append(names, ev.Event)
		default:
			return names
		}
	}
}

// check looks for all that the guest has written in its image.
func (s *staller) check(t *testing.T) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	qemuImg(t, "convert", "-f", s.format, "-O", "raw", s.image, raw)
	data, err := os.ReadFile(raw)
	if err != nil || len(data) != writerSize {
		t.Fatalf("%s: %d bytes, %v", s.Name, len(data), err)
	}
	for at := writerFirst; at < writerSize; at += writerChunk {
		want := writer()
		binary.LittleEndian.PutUint32(want[66:], uint32(at/512))
		if got := data[at : at+64]; !bytes.Equal(got[:57], want[:57]) || binary.LittleEndian.Uint32(data[at+66:]) != uint32(at/512) {
			t.Errorf("%s: at %d there is % x", s.Name, at, got)
			return
		}
	}
}

// TestNoSpace has guests on every bus and in both formats run out of space, and
// look on what becomes of them: one goes on when there is space, one does so
// though its supervisor was killed, one waits for its owner, who has paused it as
// well, and one is stopped.
func TestNoSpace(t *testing.T) {
	b := newBench(t)
	const quit = "[stop]\ntimeout = \"0s\"" // which has QEMU write all that it holds back
	plain := b.staller("plain", "virtio", "raw", quit)
	orphan := b.staller("orphan", "scsi", "qcow2", quit)
	held := b.staller("held", "ide", "raw", quit)
	stopped := b.staller("stopped", "virtio", "qcow2")
	all := []*staller{plain, orphan, held, stopped}
	for _, s := range all {
		b.must(b.control(s.Name).Cont(b.within(5 * time.Second)))
	}
	for _, s := range all {
		status := b.waitState(s.Guest, StatePaused, 20*time.Second)
		b.eventually(5*time.Second, s.Name+" says why", func() string {
			if status = b.observe(s.Guest); status.Why != s.why() {
				return status.Why
			}
			return ""
		})
		names := s.names()
		if !slices.Contains(names, s.why()) {
			t.Errorf("%s: events %q, none says %q", s.Name, names, s.why())
		}
	}

	// Nothing happens while there is no more space than there was.
	b.must(b.control(held.Name).Stop(b.within(5 * time.Second)))
	for _, s := range []*staller{orphan, held} {
		b.killSupervisor(s.Name)
		if status := b.observe(s.Guest); status.State != StatePaused || status.Why != s.why() || status.Supervisor != 0 {
			t.Errorf("without a supervisor: %+v", status)
		}
		report := b.mustStart(s.Guest, order{})
		if status := report.Status; !report.Adopted || status.State != StatePaused || status.Why != s.why() {
			t.Errorf("adopted: %+v", report)
		}
		s.events = b.control(s.Name).Subscribe()
	}
	ladder := make(chan string, 1) // it waits for the guest to hear its power button first
	go func() {
		o, err := Stop(b.within(30*time.Second), b.base, stopped.Name)
		ladder <- fmt.Sprintf("%s %v", o, err)
	}()
	time.Sleep(2 * roomEvery)
	for _, s := range []*staller{plain, orphan, held} {
		if names := s.names(); slices.Contains(names, "RESUME") {
			t.Errorf("%s was resumed without space: %q", s.Name, names)
		}
	}

	for _, s := range []*staller{plain, orphan, held} {
		resize(t, s.fs, 2*writerSize)
	}
	for _, s := range []*staller{plain, orphan} {
		b.waitDone(s)
	}
	time.Sleep(2 * roomEvery)
	if s := b.observe(held.Guest); s.State != StatePaused {
		t.Errorf("a guest that its owner has paused is %s", s.State)
	}
	b.must(b.control(held.Name).Cont(b.within(5 * time.Second)))
	b.waitDone(held)
	if got, want := <-ladder, "stopped (quit) <nil>"; got != want {
		t.Errorf("the stop of a stalled guest: %s, want %s", got, want)
	}

	time.Sleep(calm)
	for _, s := range []*staller{plain, orphan, held} {
		if status := b.observe(s.Guest); status.State != StateRunning || status.Why != "" {
			t.Errorf("%s is %s: %s", s.Name, status.State, status.Why)
		}
		b.stop(s.Guest, RungQuit)
		s.check(t)
		log, err := os.ReadFile(guestDir(b.base, s.Name).path(fileSupervisorLog))
		b.must(err)
		lives := 2 // of its supervisors
		if s == plain {
			lives = 1
		}
		if stalls, ends := strings.Count(string(log), "no space left"), strings.Count(string(log), "there is space again"); stalls != lives || ends != 1 {
			t.Errorf("%s's log speaks of %d stalls and %d ends of one, want %d and 1:\n%s", s.Name, stalls, ends, lives, log)
		}
	}
	b.clean("no space")
}

// waitDone waits until a writer says that it has written everything.
func (b *bench) waitDone(s *staller) {
	b.t.Helper()
	b.eventually(20*time.Second, s.Name+" is done", func() string {
		log, err := os.ReadFile(guestDir(b.base, s.Name).path(fileConsoleLog))
		if err != nil || !bytes.HasSuffix(log, []byte("D")) {
			return fmt.Sprintf("%q %v", last(string(log), 20), err)
		}
		return ""
	})
}

// TestNoSpaceInUse has a Linux guest wait for space twice: for a write that it
// gets done in the end, and when it is told to power down.
func TestNoSpaceInUse(t *testing.T) {
	b := newBench(t)
	fs := tmpfs(t, 1<<20)
	image := filepath.Join(fs, "data.qcow2")
	g := b.spec("writer", "", fmt.Sprintf("[[disk]]\npath = %q\nsize = \"8MiB\"", image), "[stop]", `timeout = "60s"`)
	console := b.boot(g)[0]
	fill := func() {
		t.Helper()
		var st unix.Statfs_t
		b.must(unix.Statfs(fs, &st))
		b.must(os.WriteFile(filepath.Join(fs, "junk"), make([]byte, st.Bavail*uint64(st.Bsize)), 0o600))
	}
	fill()
	replies := make(chan string, 1)
	write := func(at int) {
		go func() {
			reply, _, err := console.Run(b.within(30*time.Second), fmt.Sprintf("writedisk vda %d c0ffee", at))
			replies <- fmt.Sprint(reply, " ", err)
		}()
		b.waitState(g, StatePaused, 10*time.Second)
	}
	write(4 << 20)
	if s := b.observe(g); !strings.HasSuffix(s.Why, image) {
		t.Errorf("paused because %q", s.Why)
	}
	b.must(os.Remove(filepath.Join(fs, "junk")))
	if reply := <-replies; reply != "bytes=3 <nil>" {
		t.Errorf("a write that had to wait: %s", reply)
	}
	if got := b.say(console, "readdisk vda %d 3", 4<<20); got != "c0ffee" {
		t.Errorf("read back: %s", got)
	}

	fill()
	write(6 << 20)
	time.AfterFunc(time.Second, func() { os.Remove(filepath.Join(fs, "junk")) })
	b.stop(g, RungPowerdown)
	b.clean("stop")
}
