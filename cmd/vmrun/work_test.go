package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
	"vmrun/launcher"
)

// lab is a fleet's jobs: web and mail come after db, and top after web.
func lab() []launcher.Job {
	job := func(name string, after ...string) launcher.Job {
		return launcher.Job{Change: launcher.Change{Name: name, State: launcher.StateEnded}, Deed: launcher.DeedStart, After: after}
	}
	return []launcher.Job{job("db"), job("web", "db"), job("mail", "db"), job("top", "web")}
}

// TestWork has jobs succeed, fail and be interrupted, and reads what is said of it.
func TestWork(t *testing.T) {
	running := result{end: "running", words: "running: eth0"}
	broken := result{err: errors.New("no such link")}
	for _, tt := range []struct {
		name  string
		does  map[string]result // running for those that are not there
		ready map[string]error
		same  []string // guests that are as they should be
		stop  string   // the interrupt comes with this one
		stops bool     // the jobs end the guests
		want  string
		said  []string // lines of it
		fails bool
	}{
		{name: "all goes well", want: "4 running; 4 started", said: []string{"db: running: eth0", "top: running: eth0"}},
		{name: "there is nothing to do", same: []string{"db", "web", "mail", "top"}, want: "4 running; nothing was done"},
		{name: "one is there already", same: []string{"db"}, want: "4 running; 3 started"},
		{name: "one fails, and one comes after it", does: map[string]result{"web": broken}, want: "2 running, 1 failed, 1 skipped; 2 started",
			said: []string{"vmrun: web: no such link", "vmrun: top: skipped: it comes after web"}, fails: true},
		{name: "one does not become ready", ready: map[string]error{"db": errors.New("db: timed out")}, want: "1 failed, 3 skipped; 1 started",
			said: []string{"vmrun: db: timed out"}, fails: true},
		{name: "one that is there does not become ready", same: []string{"db"}, ready: map[string]error{"db": errors.New("it is paused")},
			want: "1 failed, 3 skipped; nothing was done", said: []string{"vmrun: db: it is paused"}, fails: true},
		{name: "interrupted", stop: "web", want: "1 running, 1 still stopping, 1 taken back, 1 not begun; 1 started",
			said: []string{"vmrun: interrupted: what is under way comes to an end", "vmrun: interrupted: vmrun up lab.toml goes on from here"}, fails: true},
		{name: "what is stopped does not become ready", stops: true, ready: map[string]error{"db": errors.New("db: timed out")}, want: "4 stopped"},
		{name: "interrupted in a wait", stop: "db's readiness", want: "1 running, 3 not begun; 1 started", fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			jobs := lab()
			for i := range jobs {
				if tt.stops {
					jobs[i].Deed = launcher.DeedStop
				}
				if slices.Contains(tt.same, jobs[i].Name) {
					jobs[i].Deed, jobs[i].State = launcher.DeedNone, launcher.StateRunning
				}
			}
			var err error
			out := printed(t, func() {
				w := (&app{}).newWork("up", "lab.toml", true, jobs)
				w.do = func(ctx context.Context, j launcher.Job) result {
					if j.Name == tt.stop {
						interrupt()
					}
					if tt.stop == "web" && j.Name != "db" {
						<-ctx.Done()
						return result{end: map[string]string{"mail": endStopping}[j.Name], err: ctx.Err()}
					}
					if r, ok := tt.does[j.Name]; ok {
						return r
					}
					if tt.stops {
						return result{end: endStopped, words: "stopped (quit)"}
					}
					return running
				}
				w.ready = func(ctx context.Context, j launcher.Job) error {
					if tt.stop == j.Name+"'s readiness" {
						interrupt()
						<-ctx.Done()
						return ctx.Err()
					}
					return tt.ready[j.Name]
				}
				w.run(ctx, launcher.NewSchedule(jobs, 2, false))
				err = w.end()
			})
			summary := regexp.MustCompile(`(?m)^lab\.toml: (.*?)(?: in \ds)?$`).FindStringSubmatch(out)
			if summary == nil || summary[1] != tt.want {
				t.Errorf("summary %q, want %q", summary, tt.want)
			}
			for _, line := range tt.said {
				if !slices.Contains(strings.Split(out, "\n"), line) {
					t.Errorf("no %q in:\n%s", line, out)
				}
			}
			if (err != nil) != tt.fails {
				t.Errorf("ends with %v", err)
			}
		})
	}
}

func TestFrame(t *testing.T) {
	now := time.Now()
	p := &progress{title: "up lab.toml", pen: asciiPen, begun: now.Add(-12 * time.Second)}
	add := func(n int, state itemState, doing, failed string) {
		for range n {
			p.items = append(p.items, &item{name: fmt.Sprintf("node%02d", len(p.items)+1), state: state, doing: doing, failed: failed, since: now.Add(-2 * time.Second)})
		}
	}
	add(10, itemDone, "", "")
	add(2, itemActive, "starting", "")
	add(1, itemFailed, "", "lab.toml:3: no\x1b[2J link")
	add(1, itemSkipped, "", "node14: skipped")
	add(6, itemWaits, "", "")
	want := []string{
		"up lab.toml: 10 of 20, 2 under way, 1 failed, 1 skipped  12s",
		"  " + strings.Repeat("#", 22) + strings.Repeat(".", 16), // 10 and 2 of 20
		"  node11  starting  2s",
		"  node12  starting  2s",
		`! lab.toml:3: no\x1b[2J link`,
	}
	got := p.frame(40, 24, now)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	add(28, itemActive, "stopping", "")
	add(9, itemFailed, "", "it does not answer")
	got = p.frame(80, 24, now)
	if len(got) != 23 || got[2] != "  node11  starting  2s" || got[12] != "  and 20 more" || got[22] != "! it does not answer" {
		t.Errorf("%d lines, where 30 are under way and 10 have failed:\n%s", len(got), strings.Join(got, "\n"))
	}
	for height := range 30 {
		if n := len(p.frame(80, height, now)); n > max(height-1, 4) {
			t.Errorf("%d lines on a terminal of %d", n, height)
		}
	}
}

// A terminal is left as it was: with the lines that stay, and its cursor.
func TestProgressOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	out := onTerminal(t, func() {
		p := newProgress("up lab.toml", []string{"web1", "web2"}, false)
		p.begin("web1", "starting")
		time.Sleep(3 * frameTime)
		p.finish("web1", "running")
		p.fail("web2", errors.New("web2: no"), false)
		p.end()
		say("lab.toml: 1 running, 1 failed")
	})
	for _, want := range []string{"up lab.toml: 0 of 2, 1 under way", "  web1  starting  0s", "\x1b[Jlab.toml: 1 running, 1 failed\r\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	if strings.Contains(out, "\x1b[?25l") {
		t.Errorf("the cursor is hidden: %q", out)
	}
	if n := strings.Count(out, "under way"); n != 1 {
		t.Errorf("drawn %d times, with nothing new to show: %q", n, out)
	}
}

func TestPrintChanges(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	out := printed(t, func() {
		printChanges([]launcher.Change{
			{Name: "a", Kind: launcher.ChangeNone, State: launcher.StateRunning},
			{Name: "b", Kind: launcher.ChangeStart, State: launcher.StateEnded},
			{Name: "c", Kind: launcher.ChangeStart, State: launcher.StateEnded, Why: "the guest powered itself off"},
			{Name: "d", Kind: launcher.ChangeStart, State: launcher.StateStopping},
			{Name: "e", Kind: launcher.ChangeAdopt, State: launcher.StateRunning, Orphan: true},
			{Name: "f", Kind: launcher.ChangeRecreate, State: launcher.StateRunning, Differences: []configs.Difference{{Key: "memory", Before: `"1GiB"`, After: `"2GiB"`}, {Key: "nic[0].mtu", After: "1400"}}},
			{Name: "g", Kind: launcher.ChangeRemove, State: launcher.StatePaused},
			{Name: "h", Kind: launcher.ChangeSilent, State: launcher.StateUnresponsive, Why: "QEMU does not answer"},
		}, asciiPen)
	})
	want := `+ b: is started
+ c: is started again; it ended: the guest powered itself off
+ d: it is stopping, and is started after that
+ e: running without a supervisor: is adopted
~ f: running with an older spec: is restarted with --recreate
    memory: "1GiB" -> "2GiB"
    nic[0].mtu: unset -> 1400
- g: paused, and not in the file any more: is stopped with --prune
! h: QEMU does not answer
= 1 unchanged
`
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A guest is found by its name in whichever of the files has it.
func TestFindInFleets(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"broken": "[[guest", "one": "boot.kernel = \"k\"\n",
		"lab": "[defaults]\nboot.kernel = \"k\"\n[[guest]]\nname = \"node%d\"\ncount = 2\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name+".toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if g := findInFleets(dir, "node2"); g == nil || g.Path != filepath.Join(dir, "lab.toml") {
		t.Errorf("node2: %+v", g)
	}
	if g := findInFleets(dir, "node3"); g != nil {
		t.Errorf("node3: %+v", g)
	}
}
