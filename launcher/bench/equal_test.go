package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHardware(t *testing.T) {
	const vmrun = "qemu -name guest=a -S -machine q35 -m 192M -serial chardev:console -kernel /dev/fd/5 -netdev tap,id=net0,fd=7 -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,bus=port0,romfile=,host_mtu=1500"
	tests := []struct {
		name, argv string
		only       string // hardware that vmrun's guest does not have
	}{
		{"the same", vmrun, ""},
		{"in the words of libvirt", `qemu -machine pc-q35-7.2,usb=off,memory-backend=pc.ram -m 192 -msg timestamp=on -device {"driver":"isa-serial","chardev":"s","index":0} -device {"driver":"virtio-net-pci","host_mtu":1500,"romfile":"","netdev":"n","id":"net0","mac":"02:00:00:00:00:02","bus":"pci.1","addr":"0x0"}`, ""},
		{"governed by others", "qemu -machine q35 -m 192M -serial unix:/x -kernel /vmlinuz -netdev tap,id=net0,fd=3 -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:02,bus=port0,romfile=,host_mtu=1500 -daemonize", ""},
		{"a flag more", vmrun + " -no-reboot", "-no-reboot"},
		{"more memory", strings.Replace(vmrun, "192M", "1024M", 1), "-m 1024"},
		{"another machine", strings.Replace(vmrun, "q35", "pc", 1), "-machine pc"},
		{"other offloads", vmrun + ",csum=off", "-device virtio-net-pci,csum=off,host_mtu=1500,romfile="},
	}
	want := hardware(options(cmdline(vmrun)))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := hardware(options(cmdline(tt.argv)))
			if only := strings.Join(without(got, want), " "); only != tt.only {
				t.Errorf("got %q, want %q", only, tt.only)
			}
			if missing := without(want, got); tt.only == "" && len(missing) > 0 {
				t.Errorf("without %q", missing)
			}
		})
	}
}

func TestOptions(t *testing.T) {
	got := options([]byte("qemu\x00-S\x00-append\x00console=ttyS0 quiet\x00"))
	if diff := cmp.Diff([]string{"-S", "-append console=ttyS0 quiet"}, got); diff != "" {
		t.Error(diff)
	}
}

// cmdline is a command without quotes as the kernel shows it.
func cmdline(words string) []byte { return []byte(strings.ReplaceAll(words, " ", "\x00") + "\x00") }
