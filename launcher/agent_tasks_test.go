package launcher

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"vmrun/configs"
)

// scriptedAgent stands in for an agent, and for QEMU's end of its channel.
type scriptedAgent struct {
	t      *testing.T
	life   *life
	answer func(command, arguments string) string // a line, or "" for none

	mu    sync.Mutex
	heard []string // commands, with their arguments
}

// newScriptedAgent is one that has its port open, in a guest that runs.
func newScriptedAgent(t *testing.T, answer func(command, arguments string) string) *scriptedAgent {
	l := newLife(&configs.Guest{Name: "guest"}, Options{RunDir: t.TempDir()})
	if err := l.takeName(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.lock.Close() })
	l.rec = record{Version: recordVersion, Guest: l.guest(), Committed: true, Situation: situation{Ran: true}}
	listener, err := listenUnix(l.dir.path(fileAgent))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	l.nics.agent.looked, l.nics.agent.opened = true, true
	s := &scriptedAgent{t: t, life: l, answer: answer}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.serve(conn)
			conn.Close()
		}
	}()
	return s
}

func (s *scriptedAgent) serve(conn io.ReadWriter) {
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var request struct {
			Execute   string
			Arguments json.RawMessage
		}
		if json.Unmarshal(bytes.TrimPrefix(line, []byte{agentEnd}), &request) != nil {
			s.t.Errorf("asked %q", line)
			return
		}
		if request.Execute == "guest-sync-delimited" {
			var sync struct{ ID int64 }
			json.Unmarshal(request.Arguments, &sync)
			fmt.Fprintf(conn, "%s{\"return\": %d}\n", []byte{agentEnd}, sync.ID)
			continue
		}
		s.mu.Lock()
		s.heard = append(s.heard, strings.TrimSpace(request.Execute+" "+string(request.Arguments)))
		s.mu.Unlock()
		io.WriteString(conn, s.answer(request.Execute, string(request.Arguments)))
	}
}

// commands are those that were heard so far, without their arguments.
func (s *scriptedAgent) commands() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, h := range s.heard {
		command, _, _ := strings.Cut(h, " ")
		list = append(list, strings.TrimPrefix(command, "guest-"))
	}
	return strings.Join(list, " ")
}

const agentNo = `{"error": {"class": "GenericError", "desc": "no \u001b such thing"}}` + "\n"

func TestWhileFrozen(t *testing.T) {
	errAct := errors.New("act")
	for _, test := range []struct {
		name   string
		freeze string // the answer to it
		thaw   string
		act    error
		paused bool
		want   Freeze
		err    string
		left   bool // frozen, for all that is known
		heard  string
	}{
		{"as it should be", `{"return": 2}`, `{"return": 2}`, nil, false, Freeze{FileSystems: 2}, "", false, "fsfreeze-freeze act fsfreeze-thaw"},
		{"act fails", `{"return": 2}`, `{"return": 2}`, errAct, false, Freeze{FileSystems: 2}, "act", false, "fsfreeze-freeze act fsfreeze-thaw"},
		{"not thawed", `{"return": 2}`, agentNo, nil, false, Freeze{FileSystems: 2}, "", true, "fsfreeze-freeze act fsfreeze-thaw"},
		{"refused", agentNo, "", nil, false, Freeze{Why: "the agent in the guest refuses: no ? such thing"}, "", false, "fsfreeze-freeze act"},
		{"nonsense", "x", "", nil, false, Freeze{Why: errAgentNonsense.Error()}, "freeze: " + errAgentNonsense.Error(), true, "fsfreeze-freeze"},
		{"paused", "", "", nil, true, Freeze{Why: errAgentPaused.Error()}, "", false, "act"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var s *scriptedAgent
			s = newScriptedAgent(t, func(command, _ string) string {
				if rec, err := s.life.dir.readRecord(); command == "guest-fsfreeze-freeze" && (err != nil || !rec.Frozen) {
					t.Errorf("it is frozen before that is written down: %v", err)
				}
				return map[string]string{"guest-fsfreeze-freeze": test.freeze, "guest-fsfreeze-thaw": test.thaw}[command] + "\n"
			})
			s.life.rec.Situation.Paused = test.paused
			got, err := s.life.whileFrozen(t.Context(), func(context.Context) error {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.heard = append(s.heard, "act")
				return test.act
			})
			text := ""
			if err != nil {
				text = err.Error()
			}
			if got != test.want || text != test.err || s.commands() != test.heard || s.life.snapshot().Frozen != test.left {
				t.Errorf("got %+v, %q, heard %q, frozen %v", got, text, s.commands(), s.life.snapshot().Frozen)
			}
		})
	}
}

// TestThawed has a supervisor find a guest that its predecessor has frozen, and an
// agent that does not thaw it at once.
func TestThawed(t *testing.T) {
	tries := 0
	s := newScriptedAgent(t, func(command, _ string) string {
		if command != "guest-fsfreeze-thaw" {
			return agentNo
		}
		if tries++; tries == 1 {
			return agentNo
		}
		return `{"return": 1}` + "\n"
	})
	s.life.rec.Frozen = true
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.life.nics.agent.run(ctx); close(done) }()
	for deadline := time.Now().Add(5 * time.Second); s.life.snapshot().Frozen && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	<-done
	if heard := s.commands(); s.life.snapshot().Frozen || !strings.HasPrefix(heard, "fsfreeze-thaw fsfreeze-thaw") {
		t.Errorf("frozen %v, heard %q", s.life.snapshot().Frozen, heard)
	}
	if rec, err := s.life.dir.readRecord(); err != nil || rec.Frozen {
		t.Errorf("it is written down as frozen still: %v", err)
	}
}

func TestKeepTime(t *testing.T) {
	for _, test := range []struct {
		name   string
		behind time.Duration
		set    string // the answer to guest-set-time
		left   bool   // it is to be tried again
		heard  string
	}{
		{"right", time.Millisecond, "", false, "get-time"},
		{"ahead", -time.Hour, "", false, "get-time"},
		{"behind", time.Hour, `{"return": {}}` + "\n", false, "get-time set-time"},
		{"refused", time.Hour, agentNo, false, "get-time set-time"},
		{"nonsense", time.Hour, "x\n", true, "get-time set-time"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScriptedAgent(t, func(command, arguments string) string {
				if command == "guest-get-time" {
					return fmt.Sprintf(`{"return": %d}`+"\n", time.Now().Add(-test.behind).UnixNano())
				}
				var set struct{ Time int64 }
				json.Unmarshal([]byte(arguments), &set)
				if off := time.Since(time.Unix(0, set.Time)).Abs(); off > time.Second {
					t.Errorf("set to a time that is off by %v", off)
				}
				return test.set
			})
			a := s.life.nics.agent
			a.clockStood()
			a.keepTime(t.Context())
			if got := s.commands(); got != test.heard || a.stood.IsZero() == test.left {
				t.Errorf("heard %q, to be tried again: %v", got, !a.stood.IsZero())
			}
			if test.left {
				a.stood = a.stood.Add(-clockWait)
				if a.keepTime(t.Context()); !a.stood.IsZero() {
					t.Error("tried for ever")
				}
			}
		})
	}
}

// TestPowerDown has agents of all kinds told to power their guests down.
func TestPowerDown(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer string
		taken  bool
		err    string
		atMost time.Duration
	}{
		{"without a word", "", true, "<nil>", agentTimeout + agentPatience + time.Second},
		{"refused", agentNo, true, "the agent in the guest refuses: no ? such thing", time.Second},
		{"nonsense", "x\n", true, "<nil>", time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newScriptedAgent(t, func(string, string) string { return test.answer })
			taken, began := false, time.Now()
			err := s.life.nics.agent.powerDown(t.Context(), func() { taken = true })
			if fmt.Sprint(err) != test.err || taken != test.taken || time.Since(began) > test.atMost {
				t.Errorf("%v, taken %v, after %v", err, taken, time.Since(began))
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if want := `guest-shutdown {"mode":"powerdown"}`; len(s.heard) != 1 || s.heard[0] != want {
				t.Errorf("heard %q", s.heard)
			}
		})
	}
	t.Run("hangs", func(t *testing.T) {
		s := newScriptedAgent(t, func(string, string) string { time.Sleep(3 * time.Second); return "" })
		go s.life.nics.agent.interfaces(t.Context())
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		err := s.life.nics.agent.powerDown(t.Context(), func() { t.Error("taken") })
		if took := time.Since(began); err == nil || took > agentPatience {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// TestExec has agents of all kinds run a command.
func TestExec(t *testing.T) {
	done := func(fields string) string { return `{"return": {"exited": true` + fields + "}}\n" }
	for _, test := range []struct {
		name   string
		start  string
		status []string // the answers, of which the last is for all that follow
		limit  int64    // ms
		want   string
	}{
		{"as it should be", `{"return": {"pid": 7}}`, []string{done(`, "exitcode": 3, "out-data": "b3V0", "err-data": "ZXJy"`)}, 0, `3 0 "out" "err" false`},
		{"not at once", `{"return": {"pid": 7}}`, []string{`{"return": {"exited": false}}`, `{"return": {"exited": false}}`, done("")}, 0, `0 0 "" "" false`},
		{"by a signal", `{"return": {"pid": 7}}`, []string{done(`, "signal": 9`)}, 0, `0 9 "" "" false`},
		{"cut by the agent", `{"return": {"pid": 7}}`, []string{done(`, "out-data": "b3V0", "out-truncated": true`)}, 0, `0 0 "out" "" true`},
		{"refused", agentNo, nil, 0, "VmrunRefused: the agent in the guest refuses: no ? such thing"},
		{"no pid", `{"return": 7}`, nil, 0, errAgentNonsense.Error()},
		{"forgotten", `{"return": {"pid": 7}}`, []string{agentNo}, 0, "the command may go on in the guest, as process 7 there: the agent in the guest refuses: no ? such thing"},
		{"no base64", `{"return": {"pid": 7}}`, []string{done(`, "out-data": "%%%%"`)}, 0,
			"the command may go on in the guest, as process 7 there: " + errAgentNonsense.Error()},
		{"for ever", `{"return": {"pid": 7}}`, []string{`{"return": {"exited": false}}`}, 700,
			"VmrunTimeout: the command may go on in the guest, as process 7 there: timed out"},
		{"shorter than it can be", `{"return": {"pid": 7}}`, []string{`{"return": {"exited": false}}`}, 1,
			"VmrunTimeout: the command may go on in the guest, as process 7 there: timed out"},
		{"never started", "", nil, 300, "VmrunTimeout: timed out"},
		{"silent once it is started", `{"return": {"pid": 7}}`, []string{""}, 300,
			"VmrunTimeout: the command may go on in the guest, as process 7 there: timed out"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.limit > 0 {
				began := time.Now()
				defer func() {
					if took := time.Since(began); took > 5*time.Second {
						t.Errorf("took %v, and may take %d ms", took, test.limit)
					}
				}()
			}
			polls := 0
			s := newScriptedAgent(t, func(command, _ string) string {
				if command == "guest-exec" && test.start == "" {
					return ""
				}
				if command == "guest-exec" {
					return test.start + "\n"
				}
				if polls++; test.status[0] == "" {
					return ""
				}
				return test.status[min(polls, len(test.status))-1] + "\n"
			})
			s.life.qemu = &process{done: make(chan struct{})}
			args, err := json.Marshal(ExecArguments{Command: []string{"ls", "-l"}, Env: []string{"A=b"}, Input: []byte("in"), TimeoutMS: test.limit})
			if err != nil {
				t.Fatal(err)
			}
			result, err := s.life.serveExec(t.Context(), args)
			got := fmt.Sprint(err)
			if r, ok := result.(ExecResult); ok && err == nil {
				got = fmt.Sprintf("%d %d %q %q %v", r.Status, r.Signal, r.Out, r.Err, r.Truncated)
			}
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			want := `guest-exec {"path":"ls","arg":["-l"],"env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","A=b"],"input-data":"aW4=","capture-output":true}`
			if len(s.heard) == 0 || s.heard[0] != want {
				t.Errorf("heard %q", s.heard)
			}
		})
	}
}

// TestExecOutput has a command write more than is kept.
func TestExecOutput(t *testing.T) {
	text := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{'x'}, MaxExecOutput+1000))
	line := `{"return": {"exited": true, "exitcode": 1, "out-data": "` + text + `", "err-data": "` + text + `"}}` + "\n"
	c := &conversation{channel: io.Discard, words: bufio.NewReader(strings.NewReader(line))}
	status, err := c.execStatus(7)
	r := status.result(7)
	if err != nil || len(r.Out) != MaxExecOutput || len(r.Err) != MaxExecOutput || !r.Truncated || r.Status != 1 {
		t.Errorf("%v, %d and %d bytes, truncated %v", err, len(r.Out), len(r.Err), r.Truncated)
	}
}

// FuzzAgentExec holds whatever an agent may say of a command to its bounds.
func FuzzAgentExec(f *testing.F) {
	f.Add([]byte(`{"return": {"exited": true, "exitcode": 1, "out-data": "b3V0", "err-truncated": true}}` + "\n"))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "\u001b]0;x\u0007"}}` + "\n"))
	f.Add([]byte(`{"return": {"exited": true, "signal": 1e400}}` + "\n"))
	f.Fuzz(func(t *testing.T, words []byte) {
		c := &conversation{channel: io.Discard, words: bufio.NewReader(bytes.NewReader(words))}
		status, err := c.execStatus(7)
		if err != nil && strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q", err)
		}
		if r := status.result(7); len(r.Out) > MaxExecOutput || len(r.Err) > MaxExecOutput {
			t.Errorf("%d and %d bytes", len(r.Out), len(r.Err))
		}
	})
}

// TestAgentRead cuts what is long, and gives up on what is deep or endless.
func TestAgentRead(t *testing.T) {
	for _, test := range []struct{ name, line, want string }{
		{"as it is", `{"return": {"a": "12345678", "b": [1]}}`, `{"return": {"a": "12345678", "b": [1]}}`},
		{"a long text", `{"a": "123456789", "b": "1"}`, `{"a": "12345678", "b": "1"}`},
		{"quotes", `{"a": "\"\\\"", "b": "123456789"}`, `{"a": "\"\\\"", "b": "12345678"}`},
		{"brackets in a text", `["[[[[[["]`, `["[[[[[["]`},
		{"deep", strings.Repeat("[", maxAgentDepth+1), "error"},
		{"not so deep", strings.Repeat("[]", 40), strings.Repeat("[]", 40)},
		{"endless", strings.Repeat("1", 100), "error"},
	} {
		c := &conversation{words: bufio.NewReader(strings.NewReader(test.line + "\n"))}
		got, err := c.read(100, 8)
		if err != nil {
			got = []byte("error")
		}
		if string(got) != test.want {
			t.Errorf("%s: %s", test.name, got)
		}
	}
}
