package configs

import (
	"math"
	"net"
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	tests := []struct {
		text string
		want Size
		form string // as String writes it
	}{
		{"0", 0, "0B"},
		{"0GiB", 0, "0B"},
		{"512B", 512, "512B"},
		{"1KiB", 1 << 10, "1KiB"},
		{"1K", 1 << 10, "1KiB"},
		{"1536M", 1536 << 20, "1536MiB"},
		{"1024MiB", 1 << 30, "1GiB"},
		{"20G", 20 << 30, "20GiB"},
		{"2T", 2 << 40, "2TiB"},
		{"8388607TiB", 8388607 << 40, "8388607TiB"},
		{"9223372036854775807B", math.MaxInt64, "9223372036854775807B"},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			got, err := ParseSize(tt.text)
			if err != nil || got != tt.want || got.String() != tt.form {
				t.Errorf("got %d (%s), %v, want %d (%s)", uint64(got), got, err, uint64(tt.want), tt.form)
			}
		})
	}
	for _, text := range []string{"", "GiB", "1", "-1K", "1k", "1KB", "1.5G", "1 G", "1GiBs", "8388608TiB", "99999999999999999999B", "+1K", "0x1K", "１K"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %s, want an error", text, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, text := range []string{"0", "1GiB", "1.5G", "12", "8388608TiB", "1 kb"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		size, err := ParseSize(text)
		if err != nil {
			return
		}
		if again, err := ParseSize(size.String()); err != nil || again != size {
			t.Errorf("%q is %s, which is %s, %v", text, size, again, err)
		}
	})
}

func TestParseSpan(t *testing.T) {
	tests := []struct {
		text string
		want time.Duration
		ok   bool
	}{
		{"60s", time.Minute, true},
		{"1m30s", 90 * time.Second, true},
		{"500ms", time.Second / 2, true},
		{"0s", 0, true},
		{"0", 0, true},
		{"24h", 24 * time.Hour, true},
		{"24h1ns", 0, false},
		{"60", 0, false},
		{"-60", 0, false},
		{"1e3", 0, false},
		{"-1s", 0, false},
		{"1 min", 0, false},
		{"", 0, false},
		{"inf", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			if got, err := parseSpan(tt.text); got != tt.want || (err == nil) != tt.ok {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func FuzzParseSpan(f *testing.F) {
	for _, text := range []string{"0", "60s", "1m30s", "-1s", "60", "24h1ns", "1e3h", "0.5µs", "inf"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseSpan(text)
		if err != nil {
			return
		}
		if again, err := parseSpan(d.String()); d < 0 || d > maxSpan || err != nil || again != d {
			t.Errorf("%q is %v, which is %v, %v", text, d, again, err)
		}
	})
}

func TestCheckMAC(t *testing.T) {
	tests := []struct {
		name string
		mac  net.HardwareAddr
		ok   bool
	}{
		{"unicast", net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, true},
		{"nil", nil, false},
		{"short", net.HardwareAddr{2, 0, 0, 0, 1}, false},
		{"EUI-64", make(net.HardwareAddr, 8), false},
		{"zero", make(net.HardwareAddr, 6), false},
		{"multicast", net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}, false},
		{"broadcast", net.HardwareAddr{255, 255, 255, 255, 255, 255}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := CheckMAC(tt.mac); (err == nil) != tt.ok {
				t.Errorf("CheckMAC: %v", err)
			}
		})
	}
}

func TestClosestKey(t *testing.T) {
	keys := []string{"parent", "mode", "mac", "mtu", "boot_index"}
	tests := []struct{ name, want string }{
		{"parnet", "parent"},
		{"PARENT", "parent"},
		{"bootindex", "boot_index"},
		{"modes", "mode"},
		{"mca", "mac"},
		{"mti", "mtu"},
		{"x", ""},
		{"network", ""},
		{"", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := closestKey(tt.name, keys); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
