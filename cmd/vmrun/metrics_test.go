package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/netsetup"
)

// parser is a program for Debian's Python that reads OpenMetrics text as Prometheus'
// own client does, and tells of each sample.
const parser = `
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
print(json.dumps([{"family": f.name, "type": f.type, "unit": f.unit, "help": f.documentation, "name": s.name, "labels": s.labels, "value": s.value}
	for f in parse(sys.stdin.read()) for s in f.samples]))
`

type sample struct {
	Family, Type, Unit, Help, Name string
	Labels                         map[string]string
	Value                          float64
}

type samples []sample

// parseMetrics has the parser read a text.
func parseMetrics(t *testing.T, text string) samples {
	t.Helper()
	python := exec.Command("/usr/bin/python3", "-c", parser)
	if _, err := os.Stat("/usr/lib/python3/dist-packages/prometheus_client"); err != nil && os.Getenv("VMRUN_TEST_REQUIRE") != "1" {
		t.Skip("needs a parser: apt-get install python3-prometheus-client")
	}
	python.Stdin = strings.NewReader(text)
	var said strings.Builder
	python.Stderr = &said
	out, err := python.Output()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, said.String(), text)
	}
	var list samples
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// one is the sample of a name with these labels, which come in pairs.
func (list samples) one(t *testing.T, name string, labels ...string) sample {
	t.Helper()
	for _, s := range list {
		fits := s.Name == name
		for i := 0; i < len(labels); i += 2 {
			fits = fits && s.Labels[labels[i]] == labels[i+1]
		}
		if fits {
			return s
		}
	}
	t.Fatalf("no %s with %q", name, labels)
	return sample{}
}

// A parser finds everything that was written, whatever is in the labels.
func TestMetricsAreOpenMetrics(t *testing.T) {
	odd := "C:\\new\\\"quoted\",}{=#\nsecond line\\"
	started := time.Date(2026, 1, 2, 3, 4, 5, 600e6, time.UTC)
	guests := []scraped{
		{Status: launcher.Status{Name: "web1", UUID: "u", State: launcher.StateRunning, Spec: odd, Started: started, CPUs: 2, Memory: 1 << 30, Accel: "kvm",
			Restarts: &launcher.Restarts{Count: 3}, Limits: &launcher.LimitsStatus{MemoryMax: 2 << 30},
			NICs: []launcher.NICStatus{{Name: "net0", Parent: "eth0", VLAN: 7, Mode: "bridge", MAC: "02:00:00:00:00:01"}}},
			stats: &launcher.Stats{CPUTime: 1.25, Memory: 1 << 28, GroupMemory: 1 << 29,
				Disks: []launcher.DiskStats{{Name: "disk0", Path: odd, ReadBytes: 1 << 53, Reads: 4, WriteBytes: 5, Writes: 6, Flushes: 7}},
				NICs: []launcher.NICStats{{Name: "net0", Pinned: &netsetup.Refusals{MAC: 8, Router: 9},
					Counters: netsetup.Counters{RxBytes: 10, RxPackets: 11, RxMulticast: 12, RxDropped: 13, RxPoliced: 14, TxBytes: 15, TxPackets: 16, TxDropped: 17, TxShaped: 18}}}}},
		{Status: launcher.Status{Name: "web2", State: launcher.StateEnded}},
	}
	var b strings.Builder
	if err := writeMetrics(&b, guests); err != nil {
		t.Fatal(err)
	}
	list := parseMetrics(t, b.String())
	for _, tt := range []struct {
		name   string
		unit   string
		value  float64
		labels []string
	}{
		{"vmrun_build_info", "", 1, []string{"version", versionText()}},
		{"vmrun_guest_info", "", 1, []string{"guest", "web1", "uuid", "u", "spec", odd, "accel", "kvm"}},
		{"vmrun_guest_state", "", 1, []string{"guest", "web1", "vmrun_guest_state", "running"}},
		{"vmrun_guest_state", "", 0, []string{"guest", "web1", "vmrun_guest_state", "ended"}},
		{"vmrun_guest_state", "", 1, []string{"guest", "web2", "vmrun_guest_state", "ended"}},
		{"vmrun_guest_start_time_seconds", "seconds", 1767323045.6, nil},
		{"vmrun_guest_restarts_total", "", 3, nil}, {"vmrun_guest_restarts_total", "", 0, []string{"guest", "web2"}},
		{"vmrun_guest_cpus", "", 2, nil}, {"vmrun_guest_memory_bytes", "bytes", 1 << 30, nil}, {"vmrun_guest_memory_limit_bytes", "bytes", 2 << 30, nil},
		{"vmrun_guest_cpu_seconds_total", "seconds", 1.25, nil},
		{"vmrun_guest_resident_memory_bytes", "bytes", 1 << 28, nil}, {"vmrun_guest_cgroup_memory_bytes", "bytes", 1 << 29, nil},
		{"vmrun_disk_info", "", 1, []string{"guest", "web1", "disk", "disk0", "path", odd}},
		{"vmrun_disk_read_bytes_total", "bytes", 1 << 53, []string{"disk", "disk0"}}, {"vmrun_disk_reads_total", "", 4, nil},
		{"vmrun_disk_written_bytes_total", "bytes", 5, nil}, {"vmrun_disk_writes_total", "", 6, nil}, {"vmrun_disk_flushes_total", "", 7, nil},
		{"vmrun_nic_info", "", 1, []string{"guest", "web1", "nic", "net0", "parent", "eth0.7", "mode", "bridge", "mac", "02:00:00:00:00:01"}},
		{"vmrun_nic_forged_packets_total", "packets", 8, []string{"nic", "net0", "forged", "MAC"}},
		{"vmrun_nic_forged_packets_total", "packets", 9, []string{"forged", "router"}},
		{"vmrun_nic_receive_bytes_total", "bytes", 10, []string{"guest", "web1", "nic", "net0"}}, {"vmrun_nic_receive_packets_total", "packets", 11, nil},
		{"vmrun_nic_receive_multicast_packets_total", "packets", 12, nil}, {"vmrun_nic_receive_dropped_packets_total", "packets", 13, nil},
		{"vmrun_nic_receive_limited_packets_total", "packets", 14, nil}, {"vmrun_nic_transmit_bytes_total", "bytes", 15, nil},
		{"vmrun_nic_transmit_packets_total", "packets", 16, nil}, {"vmrun_nic_transmit_dropped_packets_total", "packets", 17, nil},
		{"vmrun_nic_transmit_limited_packets_total", "packets", 18, nil},
	} {
		got := list.one(t, tt.name, tt.labels...)
		if got.Value != tt.value || got.Unit != tt.unit || got.Help == "" || got.Type == "unknown" {
			t.Errorf("%+v, want %v %s", got, tt.value, tt.unit)
		}
	}
	for _, f := range families { // each is in the list above
		list.one(t, f.name+suffixes[f.kind])
	}
}

// Thirty guests are scraped in one go, over a socket, by whoever asks.
func TestMetricsOfThirtyGuests(t *testing.T) {
	h := newHost(t)
	h.leavesNothing()
	var names []string
	for i := range 30 {
		names = append(names, fmt.Sprintf("node%02d", i))
	}
	began := time.Now()
	h.stand(names...)
	t.Logf("30 guests stood after %v", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	text := h.vmrun(0, `\A# TYPE vmrun_build info\n(?s:.*)\n# EOF\n\z`, "metrics")
	t.Logf("30 guests were scraped in %v by vmrun metrics", time.Since(began).Round(time.Millisecond))
	list := parseMetrics(t, text)
	for _, name := range names {
		if s := list.one(t, "vmrun_guest_cpu_seconds_total", "guest", name); s.Value <= 0 {
			t.Errorf("%+v", s)
		}
		list.one(t, "vmrun_nic_receive_dropped_packets_total", "guest", name, "nic", "net0")
		list.one(t, "vmrun_disk_reads_total", "guest", name, "disk", "disk0")
		if s := list.one(t, "vmrun_guest_state", "guest", name, "vmrun_guest_state", "paused"); s.Value != 1 {
			t.Errorf("%+v", s)
		}
	}

	path := filepath.Join(h.run, "metrics.sock")
	server := h.onlook("metrics", "--listen", path)
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody listens")
		}
	}
	began = time.Now()
	resp, err := client.Get("http://vmrun/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	t.Logf("30 guests were scraped in %v over a socket: %d bytes", time.Since(began).Round(time.Millisecond), len(body))
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != metricsType || len(parseMetrics(t, string(body))) != len(list) {
		t.Errorf("%v, %v: %d bytes", resp, err, len(body))
	}
	server.interrupt()
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there")
	}
}

// Whoever scrapes badly is told so, or left, and the others are served.
func TestScrapers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close() // and its name stays
	listener, err := listenMetrics(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := listenMetrics(t.Context(), path); err == nil || !strings.Contains(err.Error(), "somebody listens there already") {
		t.Errorf("a second one: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("keep me"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenMetrics(t.Context(), file); err == nil {
		t.Error("somebody listens in place of a file")
	}
	if text, err := os.ReadFile(file); string(text) != "keep me" {
		t.Errorf("a file that is no socket is gone: %q, %v", text, err)
	}
	e := &exporter{app: &app{runDir: t.TempDir()}}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go e.serve(t.Context(), conn)
		}
	}()
	defer listener.Close()
	for _, tt := range []struct{ request, want string }{
		{"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\n"},
		{"GET /metrics?a=b HTTP/1.0\n\n", "HTTP/1.1 200 OK\r\n"},
		{"HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n"},
		{"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed\r\n"},
		{"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found\r\n"},
		{"GET /metrics\r\n\r\n", ""}, {"\r\n", ""}, {"PRI * HTTP/2.0\r\n\r\n", ""},
		{"GET /metrics HTTP/1.1\r\nX: " + strings.Repeat("x", maxRequest) + "\r\n\r\n", ""},
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, tt.request)
		answer, _ := io.ReadAll(conn) // one that is left may see a reset
		conn.Close()
		head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
		if !strings.HasPrefix(head, tt.want) || tt.want == "" && len(answer) > 0 {
			t.Errorf("%.40q is answered with %q", tt.request, answer)
		}
		if isHead := strings.HasPrefix(tt.request, "HEAD"); tt.want != "" && isHead != (body == "") {
			t.Errorf("%.40q: %d bytes of body", tt.request, len(body))
		}
	}
}
