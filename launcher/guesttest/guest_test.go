package guesttest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"vmrun/netsetup/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.M{M: m}.Run()) }

// machine is the guest under a plain QEMU.
type machine struct {
	*Console
	monitor *json.Decoder
	command *json.Encoder
	ended   <-chan error // of the process, which is reaped
}

// boot starts QEMU with the guest and waits until it is ready. It ends with the
// test.
func boot(t *testing.T, cmdline string, args ...string) *machine {
	t.Helper()
	return bootBy(t, (*exec.Cmd).Start, cmdline, args...)
}

// bootBy is boot with start to start QEMU.
func bootBy(t *testing.T, startQEMU func(*exec.Cmd) error, cmdline string, args ...string) *machine {
	t.Helper()
	files := Image(t)
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skipf("%v: apt-get install qemu-system-x86", err)
	}
	dir := t.TempDir()
	console, monitor := filepath.Join(dir, "console"), filepath.Join(dir, "monitor")
	cmd := exec.Command(qemu, append([]string{
		"-nodefaults", "-display", "none", "-machine", "q35", "-cpu", "max", "-accel", "tcg,thread=multi",
		"-m", "256", "-kernel", files.Kernel, "-initrd", files.Initrd,
		"-append", Cmdline + " " + cmdline, "-device", "pvpanic-pci",
		"-serial", "unix:" + console + ",server=on,wait=on",
		"-qmp", "unix:" + monitor + ",server=on,wait=off",
	}, args...)...)
	var stderr bytes.Buffer // read after the process has ended
	cmd.Stderr = &stderr
	start := time.Now()
	if err := startQEMU(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	reaped := make(chan struct{})
	go func() {
		ended <- cmd.Wait()
		close(reaped)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-reaped
		if t.Failed() {
			t.Logf("QEMU: %s", stderr.String())
		}
	})
	ctx := within30s(t)
	con, err := Dial(ctx, console)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		con.Close()
		if t.Failed() {
			t.Logf("console:\n%s", con.Transcript())
		}
	})
	m := &machine{Console: con, ended: ended}
	m.openMonitor(ctx, t, monitor)
	words, err := con.WaitReady(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %v: %s", time.Since(start).Round(time.Millisecond), words)
	return m
}

func within30s(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (m *machine) openMonitor(ctx context.Context, t *testing.T, path string) {
	t.Helper()
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			m.monitor, m.command = json.NewDecoder(bufio.NewReader(conn)), json.NewEncoder(conn)
			m.execute(t, "qmp_capabilities")
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (m *machine) execute(t *testing.T, command string) {
	t.Helper()
	m.executeWith(t, command, map[string]any{})
}

func (m *machine) executeWith(t *testing.T, command string, arguments map[string]any) {
	t.Helper()
	if err := m.command.Encode(map[string]any{"execute": command, "arguments": arguments}); err != nil {
		t.Fatal(err)
	}
}

// event reads the monitor until the event named, or fails at an error.
func (m *machine) event(t *testing.T, name string) {
	t.Helper()
	m.eventOf(t, name, "")
}

// eventOf is event with the device that the event has to be about.
func (m *machine) eventOf(t *testing.T, name, device string) {
	t.Helper()
	for {
		var msg struct {
			Event string
			Data  struct{ Device string }
			Error struct{ Desc string }
		}
		if err := m.monitor.Decode(&msg); err != nil {
			t.Fatalf("waiting for %s: %v", name, err)
		}
		if msg.Error.Desc != "" {
			t.Fatalf("waiting for %s: %s", name, msg.Error.Desc)
		}
		if msg.Event == name && msg.Data.Device == device {
			return
		}
	}
}

func (m *machine) run(t *testing.T, command string) (reply string, lines []string) {
	t.Helper()
	reply, lines, err := m.Run(within30s(t), command)
	if err != nil {
		t.Fatal(err)
	}
	return reply, lines
}

// runUntil repeats a command until its answer is as wanted.
func (m *machine) runUntil(t *testing.T, command, want string) {
	t.Helper()
	m.runUntilMatch(t, command, "^"+regexp.QuoteMeta(want)+"$")
}

// runUntilMatch repeats a command until its answer is like pattern, and returns
// the answer.
func (m *machine) runUntilMatch(t *testing.T, command, pattern string) (reply string) {
	t.Helper()
	like := regexp.MustCompile(pattern)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if reply, _ = m.run(t, command); like.MatchString(reply) {
			return reply
		}
	}
	t.Errorf("%s: %q, want %s", command, reply, pattern)
	return reply
}

func (m *machine) waitEnd(t *testing.T) {
	t.Helper()
	select {
	case err := <-m.ended:
		if err != nil {
			t.Errorf("QEMU: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("QEMU runs on")
	}
}

func TestGuestCommands(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	m := boot(t, "vmrun.addr=eth0:192.0.2.11/24,2001:db8::11/64",
		"-smp", "2",
		"-netdev", "hubport,id=n0,hubid=0", "-device", "virtio-net-pci,netdev=n0,id=nic0,mac=52:54:00:12:34:56,addr=5",
		"-device", "pcie-root-port,id=port1,chassis=1,slot=1,addr=6",
		"-netdev", "hubport,id=n1,hubid=0", "-device", "vmxnet3,netdev=n1,mac=52:54:00:12:34:57,addr=7",
		"-blockdev", "file,node-name=d0,filename="+disk, "-device", "virtio-blk-pci,drive=d0,serial=s1")

	t.Run("links", func(t *testing.T) {
		reply, lines := m.run(t, "links")
		if reply != "links=2" {
			t.Errorf("reply %q", reply)
		}
		all := strings.Join(lines, "\n")
		for _, want := range []string{
			"eth0 mac=52:54:00:12:34:56 mtu=1500 up=true carrier=true",
			"driver=virtio_net queues=1/1 pci=0000:00:05.0", "addresses=192.0.2.11/24,2001:db8::11/64",
			"eth1 mac=52:54:00:12:34:57", "driver=vmxnet3",
		} {
			if !strings.Contains(all, want) {
				t.Errorf("links lacks %q:\n%s", want, all)
			}
		}
	})
	t.Run("disk", func(t *testing.T) {
		if _, lines := m.run(t, "disks"); len(lines) != 1 || lines[0] != "vda size=1048576 readonly=0 serial=s1" {
			t.Errorf("disks: %q", lines)
		}
		m.run(t, "writedisk vda 4096 c0ffee")
		if reply, _ := m.run(t, "readdisk vda 4095 5"); reply != "00c0ffee00" {
			t.Errorf("read %q", reply)
		}
		if data, err := os.ReadFile(disk); err != nil || string(data[4096:4099]) != "\xc0\xff\xee" {
			t.Errorf("the image was not written: %v", err)
		}
	})
	t.Run("ping itself", func(t *testing.T) {
		for _, addr := range []string{"127.0.0.1", "192.0.2.11", "2001:db8::11"} {
			if reply, _ := m.run(t, "ping "+addr+" 2 0.01"); reply != "sent=2 received=2" {
				t.Errorf("ping %s: %s", addr, reply)
			}
		}
		if reply, _ := m.run(t, "ping 192.0.2.99 1 0.01 0.1"); reply != "sent=1 received=0" {
			t.Errorf("ping of nobody: %s", reply)
		}
	})
	t.Run("frames", func(t *testing.T) {
		m.run(t, "count eth1 start hello")
		m.run(t, "sendtag eth0 ff:ff:ff:ff:ff:ff hello")
		m.run(t, "sendtag eth0 52:54:00:12:34:57 hello 52:54:00:12:34:56 2")
		m.run(t, "send eth0 "+strings.Repeat("ff", 6)+"525400123456"+"88b5"+"68656c6c6f")
		m.runUntil(t, "count eth1 read hello", "unicast=2 broadcast=2 multicast=0 other=0 outgoing=0")
		m.run(t, "count eth1 stop hello")
	})
	t.Run("one link", func(t *testing.T) {
		for command, want := range map[string]string{
			"mtu eth0":        "1500",
			"queues eth0":     "rx=1 tx=1",
			"driver eth0":     "virtio_net",
			"pci eth0":        "0000:00:05.0",
			"carrier eth0":    "up",
			"addrs eth0":      "192.0.2.11/24,2001:db8::11/64,fe80::5054:ff:fe12:3456/64",
			"nics":            "eth0=52:54:00:12:34:56@0000:00:05.0 eth1=52:54:00:12:34:57@0000:00:07.0",
			"storm eth0 0":    "changes=0",
			"macstorm eth0 0": "changes=0",
			"neigh eth1":      "neighbours=0",
		} {
			m.runUntil(t, command, want)
		}
		m.run(t, "addr eth0 10.1.1.1/8")
		m.run(t, "addr del eth0 10.1.1.1/8")
		if reply, _ := m.run(t, "addrs eth0"); strings.Contains(reply, "10.1.1.1") {
			t.Errorf("addresses: %s", reply)
		}
		reply, _ := m.run(t, "offload eth0")
		if !regexp.MustCompile(`^rx-checksumming=(on|off) tx-checksumming=(on|off) sg=(on|off) tso=(on|off) gso=(on|off) gro=(on|off)$`).MatchString(reply) {
			t.Errorf("offload: %s", reply)
		}
		for plugged, want := range map[bool]string{false: "down", true: "up"} {
			m.executeWith(t, "set_link", map[string]any{"name": "nic0", "up": plugged})
			m.runUntil(t, "carrier eth0", want)
		}
		m.executeWith(t, "set_link", map[string]any{"name": "nic0", "up": true})
		m.runUntil(t, "carrier eth0", "up")
	})
	t.Run("flood", func(t *testing.T) {
		m.run(t, "count eth1 start flooded")
		frame := strings.Repeat("ff", 6) + "525400123456" + "88b5" + hex.EncodeToString([]byte("flooded")) + strings.Repeat("00", 40)
		reply, _ := m.run(t, "flood eth0 "+frame+" 10000")
		t.Log(reply)
		if !strings.HasPrefix(reply, "sent=10000 ") {
			t.Error(reply)
		}
		// What arrives is the receiver's business; most of it does.
		m.runUntilMatch(t, "count eth1 read flooded", `broadcast=[0-9]{4,5} `)
		m.run(t, "count eth1 stop flooded")
	})
	t.Run("storms", func(t *testing.T) {
		for _, command := range []string{"storm eth0 0.5", "macstorm eth0 0.5"} {
			reply, _ := m.run(t, command)
			t.Logf("%s: %s", command, reply)
			if !regexp.MustCompile(`^changes=[0-9]{2,}$`).MatchString(reply) {
				t.Errorf("%s: %s", command, reply)
			}
		}
		m.runUntilMatch(t, "nics", "^eth0=52:54:00:12:34:56@")
	})
	t.Run("hot plug", func(t *testing.T) { hotPlug(t, m) })
	t.Run("settings", func(t *testing.T) {
		for _, c := range []string{
			"mac eth0 52:54:00:12:34:60", "mtu eth0 1400", "promisc eth0 on", "promisc eth0 off",
			"allmulti eth0 on", "join ff02::fb eth0", "leave ff02::fb eth0", "join 224.0.0.251 eth0",
			"join 01:80:c2:00:00:0e eth0", "addr eth1 198.51.100.11/24", "route 203.0.113.0/24 eth1",
			"route default 192.0.2.1", "down eth1", "up eth1", "uptime", "hello",
		} {
			m.run(t, c)
		}
		if reply, _ := m.run(t, "cmdline"); !strings.Contains(reply, "vmrun.addr=eth0:") {
			t.Errorf("cmdline: %q", reply)
		}
	})
	t.Run("errors", func(t *testing.T) {
		for _, c := range []string{"nonsense", "ping", "ping x 1", "leave ff02::fb eth0", "count eth0 read x", "mac eth9 02:00:00:00:00:01"} {
			_, _, err := m.Run(within30s(t), c)
			var refused *GuestError
			if !errors.As(err, &refused) {
				t.Errorf("%s: %v; want the guest's refusal", c, err)
			}
		}
	})
	t.Run("a long command delays no other", func(t *testing.T) {
		slow := make(chan error, 1)
		go func() {
			_, _, err := m.Run(within30s(t), "ping 192.0.2.99 1 0.01 1")
			slow <- err
		}()
		time.Sleep(50 * time.Millisecond)
		m.run(t, "uptime")
		select {
		case <-slow:
			t.Error("the slow command was first")
		default:
		}
		if err := <-slow; err != nil {
			t.Error(err)
		}
	})
	t.Run("reboot", func(t *testing.T) {
		m.run(t, "reboot")
		if _, err := m.WaitReady(within30s(t)); err != nil {
			t.Fatal(err)
		}
		m.run(t, "uptime")
	})
	t.Run("power button", func(t *testing.T) {
		m.execute(t, "system_powerdown")
		if _, err := m.WaitFor(within30s(t), "power button"); err != nil {
			t.Error(err)
		}
		m.waitEnd(t)
	})
}

// hotPlug gives the guest a NIC and takes it away, twice.
func hotPlug(t *testing.T, m *machine) {
	for range 2 {
		start := time.Now()
		m.executeWith(t, "netdev_add", map[string]any{"type": "hubport", "id": "n2", "hubid": 0})
		m.executeWith(t, "device_add", map[string]any{
			"driver": "virtio-net-pci", "id": "nic2", "netdev": "n2", "bus": "port1", "mac": "52:54:00:12:34:58"})
		m.runUntilMatch(t, "nics", ` eth2=52:54:00:12:34:58@0000:01:00\.0$`)
		t.Logf("there after %v", time.Since(start).Round(time.Millisecond))
		m.run(t, "up eth2")
		m.run(t, "addr eth2 198.51.100.12/24")
		m.runUntil(t, "carrier eth2", "up")
		start = time.Now()
		m.executeWith(t, "device_del", map[string]any{"id": "nic2"})
		m.eventOf(t, "DEVICE_DELETED", "nic2")
		t.Logf("gone after %v", time.Since(start).Round(time.Millisecond))
		m.executeWith(t, "netdev_del", map[string]any{"id": "n2"})
		m.runUntilMatch(t, "nics", "^eth0=[^ ]* eth1=[^ ]*$")
	}
}

func TestGuestIgnoresPowerButton(t *testing.T) {
	m := boot(t, "vmrun.powerbutton=ignore")
	m.execute(t, "system_powerdown")
	rest, err := m.WaitFor(within30s(t), "power button")
	if err != nil || rest != "(ignored)" {
		t.Errorf("power button: %q, %v", rest, err)
	}
	m.run(t, "hang")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, _, err := m.Run(ctx, "uptime"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a guest that hangs answered: %v", err)
	}
}

func TestGuestCrash(t *testing.T) {
	m := boot(t, "", "-no-reboot")
	m.run(t, "crash")
	m.event(t, "GUEST_PANICKED")
	m.waitEnd(t)
}

func TestGuestPowerOff(t *testing.T) {
	m := boot(t, "")
	m.run(t, "poweroff")
	m.waitEnd(t)
}
