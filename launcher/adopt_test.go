package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
	"vmrun/netsetup/nettest/wire"
	"vmrun/qmp"
)

// TestAdoptWithoutASeam kills the supervisor of a guest again and again, while
// at rest and while it adopts, under pings both ways, a TCP stream, and NICs that
// come and go. Nothing of it is lost, and afterwards everything works.
func TestAdoptWithoutASeam(t *testing.T) {
	kills, pings := soakOr(50, 8), soakOr(5000, 300)
	b := newBench(t)
	b.lab.AddNIC("lab1", nettest.NIC{}) // on lab0 the guest would answer ARP for both its NICs by either
	b.must(b.lab.Outside.AddAddress("wire-lab1", netip.MustParsePrefix("198.51.100.1/24")))
	b.before = b.lab.Snapshot(t, b.base)
	g := b.spec("web1", "192.0.2.11/24,2001:db8::11/64",
		nic("bridge", "host_access = true", "pin = true", `addresses = ["192.0.2.11", "2001:db8::11"]`, `bandwidth = { inbound = "1gbit", outbound = "1gbit" }`))
	c := b.boot(g)[0]
	b.plugSecond(g, c)
	b.say(c, "tcp serve 7")
	pid, children := b.observe(g).PID, b.record(g).Children

	// All of them take as long; the kills end before, so that somebody hears the
	// guest's answer.
	const every = 50 * time.Millisecond
	whole := time.Duration(pings) * every
	go c.Run(b.within(2*whole), fmt.Sprintf("ping 192.0.2.1 %d %v 5s", pings, every)) // whose answer comes to the log
	time.Sleep(200 * time.Millisecond)
	b.say(c, "hello") // so the guest has heard it
	var wg sync.WaitGroup
	for from, to := range map[*nettest.Host]string{b.lab.Outside: "192.0.2.11", b.lab.Host: "192.0.2.11"} {
		wg.Go(func() {
			sent, received, err := from.Ping(b.within(2*whole), netip.MustParseAddr(to), pings, every)
			t.Logf("%s to the guest: %d of %d pings answered", from.NIC, received, sent)
			if err != nil || sent != pings || received != sent {
				t.Errorf("%s: %d of %d pings answered, %v", from.NIC, received, sent, err)
			}
		})
	}
	wg.Go(func() {
		length, err := b.stream(netip.MustParseAddrPort("192.0.2.11:7"), whole)
		t.Logf("the TCP stream: %d bytes came back as they were sent", length)
		if err != nil {
			t.Errorf("the TCP stream, after %d bytes: %v", length, err)
		}
	})
	done := b.killAgainAndAgain(g, kills, time.Now(), whole*3/4)
	wg.Wait()
	b.eventually(max(time.Minute, whole), "the guest's own pings", func() string { // an emulated guest takes longer from one to the next
		log, _ := os.ReadFile(guestDir(b.base, g.Name).path(fileConsoleLog))
		answer := regexp.MustCompile(`sent=` + fmt.Sprint(pings) + ` received=(\d+)`).FindSubmatch(log)
		if answer == nil {
			return "no answer yet"
		}
		return other(string(answer[1]), fmt.Sprint(pings))
	})
	if !t.Failed() {
		t.Logf("%d times SIGKILL of the supervisor, 0 of %d pings each way lost, the TCP stream intact", done, pings)
	}
	if done < kills/2 {
		t.Errorf("%d kills in %v, want %d: the machine is too slow for this", done, whole*3/4, kills)
	}
	if s := b.observe(g); s.PID != pid || s.State != StateRunning {
		t.Errorf("%s with pid %d, want running with %d", s.State, s.PID, pid)
	}
	if now := b.record(g).Children; fmt.Sprint(now) != fmt.Sprint(children) {
		t.Errorf("the NICs are now\n%+v, and were\n%+v", now, children)
	}
	b.everythingWorks(g)
	b.stop(g, RungPowerdown)
	b.clean("adoption without a seam")
}

// plugSecond adds a NIC to a guest that runs, whose address is to be learned.
func (b *bench) plugSecond(g *configs.Guest, c *guesttest.Console) {
	b.t.Helper()
	n, err := b.attach(g, "parent=lab1", "mode=private")
	b.must(err)
	b.eventually(10*time.Second, "the guest sees the card", func() string { return b.guestHas(c, n.MAC, true) })
	b.say(c, "up eth1")
	b.say(c, "addr eth1 198.51.100.11/24")
	b.eventually(5*time.Second, "ping by the second NIC", func() string { return b.pinged(c, "198.51.100.1") })
	b.learnsOn(g, 1, "198.51.100.11")
}

// learnsOn waits until a NIC has an address.
func (b *bench) learnsOn(g *configs.Guest, nic int, addr string) {
	b.t.Helper()
	b.eventually(5*time.Second, addr+" is known", func() string {
		if n := b.observe(g).NICs[nic]; !slices.Contains(n.Addresses, addr) {
			return fmt.Sprintf("%s has %v", n.Name, n.Addresses)
		}
		return ""
	})
}

// stream has the machine outside send bytes to an echo for so long, at about
// 100 kB/s, and compares what comes back. It returns how many came.
func (b *bench) stream(to netip.AddrPort, length time.Duration) (n int64, err error) {
	var conn *net.TCPConn
	if err := b.lab.Outside.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		conn, err = d.DialTCP(context.Background(), "tcp", netip.AddrPort{}, to)
		return err
	}); err != nil {
		return 0, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(length + 30*time.Second))
	const seed = 11
	sent := make(chan error, 1)
	go func() {
		bytes := rand.NewChaCha8([32]byte{seed})
		chunk := make([]byte, 1000)
		for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			bytes.Read(chunk)
			if _, err := conn.Write(chunk); err != nil {
				sent <- err
				return
			}
		}
		sent <- conn.CloseWrite()
	}()
	want, got, expected := rand.NewChaCha8([32]byte{seed}), make([]byte, 1000), make([]byte, 1000)
	for {
		m, err := io.ReadFull(conn, got)
		want.Read(expected)
		n += int64(m)
		if !bytes.Equal(got[:m], expected[:m]) {
			return n, errors.New("other bytes came back")
		}
		if err != nil {
			conn.Close()
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return n, errors.Join(err, <-sent)
		}
	}
}

// killAgainAndAgain kills the guest's supervisor so often, evenly until the time
// given is over, and returns how often that was. Every third time the supervisor
// that adopts the guest is killed too, at some step; every fifth it dies while it
// plugs in a NIC.
func (b *bench) killAgainAndAgain(g *configs.Guest, kills int, began time.Time, whole time.Duration) (done int) {
	b.t.Helper()
	steps := (&life{}).adoptionSteps()
	for i := 1; done < kills && time.Since(began) < whole; i++ {
		if i%5 == 0 {
			b.dieWhilePlugging(g)
		} else {
			b.killSupervisor(g.Name)
		}
		done++
		if i%3 == 0 {
			f := fault{When: []string{"before", "after"}[i%2], Step: steps[i/3%len(steps)].Name, Do: "kill self"}
			if _, err := b.start(g, order{Fault: f}); err == nil {
				b.t.Errorf("%+v: the supervisor survived", f)
			}
			done++
		}
		report, err := b.startSoon(g.Path)
		if err != nil || !report.Adopted {
			b.t.Fatalf("adoption %d: %+v, %v", i, report, err)
		}
		b.eventually(15*time.Second, "what was being plugged in is gone", func() string {
			if n := len(b.observe(g).NICs); n != 2 {
				return fmt.Sprintf("%d NICs", n)
			}
			return ""
		})
		time.Sleep(time.Until(began.Add(whole * time.Duration(done) / time.Duration(kills))))
	}
	return done
}

// dieWhilePlugging has the supervisor die right after QEMU has got a third card.
func (b *bench) dieWhilePlugging(g *configs.Guest) {
	b.t.Helper()
	b.setFault(fault{"after", "net2 device add", "kill self"})
	if _, err := b.attach(g, hotNIC...); !errors.Is(err, qmp.ErrClosed) {
		b.t.Errorf("attach: %v, want a closed connection", err)
	}
	b.setFault(fault{})
}

// record is the guest's record as it is now.
func (b *bench) record(g *configs.Guest) *record {
	b.t.Helper()
	rec, err := guestDir(b.base, g.Name).readRecord()
	b.must(err)
	return rec
}

// everythingWorks uses all that a guest's NICs can do, with the supervisor killed
// in the middle of each: what changed meanwhile is made up for.
func (b *bench) everythingWorks(g *configs.Guest) {
	b.t.Helper()
	adopt := func() *guesttest.Console {
		b.t.Helper()
		if report, err := b.startSoon(g.Path); err != nil || !report.Adopted {
			b.t.Fatalf("adoption: %+v, %v", report, err)
		}
		return b.console(g)
	}
	c := b.console(g)
	b.lab.Host.ServeEcho(7)
	b.talk(c, "host access")
	b.pinHolds(g, c, "with a supervisor")

	b.say(c, "join 224.0.0.251 eth0")
	listed := func(mac string) string {
		if !slices.ContainsFunc(b.filter(g).Multicast, func(m net.HardwareAddr) bool { return m.String() == mac }) {
			return fmt.Sprintf("%s is not in %v", mac, b.filter(g).Multicast)
		}
		return ""
	}
	b.eventually(5*time.Second, "a group joined", func() string { return listed("01:00:5e:00:00:fb") })
	learned := b.observe(g).NICs[1].Addresses
	b.killSupervisor(g.Name)

	alone, err := guesttest.Dial(b.within(5*time.Second), guestDir(b.base, g.Name).path(fileSerial))
	b.must(err)
	b.say(alone, "leave 224.0.0.251 eth0")
	b.say(alone, "join 224.0.0.252 eth0")
	b.pinHolds(g, alone, "without a supervisor")
	alone.Close()

	c = adopt()
	b.eventually(5*time.Second, "a group joined while nobody watched", func() string { return listed("01:00:5e:00:00:fc") })
	b.eventually(5*time.Second, "a group left while nobody watched", func() string { return other(fmt.Sprint(listed("01:00:5e:00:00:fb") == ""), "false") })
	b.say(c, "join 224.0.0.253 eth0")
	b.eventually(5*time.Second, "a group joined afterwards", func() string { return listed("01:00:5e:00:00:fd") })
	if now := b.observe(g).NICs[1].Addresses; fmt.Sprint(now) != fmt.Sprint(learned) || !slices.Contains(now, "198.51.100.11") {
		b.t.Errorf("learned addresses %v, were %v", now, learned)
	}
	b.pinHolds(g, c, "after adoption")
	b.talk(c, "host access after adoption")

	b.must(b.control(g.Name).Stop(b.within(5 * time.Second)))
	b.waitState(g, StatePaused, 5*time.Second)
	b.killSupervisor(g.Name)
	if s := b.observe(g); s.State != StatePaused {
		b.t.Errorf("paused, and without a supervisor: %s", s.State)
	}
	adopt()
	time.Sleep(300 * time.Millisecond)
	if s := b.observe(g); s.State != StatePaused {
		b.t.Errorf("paused, and adopted: %s", s.State)
	}
	b.must(b.control(g.Name).Cont(b.within(5 * time.Second)))
	b.waitState(g, StateRunning, 5*time.Second)

	mac := b.observe(g).NICs[1].MAC
	b.setFault(fault{"after", "net1 mark", "kill self"})
	if err := b.detach(g, "net1"); !errors.Is(err, qmp.ErrClosed) {
		b.t.Errorf("detach: %v, want a closed connection", err)
	}
	b.setFault(fault{})
	c = adopt()
	b.eventually(15*time.Second, "a detach that was begun", func() string {
		return b.guestHas(c, mac, false) + b.leftovers(g)
	})
	b.eventually(5*time.Second, "its NIC", func() string { return other(fmt.Sprint(len(b.observe(g).NICs)), "1") })
	n, err := b.attach(g, hotNIC...)
	b.must(err)
	b.eventually(10*time.Second, "the guest sees a card after all of it", func() string { return b.guestHas(c, n.MAC, true) })
	if n := b.lines(g, "link-down"); n != 0 {
		b.t.Errorf("the guest's link was down %d times", n)
	}
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		b.eventually(5*time.Second, "ping "+to, func() string { return b.pinged(c, to) })
	}
}

// pinHolds has a guest send forged frames, and none arrive.
func (b *bench) pinHolds(g *configs.Guest, c *guesttest.Console, when string) {
	b.t.Helper()
	const count = 100
	before := *b.refusals(g)
	tag := strings.ReplaceAll(when, " ", "-")
	capture := b.lab.Outside.Capture(b.lab.Outside.NIC, tag)
	b.say(c, "sendtag eth0 %s %s 02:00:00:00:00:66 %d", wire.Broadcast, tag, count)
	if n := capture.Wait(1, 200*time.Millisecond).Received(); n != 0 {
		b.t.Errorf("%s: %d of %d forged frames arrived", when, n, count)
	}
	if n := b.refusals(g).MAC - before.MAC; n != count {
		b.t.Errorf("%s: %d of %d forged frames counted", when, n, count)
	}
}

// refusals are what the guest's first child has dropped, as the kernel has it.
func (b *bench) refusals(g *configs.Guest) (r *netsetup.Refusals) {
	b.t.Helper()
	b.inNamespace(g, func(ns *netsetup.Namespace, rec *record) error {
		refused, _, err := ns.Pinned(rec.Children[0])
		r = &refused
		return err
	})
	return r
}

// lines counts those in the supervisors' log that tell of a change.
func (b *bench) lines(g *configs.Guest, change string) int {
	log, err := os.ReadFile(guestDir(b.base, g.Name).path(fileSupervisorLog))
	b.must(err)
	return strings.Count(string(log), "change="+change)
}

// TestStopGoesOn kills the supervisor in the middle of a stop. The next start
// takes the guest over, finishes the stop, and lets nothing run that had not.
func TestStopGoesOn(t *testing.T) {
	b := newBench(t)
	for _, tt := range []struct {
		name  string
		start func(g *configs.Guest)
		want  Rung
	}{
		{"on the first rung", func(g *configs.Guest) {
			b.mustStart(g, order{})
			go Stop(b.within(30*time.Second), b.base, g.Name) // whose answer dies with the supervisor
			b.waitState(g, StateStopping, 5*time.Second)
			b.killSupervisor(g.Name)
		}, RungQuit},
		{"before the guest ran", func(g *configs.Guest) {
			_, err := b.start(g, order{Fault: fault{"before", "run", "kill self"}})
			if err == nil {
				t.Fatal("the supervisor survived")
			}
			rec := b.record(g)
			rec.Situation.Asked, rec.Situation.Rung = true, RungQuit
			b.must(guestDir(b.base, g.Name).writeRecord(rec))
		}, RungQuit},
		{"at SIGKILL", func(g *configs.Guest) {
			b.mustStart(g, order{Paused: true})
			b.killSupervisor(g.Name)
			rec := b.record(g)
			rec.Situation.Asked, rec.Situation.Rung = true, RungKill
			b.must(guestDir(b.base, g.Name).writeRecord(rec))
		}, RungKill},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := b.rawSpec("ending", "console=ttyS0 quiet vmrun.powerbutton=ignore", nic("bridge"), "[stop]", `timeout = "2s"`)
			tt.start(g)
			if s := b.observe(g); s.Rung == RungNone || s.Supervisor != 0 {
				t.Errorf("without a supervisor: %+v", s)
			}
			report, err := b.startSoon(g.Path)
			if err != nil || !report.Adopted || report.Status.State != StateStopping {
				t.Errorf("the next start: %+v, %v; want it adopted, and stopping", report, err)
			}
			s := b.waitState(g, StateEnded, 20*time.Second)
			if s.Ended.Reason != ReasonStopped || s.Ended.Rung != tt.want {
				t.Errorf("outcome %+v, want stopped by %s", s.Ended, tt.want)
			}
			if rec := b.record(g); rec.Situation.Ran != (tt.name == "on the first rung") {
				t.Errorf("its CPUs ran: %v", rec.Situation.Ran)
			}
			b.clean(tt.name)
		})
	}
}
