package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"vmrun/configs"
	"vmrun/launcher"
)

// manager is the service manager, for a supervisor that is the main process of one
// of its units (sd_notify(3)). nil is none, and hears nothing.
type manager struct {
	conn     *net.UnixConn
	env      []string      // by which it is found
	watchdog time.Duration // how often it wants a sign of life; 0: never

	mu       sync.Mutex // guards what it has been told
	status   string
	ready    bool
	stopping bool
	unsent   []string // messages that it has still to take
}

// newManager finds the service manager by the environment, which nobody inherits.
func newManager() (*manager, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	var env []string
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	watchdog, err := daemon.SdWatchdogEnabled(true)
	os.Unsetenv("NOTIFY_SOCKET")
	if path == "" || err != nil {
		return nil, err
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	return &manager{conn: conn, env: env, watchdog: watchdog}, nil
}

// environment is what a program that goes on in place of this one finds it by.
func (m *manager) environment() []string {
	if m == nil {
		return nil
	}
	return m.env
}

// send tells it something, as one message, and reports whether it took that.
func (m *manager) send(lines ...string) bool {
	m.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, err := m.conn.Write([]byte(strings.Join(lines, "\n")))
	return err == nil
}

// insist tells it what it has to know, and again later when it is too busy now. Such
// words are in messages of their own: of several in one the last alone counts.
func (m *manager) insist(lines ...string) {
	m.unsent = append(m.unsent, strings.Join(lines, "\n"))
	m.repeat()
}

func (m *manager) repeat() {
	for len(m.unsent) > 0 && m.send(m.unsent[0]) {
		m.unsent = m.unsent[1:]
	}
}

// attach has the supervisor of g tell it of the guest.
func (m *manager) attach(g *configs.Guest, opts *launcher.Options) {
	if m == nil {
		return
	}
	m.send("STATUS=starting", extend(startTime(g, opts.WaitParents)))
	opts.MustBeReady, opts.Tell, opts.Reloading = true, m.tell, m.reloading
	if m.watchdog > 0 {
		// A question or two may go unanswered.
		opts.Watchdog, opts.Alive = m.watchdog/4, m.alive
	}
}

// startTime is how long a start may take, or the stop of a guest that has not become
// ready in time.
func startTime(g *configs.Guest, wait time.Duration) time.Duration {
	if bound := launcher.StartBound(g); bound != 0 {
		return wait + bound + launcher.StopBound(g)
	}
	return forever
}

// forever is longer than anybody waits.
const forever = 10 * 365 * 24 * time.Hour

// extend asks for time for what is under way.
func extend(d time.Duration) string { return fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()) }

// tell passes on how the guest is.
func (m *manager) tell(s launcher.Status, g *configs.Guest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.repeat()
	if words := safe(unitWords(s, g)); words != m.status && m.send("STATUS="+words) {
		m.status = words
	}
	if s.Ready && !m.ready {
		m.ready = true
		m.insist(daemon.SdNotifyReady)
	}
	if s.Rung != launcher.RungNone && !m.stopping {
		m.stopping = true
		m.insist(daemon.SdNotifyStopping, extend(launcher.StopBound(g)))
	}
}

// alive tells it that QEMU is.
func (m *manager) alive() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.repeat()
	m.send(daemon.SdNotifyWatchdog)
}

// ended is called when a guest has ended well. For systemd a start that ends before
// it has said that it is ready has failed, and is tried again.
func (m *manager) ended() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ready {
		m.ready = true
		m.insist(daemon.SdNotifyReady)
	}
}

// reloading tells when a reload begins and when it is over. Before the guest is
// ready the one word would be too much, and the other too early.
func (m *manager) reloading(begin bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.ready:
	case begin:
		m.insist(daemon.SdNotifyReloading)
	default:
		m.insist(daemon.SdNotifyReady)
	}
}

// unitWords is the line that systemctl status shows.
func unitWords(s launcher.Status, g *configs.Guest) string {
	addr, known := s.Address()
	switch {
	case s.State == launcher.StateUnresponsive:
		return fmt.Sprintf("%s: %s does not answer", s.State, s.Silent)
	case s.State == launcher.StateStarting && s.Why != "":
		return s.Why
	case s.State != launcher.StateRunning:
		return stateWords(s)
	case !s.Ready:
		return fmt.Sprintf("running, not ready: waiting for %s", g.Ready.Wish())
	case known:
		return fmt.Sprintf("running: %s on %s", addr, nicWords(s.NICs))
	}
	return "running: " + nicWords(s.NICs)
}

// told is an error of which everybody has been told.
type told struct{ error }

func (t told) Unwrap() error { return t.error }

// isTold reports whether there is nothing more to say about an error.
func isTold(err error) bool { return errors.As(err, new(told)) }
