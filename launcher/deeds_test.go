package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"vmrun/launcher/guesttest"
)

func (f *flock) start(m *member) deed {
	return deed{"start", m, func() error {
		report, err := f.bench.start(m.Guest, order{Paused: !m.boots})
		if err == nil && report.Adopted {
			err = errors.New("was adopted")
		}
		if err != nil {
			return err
		}
		m.alive, m.watched = true, true
		if !m.boots {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if m.console, err = guesttest.Dial(ctx, ConsoleSocket(f.base, m.Name)); err == nil {
			_, err = m.console.WaitReady(ctx)
		}
		return err
	}}
}

// adopt starts a guest that lives.
func (f *flock) adopt(m *member) deed {
	return deed{"adopt", m, func() error {
		report, err := f.bench.start(m.Guest, order{})
		m.watched = err == nil
		if err == nil && !report.Adopted {
			err = errors.New("was started anew")
		}
		return err
	}}
}

// end ends a guest by kill, whether or not it is alive and has a supervisor.
func (f *flock) end(m *member) deed {
	return deed{"kill", m, func() error {
		_, err := Kill(context.Background(), f.base, m.Name)
		if !m.alive && KindOf(err) == KindState {
			err = nil
		}
		return errors.Join(err, f.gone(m))
	}}
}

func (f *flock) stop(m *member) deed {
	return deed{"stop", m, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		o, err := Stop(ctx, f.base, m.Name)
		if err == nil && o.Reason != ReasonStopped {
			err = fmt.Errorf("outcome %+v", o)
		}
		return errors.Join(err, f.gone(m))
	}}
}

func (f *flock) killSupervisor(m *member) deed {
	return deed{"kill supervisor", m, func() error { return f.strike(m, true, false) }}
}

func (f *flock) killQEMU(m *member) deed {
	return deed{"kill QEMU", m, func() error { return f.strike(m, false, true) }}
}

func (f *flock) killBoth(m *member) deed {
	return deed{"kill both", m, func() error { return f.strike(m, true, true) }}
}

// strike kills a guest's supervisor, its QEMU or both, as it gets hold of them.
func (f *flock) strike(m *member, supervisor, qemu bool) error {
	dir := guestDir(f.base, m.Name)
	var errs []error
	if qemu {
		p, err := findOrphan(dir)
		if err != nil {
			return err
		}
		errs = append(errs, p.signal(sigKill))
	}
	if pid, watched := dir.supervisor(); supervisor && watched && pid != os.Getpid() {
		if p, err := findProcess(processID{PID: pid}); err == nil {
			errs = append(errs, p.kill())
		}
	}
	if qemu {
		return errors.Join(append(errs, f.gone(m))...)
	}
	m.watched = false
	return errors.Join(append(errs, f.unwatched(m))...)
}

// gone notes that a guest has ended, once nobody looks after it any more.
func (f *flock) gone(m *member) error {
	m.alive, m.watched, m.paused, m.plugged = false, false, false, nil
	f.leave(m)
	return f.unwatched(m)
}

func (f *flock) unwatched(m *member) error {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if _, watched := guestDir(f.base, m.Name).supervisor(); !watched {
			return nil
		}
	}
	return errors.New("its supervisor stays")
}

// view has somebody look at a guest's console, or all those leave.
func (f *flock) view(m *member) deed {
	stay := f.rand.IntN(4) > 0
	return deed{"view", m, func() error {
		if !stay {
			f.leave(m)
			return nil
		}
		conn, err := net.Dial("unix", ConsoleSocket(f.base, m.Name))
		if err == nil {
			m.viewers = append(m.viewers, conn)
		}
		return err
	}}
}

func (f *flock) leave(m *member) {
	for _, conn := range m.viewers {
		conn.Close()
	}
	if m.console != nil {
		m.console.Close()
	}
	m.viewers, m.console = nil, nil
}

// rest makes a guest as it was after its start.
func (f *flock) rest(m *member) {
	f.leave(m)
	if m.paused {
		f.round([]deed{f.pause(m)})
	}
	for len(m.plugged) > 0 && !f.t.Failed() {
		f.round([]deed{f.detach(m)})
	}
}

func (f *flock) pause(m *member) deed {
	return deed{"pause", m, func() error {
		command := "stop"
		if m.paused {
			command = "cont"
		}
		m.paused = !m.paused
		return f.ask(m, command, nil, nil)
	}}
}

func (f *flock) set(m *member) deed {
	words := [][]string{{"link=down"}, {"link=up"}, {"pin=mac"}, {"pin=false"}, {"multicast=all"}, {"bandwidth.outbound=1gbit", "bandwidth.inbound=1gbit"}}[f.rand.IntN(6)]
	return deed{"set", m, func() error { return f.ask(m, CommandSet, NICArguments{Name: "net0", Words: words}, nil) }}
}

func (f *flock) attach(m *member) deed {
	return deed{"attach", m, func() error {
		var n NICStatus
		err := f.ask(m, CommandAttach, NICArguments{Words: hotNIC, Force: true}, &n)
		if err == nil {
			m.plugged = append(m.plugged, n.Name)
		}
		return err
	}}
}

func (f *flock) detach(m *member) deed {
	return deed{"detach", m, func() error {
		name := m.plugged[0]
		m.plugged = m.plugged[1:]
		return f.ask(m, CommandDetach, NICArguments{Name: name}, nil)
	}}
}

func (f *flock) ask(m *member, command string, args, result any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	client, err := Control(ctx, f.base, m.Name)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Execute(ctx, command, args, result)
}

// crowd has several do what does not fit together. Whoever wins, it is one state
// in the end, which is taken over.
func (f *flock) crowd(m *member) deed {
	return deed{"crowd", m, func() error {
		f.leave(m)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for _, act := range []func(){
			func() { f.bench.start(m.Guest, order{Paused: true}) },
			func() { f.bench.start(m.Guest, order{Paused: true}) },
			func() { f.enderFor(ctx, m, "stop") },
			func() { f.enderFor(ctx, m, "kill") },
			func() { f.strike(&member{Guest: m.Guest}, true, false) },
			func() { f.ask(m, CommandAttach, NICArguments{Words: hotNIC, Force: true}, nil) },
			func() { Cleanup(context.Background(), f.base) },
		} {
			wg.Go(act)
		}
		wg.Wait()
		if _, err := Kill(context.Background(), f.base, m.Name); err != nil && KindOf(err) != KindState {
			return err
		}
		return f.gone(m)
	}}
}

const enderEnv = "VMRUN_TEST_END"

func init() {
	children["ender"] = func() error {
		words := strings.Fields(os.Getenv(enderEnv))
		end := Stop
		if words[0] == "kill" {
			end = Kill
		}
		_, err := end(context.Background(), words[1], words[2])
		return err
	}
}

// enderFor has a process of its own stop or kill a guest: one that is in another's
// way, because it has adopted the guest for that, may be ended too.
func (f *flock) enderFor(ctx context.Context, m *member, how string) {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=ender", fmt.Sprintf("%s=%s %s %s", enderEnv, how, f.base, m.Name))
	f.lab.Host.Do(cmd.Run)
}
