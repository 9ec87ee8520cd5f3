package launcher

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/qmp"
)

// TestKilledForWantOfMemory has the kernel kill QEMUs whose guests boot into a
// limit that is none of vmrun's.
func TestKilledForWantOfMemory(t *testing.T) {
	dir, file := memoryGroup(t)
	b := newBench(t)
	for _, tt := range []struct {
		name string
		then func(g *configs.Guest) // to the guest, which stands still
	}{
		{"watched", func(g *configs.Guest) { b.must(b.control(g.Name).Cont(b.within(5 * time.Second))) }},
		{"adopted", func(g *configs.Guest) {
			b.killSupervisor(g.Name)
			if r := b.mustStart(g, order{Paused: true}); !r.Adopted {
				t.Errorf("not adopted: %+v", r)
			}
			b.must(b.control(g.Name).Cont(b.within(5 * time.Second)))
		}},
		{"unwatched", func(g *configs.Guest) {
			b.killSupervisor(g.Name)
			mon, err := qmp.Dial(b.within(5*time.Second), guestDir(b.base, g.Name).path(fileMonitor))
			b.must(err)
			defer mon.Close()
			b.must(mon.Cont(b.within(5 * time.Second)))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := b.spec("short", "", nic("bridge"))
			b.mustStart(g, order{Paused: true, Cgroup: dir})
			used := readNumber(dir, "memory.usage_in_bytes", "") + readNumber(dir, "memory.current", "")
			limit := used&^(1<<20-1) + 32<<20
			b.must(writeGroup(dir, file, strconv.FormatUint(limit, 10)))
			tt.then(g)
			s := b.waitState(g, StateEnded, 30*time.Second)
			want := "QEMU was killed for want of memory: the cgroup " + dir + " was to take no more than " + configs.Size(limit).String()
			if s.Ended.Reason != ReasonOOM || !strings.HasPrefix(s.Ended.Detail, want) {
				t.Errorf("outcome %+v, want %s: %s", s.Ended, ReasonOOM, want)
			}
			b.must(writeGroup(dir, file, strconv.Itoa(1<<40)))
			if s.Supervisor != 0 {
				b.clean(tt.name)
			}
		})
	}
	t.Run("killed by somebody", func(t *testing.T) { // where the kernel has killed before
		g := b.spec("short", "", nic("bridge"))
		r := b.mustStart(g, order{Paused: true, Cgroup: dir})
		b.signalQEMU(r, sigKill)
		if s := b.waitState(g, StateEnded, 5*time.Second); s.Ended.Reason != ReasonSignal {
			t.Errorf("outcome %+v, want %s", s.Ended, ReasonSignal)
		}
	})
	t.Run("where no cgroup counts", killsOfHost)
}

// killsOfHost: the host's count has to do then, of a QEMU that is known to have been
// killed. The kernel has killed some by now.
func killsOfHost(t *testing.T) {
	k := &kills{Host: hostKills()}
	killed := killedBy(sigKill)
	if got := k.wantOfMemory(killed); got != "" {
		t.Errorf("when the kernel has killed nobody since: %s", got)
	}
	k.Host--
	if got := k.wantOfMemory(killed); !strings.Contains(got, "probably") {
		t.Errorf("when it has: %q", got)
	}
	for _, e := range []exit{{}, exited(0), dumpedBy(6)} {
		if got := k.wantOfMemory(e); got != "" {
			t.Errorf("%+v: %s", e, got)
		}
	}
}
