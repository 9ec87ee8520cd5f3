package launcher

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"vmrun/configs"
)

// The fakes take QEMU's place: copies of this binary, started as a guest's QEMU,
// whose name says how they behave on the monitor. What a QEMU that is broken, or
// that a guest has broken into, could do to its supervisor cannot be had of a
// real one.
var fakes = map[string]func(*fake){
	"qemu-mute":     func(*fake) {},
	"qemu-babbling": func(f *fake) { f.write("HTTP/1.1 400 Bad Request\r\n\r\n") },
	"qemu-endless": func(f *fake) {
		f.write(`{"QMP": "`)
		for range 100 {
			f.write(strings.Repeat("x", 1<<20))
		}
	},
	"qemu-shy":       func(f *fake) { f.conn.Close() },
	"qemu-dying":     func(*fake) { fmt.Fprintln(os.Stderr, "qemu: out of order"); os.Exit(3) },
	"qemu-deaf":      func(f *fake) { f.write(fakeGreeting) },
	"qemu-confused":  func(f *fake) { f.serve(func(string) string { return `"id": "somebody-elses"` }) },
	"qemu-half-deaf": func(f *fake) { f.falters = "cont"; f.serve(sameID) },
	"qemu-stubborn":  func(f *fake) { f.refuses = true; f.serve(sameID) },
	"qemu-flooding":  func(f *fake) { f.floods = true; f.serve(sameID) },
}

func init() {
	for name, behave := range fakes {
		children[name] = func() error { return runFake(behave) }
	}
}

const fakeGreeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}` + "\r\n"

// fake is a fake QEMU's side of its monitor.
type fake struct {
	conn    net.Conn
	refuses bool   // to quit
	falters string // a command that it does not answer, nor any after it
	floods  bool   // with events

	mu      sync.Mutex // held by whoever writes
	running bool
}

// runFake behaves for as long as it is let, whatever signals come.
func runFake(behave func(*fake)) error {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	number := regexp.MustCompile(`id=monitor,fd=(\d+)`).FindStringSubmatch(strings.Join(os.Args, " "))
	if number == nil {
		return errors.New("no monitor on the command line")
	}
	fd, err := strconv.Atoi(number[1])
	if err != nil {
		return err
	}
	listener, err := net.FileListener(os.NewFile(uintptr(fd), "monitor"))
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		behave(&fake{conn: conn})
		io.Copy(io.Discard, conn) // until the other side leaves
		defer conn.Close()        // after that only its end closes it
	}
}

func (f *fake) write(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	io.WriteString(f.conn, text)
}

func sameID(id string) string { return `"id": ` + id }

// serve answers what a supervisor asks, under the id that it is told.
func (f *fake) serve(as func(id string) string) {
	f.write(fakeGreeting)
	if f.floods {
		// Answers are not to wait behind all that the socket holds, which on a busy
		// machine is much.
		f.conn.(*net.UnixConn).SetWriteBuffer(8 << 10)
		go f.flood()
	}
	in := json.NewDecoder(bufio.NewReader(f.conn))
	for {
		var req struct {
			Execute string
			ID      json.RawMessage
		}
		if in.Decode(&req) != nil || req.Execute == f.falters {
			return
		}
		answer := `"return": {}`
		switch req.Execute {
		case "query-uuid":
			answer = fmt.Sprintf(`"return": {"UUID": %q}`, os.Args[1+slices.Index(os.Args, "-uuid")])
		case "query-status":
			answer = fmt.Sprintf(`"return": {"running": %t, "status": "prelaunch"}`, f.running)
		case "query-rx-filter":
			answer = `"return": [{"main-mac": "02:00:00:00:00:01", "multicast": "none"}]`
		case "query-pci", "query-block":
			answer = `"return": []`
		case "cont":
			f.running = true
			f.write(`{"event": "RESUME", "timestamp": {"seconds": 0, "microseconds": 0}}` + "\n")
		case "quit":
			if !f.refuses {
				f.write("{" + answer + ", " + as(string(req.ID)) + "}\n")
				os.Exit(0)
			}
			answer = `"error": {"class": "GenericError", "desc": "I would rather not"}`
		}
		f.write("{" + answer + ", " + as(string(req.ID)) + "}\n")
	}
}

// flood sends events as fast as they are read, and says on its standard error how
// many it got rid of.
func (f *fake) flood() {
	kinds := []string{
		`"event": "NIC_RX_FILTER_CHANGED", "data": {"name": "net0", "path": "/machine"}`,
		`"event": "BLOCK_IO_ERROR", "data": {"node-name": "disk0", "nospace": false, "action": "report", "reason": "%"}`,
		`"event": "RTC_CHANGE", "data": {"offset": %}`,
		`"event": "WATCHDOG", "data": {"action": "none %"}`,
		`"event": "GUEST_PANICKED", "data": {"action": "run", "info": {"core": %}}`,
	}
	for began, n := time.Now(), 0; ; {
		var block strings.Builder
		for range 100 {
			block.WriteString("{" + strings.ReplaceAll(kinds[n%len(kinds)], "%", strconv.Itoa(n)) + `, "timestamp": {"seconds": 0, "microseconds": 0}}` + "\n")
			n++
		}
		f.write(block.String())
		if n%10_000 == 0 {
			fmt.Fprintf(os.Stderr, "%d events in %v\n", n, time.Since(began).Round(time.Millisecond))
		}
	}
}

// faked is the spec of a guest that has a fake for its QEMU.
func (b *bench) faked(name, behaviour string, lines ...string) *configs.Guest {
	b.t.Helper()
	path, binary := filepath.Join(b.base, behaviour), filepath.Join(b.base, "qemu-fake")
	if _, err := os.Stat(binary); err != nil {
		b.must(os.Chmod(b.base, 0o755)) // or QEMU's user cannot start it
		b.must(os.WriteFile(binary, readFile(b.t, os.Args[0]), 0o755))
	}
	b.must(os.Link(binary, path))
	g := b.spec(name, "", lines...)
	b.rewrite(g, fmt.Sprintf("qemu = %q", path))
	return mustLoad(b.t, g.Path)
}
