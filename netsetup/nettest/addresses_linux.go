package nettest

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The addresses that an AddressServer gives away.
var (
	LeaseFirst = netip.MustParseAddr("192.0.2.100")
	LeaseLast  = netip.MustParseAddr("192.0.2.199")
)

// AddressServer is dnsmasq in Outside: DHCP with leases of an hour (LeaseFirst
// to LeaseLast), and a router that advertises 2001:db8::/64 for SLAAC and
// DHCPv6 (2001:db8::1000 to 2001:db8::1fff).
type AddressServer struct {
	leases string // the file
}

// ServeBoot is ServeAddresses with TFTP for the files of a directory, of which one
// is what is to be booted.
func (l *Lab) ServeBoot(t testing.TB, dir, file string) *AddressServer {
	t.Helper()
	return l.serveAddresses(t, "--enable-tftp", "--tftp-root="+dir, "--dhcp-boot="+file)
}

// ServeAddresses starts dnsmasq, which ends with t. It skips the test where
// dnsmasq is missing, or fails it when VMRUN_TEST_REQUIRE is 1.
func (l *Lab) ServeAddresses(t testing.TB) *AddressServer {
	t.Helper()
	return l.serveAddresses(t)
}

func (l *Lab) serveAddresses(t testing.TB, more ...string) *AddressServer {
	t.Helper()
	path, err := exec.LookPath("dnsmasq")
	if err != nil {
		if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs dnsmasq: apt-get install dnsmasq-base")
	}
	s := &AddressServer{leases: filepath.Join(t.TempDir(), "leases")}
	args := []string{"--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=",
		"--user=root", "--log-facility=-", "--log-dhcp", "--port=0", "--no-resolv", "--no-hosts",
		"--interface=" + l.Outside.NIC, "--except-interface=lo", "--bind-interfaces",
		"--dhcp-authoritative", "--no-ping", "--dhcp-leasefile=" + s.leases,
		fmt.Sprintf("--dhcp-range=%s,%s,255.255.255.0,1h", LeaseFirst, LeaseLast),
		"--enable-ra", "--dhcp-range=2001:db8::1000,2001:db8::1fff,slaac,64,1h"}
	cmd := exec.Command(path, append(args, more...)...)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Outside.Start(cmd); err != nil {
		t.Fatalf("dnsmasq: %v", err)
	}
	var said []string // read when done is closed
	started, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			// Its first word, when its sockets are open.
			if said = append(said, lines.Text()); len(said) == 1 {
				close(started)
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("dnsmasq:\n%s", strings.Join(said, "\n"))
		}
	})
	select {
	case <-started:
	case <-done:
		t.Fatal("dnsmasq ended at once")
	case <-time.After(settleTime):
		t.Fatal("dnsmasq does not start")
	}
	return s
}

// Lease returns the IPv4 address that a MAC has from the server, and false when
// it has none.
func (s *AddressServer) Lease(mac net.HardwareAddr) (netip.Addr, bool) {
	data, err := os.ReadFile(s.leases)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, line := range strings.Split(string(data), "\n") {
		// When it ends, MAC, address, name, client id (dnsmasq(8), --dhcp-leasefile).
		words := strings.Fields(line)
		if len(words) > 2 && words[1] == mac.String() {
			addr, err := netip.ParseAddr(words[2])
			return addr, err == nil
		}
	}
	return netip.Addr{}, false
}
