package main

import (
	"strings"
	"testing"
	"time"

	"vmrun/launcher"
)

func TestStateWords(t *testing.T) {
	const full = "no space left for /srv/web1.qcow2"
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		status launcher.Status
		want   string
	}{
		{launcher.Status{State: launcher.StateRunning}, "running"},
		{launcher.Status{State: launcher.StatePaused}, "paused"},
		{launcher.Status{State: launcher.StatePaused, Why: full}, "paused: " + full},
		{launcher.Status{State: launcher.StateStopping, Rung: launcher.RungQuit}, "stopping (quit)"},
		{launcher.Status{State: launcher.StateStopping, Rung: launcher.RungPowerdown, Why: full}, "stopping (powerdown): " + full},
		{launcher.Status{Name: "web1", State: launcher.StateUnresponsive}, "unresponsive: vmrun stop --force web1 ends it"},
		{launcher.Status{State: launcher.StateEnded, Ended: &launcher.Outcome{Reason: launcher.ReasonPoweroff, At: at}},
			"ended at 2026-01-02T03:04:05Z: the guest powered itself off"},
	} {
		if got := stateWords(tt.status); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.status, got, tt.want)
		}
	}
}

func TestPSSaysWhy(t *testing.T) {
	got := printed(t, func() {
		printGuests([]launcher.Status{{Name: "web1", State: launcher.StatePaused, Why: "no space left for /srv/web1.qcow2", PID: 10}})
	})
	if !strings.Contains(got, "\nweb1  paused: no space left for /srv/web1.qcow2  10 ") {
		t.Error(got)
	}
}
