package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
	"vmrun/launcher"
)

// newTestManager returns a manager and what the service manager hears of it.
func newTestManager(t *testing.T) (m *manager, heard func() []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	ear, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ear.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	if m, err = newManager(); err != nil || m == nil {
		t.Fatalf("%v, %v", m, err)
	}
	t.Cleanup(func() { m.conn.Close() })
	if os.Getenv("NOTIFY_SOCKET") != "" {
		t.Error("whoever is started knows of it too")
	}
	return m, func() (messages []string) {
		for buf := make([]byte, 4096); ; {
			ear.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			n, err := ear.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return messages
			}
			if err != nil {
				t.Fatal(err)
			}
			messages = append(messages, string(buf[:n]))
		}
	}
}

// Of "READY=1" and "STOPPING=1" in one message systemd hears the last.
func TestTellReadyAndStopping(t *testing.T) {
	m, heard := newTestManager(t)
	g := &configs.Guest{Name: "web1"}
	m.tell(launcher.Status{State: launcher.StateStopping, Rung: launcher.RungQuit, Ready: true}, g)
	m.ended()
	want := []string{"STATUS=stopping (quit)", "READY=1", "STOPPING=1\n" + extend(launcher.StopBound(g))}
	if diff := cmp.Diff(want, heard()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A start that ends well before the guest is ready has not failed.
func TestTellEnd(t *testing.T) {
	m, heard := newTestManager(t)
	m.ended()
	m.ended()
	if diff := cmp.Diff([]string{"READY=1"}, heard()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	(*manager)(nil).ended()
}

// A service manager that was busy hears later what it has to know.
func TestTellBusy(t *testing.T) {
	m, heard := newTestManager(t)
	for m.send("STATUS=one of many") {
	}
	m.tell(launcher.Status{State: launcher.StateRunning, Ready: true}, &configs.Guest{})
	if slices.ContainsFunc(heard(), func(s string) bool { return strings.HasPrefix(s, "READY") }) {
		t.Fatal("it was not busy")
	}
	m.alive()
	if diff := cmp.Diff([]string{"READY=1", "WATCHDOG=1"}, heard()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
