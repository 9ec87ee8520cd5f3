package main

import (
	"fmt"
	"os"

	"vmrun/launcher/guesttest"
)

// vmrun starts a guest as its users do.
func (l *lab) vmrun() contender {
	flags := []string{"--run-dir", l.path("run")}
	return contender{
		name:  "vmrun",
		start: func() error { return l.inside(l.path("vmrun"), append(flags, "start", l.path("bench.toml"))...) },
		end:   func() error { return l.inside(l.path("vmrun"), append(flags, "kill", "bench")...) },
	}
}

// byHand is what one types without a launcher: a child, its tap, and QEMU with
// the same hardware. It returns when QEMU has gone to the background, which is
// when the guest runs.
const byHand = `set -e
ip link add link lab0 name hand0 type macvtap mode bridge
ip link set hand0 up
read major minor <<END
$(tr : ' ' < $(echo /sys/class/net/hand0/macvtap/tap*/dev))
END
mknod "$DIR/tap" c "$major" "$minor"
exec 3<>"$DIR/tap"
%s -name hand -nodefaults -no-user-config -display none -machine q35 -accel tcg,thread=multi -cpu max \
  -smp 1 -m 192M -qmp unix:"$DIR/qmp",server=on,wait=off -serial unix:"$DIR/serial",server=on,wait=off \
  -device virtio-rng-pci -device pvpanic-pci -kernel "$KERNEL" -initrd "$INITRD" -append "$CMDLINE" \
  -netdev tap,id=net0,fd=3 -device virtio-net-pci,netdev=net0,mac=$(cat /sys/class/net/hand0/address),romfile= \
  -pidfile "$DIR/pid" -daemonize
`

// byHandEnd ends it, and waits until it is gone.
const byHandEnd = `set -e
pid=$(cat "$DIR/pid")
kill -9 "$pid"
while kill -0 "$pid" 2>/dev/null && ! grep -q '^State:.Z' /proc/"$pid"/status; do sleep 0.001; done
ip link del hand0
rm -f "$DIR/tap" "$DIR/pid" "$DIR/qmp" "$DIR/serial"
`

func (l *lab) script() contender {
	os.Setenv("DIR", l.dir)
	os.Setenv("KERNEL", l.files.Kernel)
	os.Setenv("INITRD", l.files.Initrd)
	os.Setenv("CMDLINE", guesttest.Cmdline)
	return contender{
		name:  "by hand",
		start: func() error { return l.inside("sh", "-c", fmt.Sprintf(byHand, qemu)) },
		end:   func() error { return l.inside("sh", "-c", byHandEnd) },
	}
}
