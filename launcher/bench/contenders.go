package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"vmrun/launcher/guesttest"
)

// contender is one way to start guests and to end them.
type contender struct {
	name       string
	guests     []guest
	start, end func(guest) error
	console    func(guest) string          // the path of a socket
	pid        func(guest) (int, error)    // QEMU's
	child      func(guest) (string, error) // its link in the kernel, as ip shows it

	consoles [2]*guesttest.Console // of the guests, once they have booted
}

// guest is known by its number on the lab's network.
type guest int

func (g guest) name() string     { return fmt.Sprintf("bench%d", g) }
func (g guest) address4() string { return fmt.Sprintf("192.0.2.%d", g) }
func (g guest) address6() string { return fmt.Sprintf("2001:db8::%d", g) }

// cmdline is the guest's kernel's, which sets its addresses.
func (g guest) cmdline() string {
	return fmt.Sprintf("%s vmrun.addr=eth0:%s/24,%s/64", guesttest.Cmdline, g.address4(), g.address6())
}

// newContenders are vmrun, the control if it is wanted, and last what all are held
// against.
func (l *lab) newContenders(control bool) ([]*contender, error) {
	list := []*contender{l.vmrun(11, 12)}
	if control {
		list = append(list, l.hand("control", 31, 32))
	}
	list = append(list, l.hand("by hand", 21, 22))
	for _, c := range list {
		for _, g := range c.guests {
			if err := l.writeFiles(g); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// writeFiles makes a guest's spec for vmrun, and its directory for the others.
func (l *lab) writeFiles(g guest) error {
	spec := fmt.Sprintf("memory = \"192MiB\"\naccel = \"tcg\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n[[nic]]\nparent = \"lab0\"\n",
		l.files.Kernel, l.files.Initrd, g.cmdline())
	return errors.Join(
		os.WriteFile(l.path(g.name()+".toml"), []byte(spec), 0o600),
		os.Mkdir(l.path(g.name()), 0o700))
}

// vmrun starts a guest as its users do.
func (l *lab) vmrun(guests ...guest) *contender {
	run := func(words ...string) (string, error) {
		return l.inside([]string{"VMRUN_RUN_DIR=" + l.path("run")}, l.path("vmrun"), words...)
	}
	return &contender{
		name:    "vmrun",
		guests:  guests,
		start:   func(g guest) error { _, err := run("start", l.path(g.name()+".toml")); return err },
		end:     func(g guest) error { _, err := run("kill", g.name()); return err },
		console: func(g guest) string { return l.path("run", g.name(), "console.sock") },
		pid: func(g guest) (int, error) {
			var status struct{ PID int }
			text, err := run("status", "--json", g.name())
			if err == nil {
				err = json.Unmarshal([]byte(text), &status)
			}
			return status.PID, err
		},
		child: func(g guest) (string, error) {
			return run("nsenter", g.name(), "--", "ip", "-d", "-o", "link", "show", "dev", "net0")
		},
	}
}

// byHand is what one types without a launcher: a child, its tap, and QEMU with
// the same hardware. It returns when QEMU has gone to the background, which is
// when the guest runs. The child is as good as it gets: it hears multicast, and
// the host's IPv6 keeps off it.
const byHand = `set -e
ip link add link lab0 name "$NAME" type macvtap mode bridge
ip link set "$NAME" addrgenmode none allmulticast on up
read major minor <<END
$(tr : ' ' < $(echo /sys/class/net/"$NAME"/macvtap/tap*/dev))
END
mknod "$DIR/tap" c "$major" "$minor"
exec 3<>"$DIR/tap"
ports=$(for n in 0 1 2 3 4; do
  echo "-device pcie-root-port,id=port$n,chassis=$((n + 1)),slot=$n,bus=pcie.0,addr=0x1e.$n,multifunction=on"
done)
"$QEMU" -name "$NAME" -nodefaults -no-user-config -display none -machine q35 -accel tcg,thread=multi -cpu max \
  -smp 1 -m 192M -qmp unix:"$DIR/qmp",server=on,wait=off -serial unix:"$DIR/serial",server=on,wait=off \
  -device virtio-rng-pci -device pvpanic-pci \
  -chardev socket,id=agent,path="$DIR/agent",server=on,wait=off -device virtio-serial-pci \
  -device virtserialport,id=agent,chardev=agent,name=org.qemu.guest_agent.0 \
  -kernel "$KERNEL" -initrd "$INITRD" -append "$CMDLINE" $ports \
  -netdev tap,id=net0,fd=3 \
  -device virtio-net-pci,id=nic0,netdev=net0,mac=$(cat /sys/class/net/"$NAME"/address),bus=port0,romfile=,host_mtu=1500 \
  -pidfile "$DIR/pid" -daemonize
`

// byHandEnd ends it, and waits until it is gone.
const byHandEnd = `set -e
pid=$(cat "$DIR/pid")
kill -9 "$pid"
while kill -0 "$pid" 2>/dev/null && ! grep -q '^State:.Z' /proc/"$pid"/status; do sleep 0.001; done
ip link del "$NAME"
rm -f "$DIR/tap" "$DIR/pid" "$DIR/qmp" "$DIR/serial" "$DIR/agent"
`

func (l *lab) hand(name string, guests ...guest) *contender {
	script := func(text string) func(guest) error {
		return func(g guest) error {
			_, err := l.inside([]string{
				"NAME=" + g.name(), "DIR=" + l.path(g.name()), "QEMU=" + qemu,
				"KERNEL=" + l.files.Kernel, "INITRD=" + l.files.Initrd, "CMDLINE=" + g.cmdline(),
			}, "sh", "-c", text)
			return err
		}
	}
	return &contender{
		name:    name,
		guests:  guests,
		start:   script(byHand),
		end:     script(byHandEnd),
		console: func(g guest) string { return l.path(g.name(), "serial") },
		pid: func(g guest) (int, error) {
			text, err := os.ReadFile(l.path(g.name(), "pid"))
			if err != nil {
				return 0, err
			}
			return strconv.Atoi(strings.TrimSpace(string(text)))
		},
		child: func(g guest) (string, error) { return l.inside(nil, "ip", "-d", "-o", "link", "show", "dev", g.name()) },
	}
}
