package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseParams(t *testing.T) {
	for _, tt := range []struct {
		name, line string
		want       params
	}{
		{"none", "console=ttyS0 quiet", params{}},
		{"one NIC", "vmrun.addr=eth0:192.0.2.11/24,2001:db8::11/64", params{addresses: []linkAddresses{
			{"eth0", []string{"192.0.2.11/24", "2001:db8::11/64"}},
		}}},
		{"two, quoted", `vmrun.addr="eth0:192.0.2.11/24;eth1:2001:db8::1/64"`, params{addresses: []linkAddresses{
			{"eth0", []string{"192.0.2.11/24"}}, {"eth1", []string{"2001:db8::1/64"}},
		}}},
		{"no address", "vmrun.addr=eth0 vmrun.addr=", params{}},
		{"power button", "vmrun.powerbutton=ignore", params{ignorePowerButton: true}},
		{"power button as usual", "vmrun.powerbutton=obey", params{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := parseParams(tt.line)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(params{}, linkAddresses{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}
