package launcher

import (
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmrun/netsetup"
)

// What was counted anew meanwhile, or was not there, is no traffic.
func TestSince(t *testing.T) {
	before := Stats{CPUTime: 10, Disks: []DiskStats{{Name: "disk0", ReadBytes: 1000, Reads: 1}, {Name: "disk1", WriteBytes: 1 << 40}},
		NICs: []NICStats{{Name: "net0", Counters: netsetup.Counters{RxBytes: 1000, RxDropped: 1, TxShaped: 1}}}}
	after := Stats{CPUTime: 11, Disks: []DiskStats{{Name: "disk0", ReadBytes: 3000, Reads: 5, Writes: 2}, {Name: "disk1", WriteBytes: 5}, {Name: "disk2", Reads: 100}},
		NICs: []NICStats{{Name: "net0", Counters: netsetup.Counters{RxBytes: 2000, RxDropped: 2, RxPoliced: 2, TxDropped: 4, TxShaped: 5}}, {Name: "net1", Counters: netsetup.Counters{TxBytes: 5, TxDropped: 9}}}}
	want := Rates{CPU: 0.5, Read: 1000, Reads: 2, Writes: 1, Rate: Rate{Inbound: 4000}, Lost: 5}
	if diff := cmp.Diff(want, after.Since(before, 2*time.Second)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := before.Since(after, time.Second); got != (Rates{Write: 1<<40 - 5}) {
		t.Errorf("after a restart: %+v", got)
	}
}

func TestProcessCounters(t *testing.T) {
	self := os.Getpid()
	before := cpuTime(self)
	for deadline := time.Now().Add(10 * time.Second); cpuTime(self) < before+20*time.Millisecond; {
		if time.Now().After(deadline) {
			t.Fatalf("no CPU time goes by: %v", cpuTime(self))
		}
	}
	if n := resident(self); n < 1<<20 || n > 1<<40 {
		t.Errorf("%d bytes are resident", n)
	}
	if cpuTime(1<<22) != 0 || resident(1<<22) != 0 {
		t.Error("a process with a number that no process has (proc_sys_kernel(5), pid_max) has used something")
	}
}
