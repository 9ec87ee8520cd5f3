package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHardware(t *testing.T) {
	const vmrun = "qemu -name guest=a -S -m 192M -kernel /dev/fd/5 -netdev tap,id=net0,fd=7 -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,bus=port0"
	tests := []struct {
		name, argv string
		only       string // hardware that vmrun's guest does not have
	}{
		{"the same", vmrun, ""},
		{"governed by others", "qemu -m 192M -kernel /vmlinuz -netdev tap,id=net0,fd=3 -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:02,bus=port0 -daemonize", ""},
		{"a flag more", vmrun + " -no-reboot", "-no-reboot"},
		{"more memory", strings.Replace(vmrun, "192M", "1G", 1), "-m 1G"},
		{"other offloads", vmrun + ",csum=off", "-device virtio-net-pci,netdev=net0,bus=port0,csum=off"},
	}
	want := hardware(options(cmdline(vmrun)))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := hardware(options(cmdline(tt.argv)))
			if only := strings.Join(without(got, want), " "); only != tt.only {
				t.Errorf("got %q, want %q", only, tt.only)
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
