package launcher

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/netsetup"
	"vmrun/netsetup/nettest/wire"
)

// near fails the test where two times are a second apart.
func near(t *testing.T, what string, got, want time.Time) {
	t.Helper()
	if d := got.Sub(want).Abs(); d > time.Second {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// A time of a record is as old as it was, whatever was done to the clock after
// the record was written; a time as the clock shows it is the same as long as
// nothing was.
func TestClockOfRecord(t *testing.T) {
	now := readClock()
	const year = 365 * 24 * time.Hour
	for _, tt := range []struct {
		name string
		set  time.Duration // by how much since the record was written
	}{{"as it was", 0}, {"ahead", 10 * year}, {"back", -50 * year}, {"by a leap second's smear", 300 * time.Millisecond}} {
		// Written an hour ago, of a guest that had been up for two.
		c := clock{Shown: now.Shown.Add(-time.Hour - tt.set).Round(0), Boot: now.Boot - time.Hour}
		started := c.Shown.Add(-2 * time.Hour)
		got := c.since(started)
		near(t, tt.name, got, time.Now().Add(-3*time.Hour))
		if age := time.Since(got); (age - 3*time.Hour).Abs() > time.Second {
			t.Errorf("%s: %v old by the monotonic clock", tt.name, age)
		}
		if shown := present(got); !shown.Equal(got.Round(0)) {
			t.Errorf("%s: shown as %v, then as %v", tt.name, got, shown)
		}
	}
	if !present(time.Time{}).IsZero() {
		t.Error("no time became one")
	}
}

// TestClock sets the clock years ahead, back to 1970, and right again, while a
// guest runs, is stopped, and loses its supervisor. Nobody must notice.
func TestClock(t *testing.T) {
	b := newMachine(t)
	began := time.Now()
	set := func(to time.Time) {
		t.Helper()
		at := unix.NsecToTimeval(to.UnixNano())
		b.must(unix.Settimeofday(&at))
	}
	right := func() time.Time { return began.Round(0).Add(time.Since(began)) }
	t.Cleanup(func() { set(right()) })
	clocks := []func() time.Time{
		func() time.Time { return right().AddDate(10, 0, 0) },
		func() time.Time { return time.Unix(7200, 0) },
		right,
	}

	g := b.empty("steady", nic("bridge"), "[stop]", `timeout = "2s"`, `quit_timeout = "60s"`,
		"[restart]", `policy = "on-failure"`, `delay = "2s"`)
	r := b.mustStart(g, order{})
	started := time.Now()
	b.speak(r, "192.0.2.11")
	b.eventually(10*time.Second, "the address is learned", func() string { return other(fmt.Sprint(b.observe(g).NICs[0].Addresses), "[192.0.2.11]") })
	spoke := time.Now()

	check := func(what string) {
		t.Helper()
		s := b.waitState(g, StateRunning, 20*time.Second) // a slow one does not answer at once
		if up, is := time.Now().Round(0).Sub(s.Started), time.Since(started); (up - is).Abs() > 10*time.Second {
			t.Errorf("%s: up for %v, and it is %v", what, up, is)
		}
		for _, a := range s.NICs[0].Learned {
			if seen, is := time.Now().Round(0).Sub(a.Seen), time.Since(spoke); (seen - is).Abs() > 10*time.Second {
				t.Errorf("%s: %s seen %v ago, and it is %v", what, a.IP, seen, is)
			}
		}
		if len(s.NICs[0].Learned) != 1 {
			t.Errorf("%s: learned %+v", what, s.NICs[0].Learned)
		}
	}
	for i, to := range clocks {
		set(to())
		check(fmt.Sprintf("set %d", i))
	}
	for i, to := range clocks[:2] {
		b.killSupervisor(g.Name)
		set(to())
		if s := b.waitState(g, StateRunning, 20*time.Second); time.Now().Round(0).Sub(s.Started).Abs() > time.Hour {
			t.Errorf("set %d, without a supervisor: %+v", i, s)
		}
		if r := b.mustStart(mustLoad(t, g.Path), order{}); !r.Adopted {
			t.Errorf("set %d: not adopted: %+v", i, r)
		}
		check(fmt.Sprintf("set %d, adopted", i))
	}

	// What waits takes its time, and no more, however the clock jumps meanwhile.
	stop := make(chan struct{})
	var jumps sync.WaitGroup
	jumps.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
				at := unix.NsecToTimeval(clocks[i%2]().UnixNano())
				unix.Settimeofday(&at)
			}
		}
	})
	killed := time.Now()
	b.killQEMU(g, syscall.SIGKILL)
	b.restarted(g, 1, StateRunning)
	if took := time.Since(killed); took < 2*time.Second || took > 30*time.Second {
		t.Errorf("the restart took %v, want 2 s and a little", took)
	}
	asked := time.Now()
	b.stop(g, RungQuit) // firmware does not hear its power button
	if took := time.Since(asked); took < 2*time.Second || took > 30*time.Second {
		t.Errorf("the stop took %v, want 2 s and a little", took)
	}
	close(stop)
	jumps.Wait()
	b.clean("stop")
}

// speak has a guest say that it has an address, as far as its NIC can tell.
func (b *bench) speak(r Report, addr string) {
	b.t.Helper()
	ns, err := netsetup.NamespaceOf(r.Status.PID)
	b.must(err)
	defer ns.Close()
	n := r.Status.NICs[0]
	mac, err := net.ParseMAC(n.MAC)
	b.must(err)
	b.must(ns.Do(func() error { return wire.Send(n.Name, wire.Announcement(netip.MustParseAddr(addr), mac)) }))
}
