package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/launcher"
	"vmrun/qmp"
)

// hostile is what a guest would have printed: it clears a screen, writes to a
// clipboard, turns the text round, and makes up lines.
const hostile = "\x1b[2J\x1b]52;c;ZXZpbA==\a\u009b31m\u202eabc\u2066\x7f\x00\b\r\t\v\u2028\u200b\U000e0041\nFORGED\r\nFORGED"

// rawHostile has what no text in JSON can have.
const rawHostile = hostile + "\x9b31m\xff\x1b[\x1bP"

// checkClean wants nothing but printable lines, none of them made up.
func checkClean(t *testing.T, what, out string) {
	t.Helper()
	for i, r := range out {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			continue
		}
		t.Errorf("%s: %q is printed in %q", what, r, out[max(0, i-20):min(len(out), i+20)])
		return
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(strings.TrimPrefix(strings.TrimSpace(line), "vmrun: "), "FORGED") {
			t.Errorf("%s: a line is made up:\n%s", what, out)
		}
	}
}

// poison puts text into every string that v leads to, at least one of each kind,
// and into the zone of every address.
func poison(v reflect.Value, text string) {
	switch {
	case v.Type() == reflect.TypeFor[netip.Addr]():
		v.Set(reflect.ValueOf(netip.MustParseAddr("fe80::1").WithZone(text)))
		return
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(1, 0)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		poison(v.Elem(), text)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				poison(v.Field(i), text)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		if v.Type() != reflect.TypeFor[[]launcher.Parent]() { // of which a tree has no end
			poison(v.Index(0), text)
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		poison(key, text)
		poison(value, text)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	}
}

// poisoned is a T full of text.
func poisoned[T any](text string) T {
	var v T
	poison(reflect.ValueOf(&v).Elem(), text)
	return v
}

// printed is all that fn writes.
func printed(t *testing.T, fn func()) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stdout, stderr := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = f, f
	defer func() { os.Stdout, os.Stderr = stdout, stderr }()
	fn()
	out, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Whatever is put into any text of a status, finding, outcome or error, the
// output of the function that prints it is text and lines.
func TestPrintersAreSafe(t *testing.T) {
	status := poisoned[launcher.Status](rawHostile)
	ended := status
	ended.State = launcher.StateEnded
	alive := status
	alive.Ended, alive.Supervisor = nil, 1
	outcome := poisoned[launcher.Outcome](rawHostile)
	parent := poisoned[launcher.Parent](rawHostile)
	parent.VLANs = []launcher.Parent{poisoned[launcher.Parent](rawHostile)}
	a := &app{}
	cmd := a.statusCmd()
	fail := func(err error) func() { return func() { a.fail(cmd, err) } }
	refused := &qmp.Error{Class: qmp.ClassGeneric, Desc: rawHostile}
	for _, tt := range []struct {
		name  string
		print func()
	}{
		{"ps", func() { printGuests([]launcher.Status{status, ended}) }},
		{"status", func() { printStatus(os.Stdout, status) }},
		{"status, alive", func() { printStatus(os.Stdout, alive) }},
		{"status, ended", func() { printStatus(os.Stdout, ended) }},
		{"nic", func() { printNICs(os.Stdout, status) }},
		{"ip", func() { printAddresses(os.Stdout, poisoned[[]launcher.GuestAddress](rawHostile)) }},
		{"stats", func() { printStats(os.Stdout, poisoned[[]guestStats](rawHostile)) }},
		{"tree", func() { printTree(os.Stdout, []launcher.Parent{parent}, unicodePen) }},
		{"tree --dot", func() { printDot(os.Stdout, []launcher.Parent{parent}) }},
		{"doctor", func() { printFindings(poisoned[[]launcher.Finding](rawHostile)) }},
		{"plan", func() {
			printChanges([]launcher.Change{{Name: rawHostile, Kind: launcher.ChangeStart, State: launcher.StateEnded, Why: rawHostile,
				Differences: poisoned[[]configs.Difference](rawHostile)}}, unicodePen)
		}},
		{"start", func() { printReport(poisoned[launcher.Report](rawHostile)) }},
		{"run", func() { judge("web1", outcome) }},
		{"supervisor's log", func() {
			newLogger(os.Stderr).With(rawHostile, rawHostile).Warn(rawHostile, "error", errors.New(rawHostile), "data", map[string]any{rawHostile: rawHostile})
		}},
		{"JSON", func() { printJSON(status) }},
		{"JSON as it came", func() { printJSON(json.RawMessage(`"` + "\u009b\x9b\x7f\u202e\U000e0041" + `"`)) }},
		{"QMP's refusal", fail(explain("web1", refused))},
		{"QMP's refusal, wrapped and joined", fail(errors.Join(explain("web1", fmt.Errorf("stop: %w", refused)), errors.New("x")))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := printed(t, tt.print)
			checkClean(t, tt.name, out)
			if out == "" || strings.Count(out, `FORGED`)+strings.Count(out, `\u009b`) == 0 {
				t.Errorf("the test does not test: %q", out)
			}
		})
	}
	// An error has lines of its own, and QEMU's log in it begins with tabs.
	told := "web1: QEMU ended with status 1 before it greeted: \x1b[2J\n\tqemu: \u202e\x1b]0;x\a\nand more"
	want := `vmrun: web1: QEMU ended with status 1 before it greeted: \x1b[2J` + "\n\t" + `qemu: \u202e\x1b]0;x\a` + "\nvmrun: and more\n"
	if out := printed(t, fail(&launcher.StartError{Kind: launcher.KindFailed, Msg: told})); out != want {
		t.Errorf("printed %q\nwant %q", out, want)
	}
}

// What was escaped for the eye is the same for a program.
func TestJSONStaysTheSame(t *testing.T) {
	var out bytes.Buffer
	if err := writeJSON(&out, map[string]string{"x": hostile}, ""); err != nil {
		t.Fatal(err)
	}
	checkClean(t, "JSON", out.String())
	var back map[string]string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back["x"] != hostile {
		t.Errorf("%q, %v", back["x"], err)
	}
	if strings.Count(out.String(), "\n") != 1 {
		t.Errorf("not one line: %q", out.String())
	}
}

func TestWriteLog(t *testing.T) {
	for _, tt := range []struct{ name, log, want string }{
		{"plain", "a\tb\nü €\n", "a\tb\nü €\n"},
		{"colours", "[\x1b[0;32m  OK  \x1b[0m] Started\r\n", "[  OK  ] Started\n"},
		{"movements", "\x1b[2J\x1b[1;1H\x1b[?25l\x1b[!plogin: ", "login: "},
		{"carriage returns", "10%\r20%\r\r\n\rx", `10%\r20%` + "\n" + `\rx`},
		{"clipboard", "\x1b]52;c;eA==\a", `\x1b]52;c;eA==\a`},
		{"device control", "\x1bP+q\x1b\\", `\x1bP+q\x1b\`},
		{"eight-bit control", "\u009b2J\x9b2J\u009d0;x", `\u009b2J` + "\ufffd" + `2J\u009d0;x`},
		{"other directions", "a\u202eb\u2066c\u200f", `a\u202eb\u2066c\u200f`},
		{"cut short", "\x1b[0;3", `\x1b[0;3`},
		{"escape in the end", "x\x1b", `x\x1b`},
		{"escape in a sequence", "\x1b[3\x1b[0mx", `\x1b[3x`},
		{"longer than any", "\x1b[" + strings.Repeat("1", maxSequence) + "m", `\x1b[` + strings.Repeat("1", maxSequence) + "m"},
		{"across reads", strings.Repeat("x", 4094) + "\x1b[0m€\r\n", strings.Repeat("x", 4094) + "€\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if err := writeLog(&out, strings.NewReader(tt.log)); err != nil || out.String() != tt.want {
				t.Errorf("%q, %v\nwant %q", out.String(), err, tt.want)
			}
		})
	}
}

// serveHostile stands for the supervisor of a guest, web1, of which nothing is
// to be believed, and returns the directory of the run directories.
func serveHostile(t *testing.T) string {
	base := t.TempDir()
	dir := filepath.Join(base, "web1")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	state := `{"version":2,"boot_id":"x","guest":{"Name":"web1","Path":"/srv/web1.toml"},"committed":true}`
	for file, text := range map[string]string{"state": state, "supervisor.log": rawHostile, "qemu.log": rawHostile, "console.log": rawHostile, "lock": ""} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if err == nil {
		err = unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	listener, err := net.Listen("unix", filepath.Join(dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := qmp.NewServer(qmp.Version{}, func(_ context.Context, req qmp.Request) (any, error) {
		switch req.Command {
		case launcher.CommandStatus:
			return poisoned[launcher.Status](hostile), nil
		case launcher.CommandStats:
			return poisoned[launcher.Stats](hostile), nil
		case launcher.CommandStop, launcher.CommandKill:
			return poisoned[launcher.Outcome](hostile), nil
		case launcher.CommandAttach, launcher.CommandSet:
			return poisoned[launcher.NICStatus](hostile), nil
		case "query-x":
			return map[string]string{"x": hostile}, nil
		}
		return nil, &qmp.Error{Class: qmp.ClassGeneric, Desc: hostile}
	}, nil)
	done := make(chan error, 1)
	go func() { done <- server.Serve(context.Background(), listener) }()
	stop := make(chan struct{})
	go func() { // whoever listens hears of it, sooner or later
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				server.Broadcast(qmp.Event{Event: hostile, Data: map[string]any{hostile: hostile}})
			}
		}
	}()
	t.Cleanup(func() { close(stop); server.Close(); <-done })
	return base
}

// Every verb that shows something of a guest is typed, with a supervisor that
// says the worst.
func TestVerbsAreSafe(t *testing.T) {
	base := serveHostile(t)
	for _, args := range [][]string{
		{"ps"}, {"ps", "--json"}, {"status", "web1"}, {"status", "--json", "web1"}, {"nic", "web1"}, {"nic", "--json", "web1"},
		{"nic", "web1", "attach", "parent=eth0"}, {"nic", "web1", "set", "net0", "link=up"}, {"nic", "web1", "detach", "net0"},
		{"ip", "web1"}, {"ip", "--all", "--json", "web1"}, {"stats", "web1"}, {"stats", "--json", "web1"}, {"metrics"}, {"tree", "--interval=0"},
		{"tree", "--dot", "--interval=0"}, {"pause", "web1"}, {"resume", "web1"}, {"stop", "web1"}, {"kill", "web1"},
		{"qmp", "web1", "query-x"}, {"qmp", "web1", "quit"}, {"wait", "--for=stopped", "--timeout=100ms", "web1"},
		{"__complete", "stop", ""}, {"__complete", "nic", "web1", "detach", ""},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			out := printed(t, func() { run(append([]string{"--run-dir", base}, args...)) })
			checkClean(t, "output", out)
			if out == "" {
				t.Error("nothing was printed")
			}
		})
	}
	for _, args := range [][]string{
		{"events", "--follow", "web1"}, {"events", "--follow", "--json", "web1"}, {"events", "--follow"}, {"ps", "--watch"}, {"ps", "--watch", "--json"},
		{"stats", "--watch", "--interval=100ms", "--json"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			a := &app{usage: true}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			out := printed(t, func() {
				root := a.root()
				root.SetArgs(append([]string{"--run-dir", base}, args...))
				if err := root.ExecuteContext(ctx); err != nil {
					t.Error(err)
				}
			})
			checkClean(t, "output", out)
			if !strings.Contains(out, "FORGED") {
				t.Errorf("the test does not test: %q", out)
			}
		})
	}
}

// A terminal is shown a log's text; a file gets all of it.
func TestLogsOnATerminal(t *testing.T) {
	base := serveHostile(t)
	for _, which := range []string{"", "--qemu", "--console"} {
		t.Run("logs "+which, func(t *testing.T) {
			args := []string{"--run-dir", base, "logs", "web1"}
			if which != "" {
				args = append(args, which)
			}
			if out := printed(t, func() { run(args) }); out != rawHostile {
				t.Errorf("a file got %q", out)
			}
			out := onTerminal(t, func() { run(args) })
			for _, r := range strings.NewReplacer("\r\n", "", "\t", "").Replace(out) {
				if !unicode.IsPrint(r) {
					t.Errorf("%q came to the terminal: %q", r, out)
				}
			}
			if !strings.Contains(out, `\x1b]52;c;`) {
				t.Errorf("the terminal got %q", out)
			}
		})
	}
}

// onTerminal is what fn writes to its standard output, a terminal.
func onTerminal(t *testing.T, fn func()) string {
	t.Helper()
	far, near := openTerminal(t)
	read := make(chan string)
	go func() {
		all, _ := io.ReadAll(far) // it ends with EIO when the near end is closed (pty(7))
		read <- string(all)
	}()
	stdout := os.Stdout
	os.Stdout = near
	fn()
	os.Stdout = stdout
	near.Close()
	return <-read
}

// openTerminal makes a terminal: the end where somebody types and reads, and the
// programs' end.
func openTerminal(t *testing.T) (far, near *os.File) {
	t.Helper()
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	n, err := unix.IoctlGetInt(int(far.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(far.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	near, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return far, near
}
