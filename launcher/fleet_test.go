package launcher

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
)

const labPath = "/srv/lab.toml"

// labGuest is a guest of the file lab.toml.
func labGuest(name string, memory configs.Size, after ...string) *configs.Guest {
	return &configs.Guest{Path: labPath, Name: name, CPUs: 1, Memory: memory, After: after}
}

func runs(g *configs.Guest, state State, supervisor int) existing {
	return existing{Status{Name: g.Name, State: state, PID: 100, Supervisor: supervisor}, g, g.Path == labPath}
}

func TestChanges(t *testing.T) {
	lab := &configs.Fleet{Path: labPath, Guests: []*configs.Guest{labGuest("db", 1<<30), labGuest("web", 1<<30, "db")}}
	elsewhere := labGuest("web", 1<<30)
	elsewhere.Path = "/srv/web.toml"
	killed := runs(labGuest("web", 1<<30), StateEnded, 0)
	killed.Ended = &Outcome{Reason: ReasonOOM, Detail: "the kernel killed it"}
	silent := runs(labGuest("web", 1<<30), StateUnresponsive, 7)
	silent.Silent = silentQEMU
	db := runs(labGuest("db", 1<<30), StateRunning, 7)
	for _, tt := range []struct {
		name  string
		there []existing
		want  string // of each guest: NAME KIND, with a * where nobody looks after it
		why   string // of the last
	}{
		{"nothing is there", nil, "db start, web start", ""},
		{"all are", []existing{db, runs(labGuest("web", 1<<30, "db"), StateRunning, 8)}, "db unchanged, web unchanged", ""},
		{"one has ended", []existing{db, killed}, "db unchanged, web start", "the kernel killed it"},
		{"one has lost its supervisor", []existing{db, runs(labGuest("web", 1<<30), StateRunning, 0)}, "db unchanged, web adopt*", ""},
		{"one is paused", []existing{db, runs(labGuest("web", 1<<30), StatePaused, 8)}, "db unchanged, web unchanged", ""},
		{"one waits for its restart", []existing{db, runs(labGuest("web", 1<<30), StateRestarting, 8)}, "db unchanged, web unchanged", ""},
		{"one is being started", []existing{db, {Status{Name: "web", State: StateStarting, Supervisor: 8}, nil, false}}, "db unchanged, web unchanged", ""},
		{"one was half started", []existing{db, {Status{Name: "web", State: StateStarting}, nil, false}}, "db unchanged, web start*", ""},
		{"one is stopping", []existing{db, runs(labGuest("web", 1<<30), StateStopping, 8)}, "db unchanged, web start", ""},
		{"another spec", []existing{db, runs(labGuest("web", 1<<29), StateRunning, 8)}, "db unchanged, web recreate", ""},
		{"another spec, and no supervisor", []existing{db, runs(labGuest("web", 1<<29), StateRunning, 0)}, "db unchanged, web recreate*", ""},
		{"comes after others now", []existing{db, runs(labGuest("web", 1<<30, "x"), StateRunning, 8)}, "db unchanged, web unchanged", ""},
		{"from another file", []existing{db, runs(elsewhere, StateRunning, 8)}, "db unchanged, web foreign", "it runs from /srv/web.toml: "},
		{"was from another file", []existing{db, runs(elsewhere, StateEnded, 0)}, "db unchanged, web start", ""},
		{"does not answer", []existing{db, silent}, "db unchanged, web silent", "QEMU does not answer: vmrun stop --force web"},
		{"dropped", []existing{db, runs(labGuest("old", 1<<30), StateRunning, 0)}, "db unchanged, web start, old remove*", ""},
		{"dropped, and has ended", []existing{db, runs(labGuest("old", 1<<30), StateEnded, 0)}, "db unchanged, web start", ""},
		{"of no concern", []existing{db, runs(&configs.Guest{Path: "/srv/x.toml", Name: "x"}, StateRunning, 9)}, "db unchanged, web start", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var words []string
			list := changes(lab, tt.there)
			for _, c := range list {
				word := c.Name + " " + string(c.Kind)
				if c.Orphan {
					word += "*"
				}
				words = append(words, word)
			}
			if diff := cmp.Diff(tt.want, strings.Join(words, ", ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if last := list[len(list)-1]; !strings.HasPrefix(last.Why, tt.why) {
				t.Errorf("why: %q, want %q", last.Why, tt.why)
			}
		})
	}
}

func TestJobs(t *testing.T) {
	lab := &configs.Fleet{Path: labPath, Guests: []*configs.Guest{
		labGuest("db", 2<<30), labGuest("web", 1<<30, "db"), labGuest("cache", 1<<30, "web"), labGuest("mail", 1<<30)}}
	list := changes(lab, []existing{
		runs(labGuest("db", 1<<30), StateRunning, 7), runs(labGuest("web", 1<<30), StateRunning, 0), runs(labGuest("mail", 1<<30), StateUnresponsive, 8),
		runs(labGuest("old1", 1<<30), StateRunning, 9), runs(labGuest("old2", 1<<30, "old1"), StateRunning, 9),
	})
	words := func(jobs []Job) string {
		var words []string
		for _, j := range jobs {
			words = append(words, strings.TrimSpace(j.Name+" "+string(j.Deed))+strings.TrimSuffix("<"+strings.Join(j.After, "<"), "<"))
		}
		return strings.Join(words, ", ")
	}
	for _, tt := range []struct {
		name        string
		opts        UpOptions
		stops, rest string
	}{
		{"as it is", UpOptions{}, "", "db, web adopt, cache start<web, mail refuse"},
		{"with --recreate", UpOptions{Recreate: true}, "", "db recreate, web adopt, cache start<web, mail refuse"},
		{"with --prune", UpOptions{Prune: true}, "old2 stop, old1 stop<old2", "db, web adopt, cache start<web, mail refuse"},
	} {
		stops, rest := UpJobs(list, tt.opts)
		if diff := cmp.Diff([]string{tt.stops, tt.rest}, []string{words(stops), words(rest)}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	want := "old2 stop, old1 stop<old2, mail stop, web stop, db stop<web"
	if diff := cmp.Diff(want, words(DownJobs(list))); diff != "" {
		t.Errorf("down (-want +got):\n%s", diff)
	}
}

// TestSchedule plays what happens to a fleet of four: db, two that come after it,
// and one that comes after one of these.
func TestSchedule(t *testing.T) {
	for _, tt := range []struct {
		name     string
		parallel int
		goOn     bool
		play     []string // settle, done, fail, and what is then begun or skipped
		left     string   // what has not begun at the end
	}{
		{"all goes well", 0, false, []string{"begin: db mail", "settle db", "begin: ", "done db", "begin: web1 web2", "done web1", "begin: top", "done top", "begin: "}, ""},
		{"one at a time", 1, false, []string{"begin: db", "settle db", "begin: mail", "done db", "begin: ", "done mail", "begin: web1", "done web1", "begin: web2", "done web2", "begin: top"}, ""},
		{"the first fails", 0, false, []string{"begin: db mail", "fail db: web1 top web2", "begin: "}, ""},
		{"it does not become ready", 0, false, []string{"begin: db mail", "settle db", "fail db: web1 top web2"}, ""},
		{"one in the middle fails", 0, false, []string{"begin: db mail", "done db", "begin: web1 web2", "fail web1: top", "done web2", "begin: "}, ""},
		{"it goes on all the same", 0, true, []string{"begin: db mail", "fail db: ", "begin: web1 web2", "fail web1: ", "begin: top"}, ""},
		{"interrupted", 1, false, []string{"begin: db"}, "web1 web2 top mail"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSchedule([]Job{
				{Change: Change{Name: "db"}, After: []string{"not a job"}}, {Change: Change{Name: "web1"}, After: []string{"db"}},
				{Change: Change{Name: "web2"}, After: []string{"db"}}, {Change: Change{Name: "top"}, After: []string{"web1"}}, {Change: Change{Name: "mail"}},
			}, tt.parallel, tt.goOn)
			names := func(jobs []Job) string {
				var list []string
				for _, j := range jobs {
					list = append(list, j.Name)
				}
				return strings.Join(list, " ")
			}
			for i, act := range tt.play {
				verb, rest, _ := strings.Cut(act, " ")
				name, want, _ := strings.Cut(rest, ": ")
				got := ""
				switch verb {
				case "begin:":
					want, got = rest, names(s.Begin())
				case "settle":
					s.Settle(name)
				case "done":
					s.Done(name)
				case "fail":
					got = names(s.Failed(name))
				}
				if got != want {
					t.Fatalf("act %d, %q: got %q", i, act, got)
				}
			}
			if got := names(s.Cancel()); got != tt.left {
				t.Errorf("left: %q, want %q", got, tt.left)
			}
		})
	}
}

func TestNeeded(t *testing.T) {
	s := NewSchedule([]Job{{Change: Change{Name: "db"}}, {Change: Change{Name: "web"}, After: []string{"db"}}}, 0, false)
	s.Begin()
	if !s.Needed("db") || s.Needed("web") {
		t.Error("web waits for db, and nobody for web")
	}
	if s.Failed("db"); s.Needed("db") {
		t.Error("somebody is still thought to wait for db")
	}
}

func TestMemory(t *testing.T) {
	const mib = 1 << 20
	g := labGuest("web", 2048*mib)
	g.CPUs = 2
	if got, want := expectedMemory(g, 30*mib), configs.Size(2048+32+64+2*16+30)*mib; got != want {
		t.Errorf("expected memory: %s, want %s", got, want)
	}
	for _, tt := range []struct {
		m    Memory
		want bool
	}{
		{Memory{}, true},
		{Memory{Starts: 1, Needed: 10, Available: 10}, true},
		{Memory{Starts: 1, Needed: 11, Available: 10}, false},
		{Memory{Starts: 1, Needed: 11, Stops: 1, Freed: 1, Available: 10}, true},
		{Memory{Starts: 1, Needed: 11, Stops: 1, Freed: 1, Available: math.MaxUint64}, true},
	} {
		if got := tt.m.Fits(); got != tt.want {
			t.Errorf("%+v: %t", tt.m, got)
		}
	}
	jobs := []Job{{Change: Change{Guest: g}, Deed: DeedStart}, {Change: Change{Guest: g, PID: 1}, Deed: DeedRecreate}, {Change: Change{Guest: g}, Deed: DeedNone}}
	huge := labGuest("web", math.MaxInt64>>20<<20)
	if m := MemoryFor([]Job{{Change: Change{Guest: huge}, Deed: DeedStart}, {Change: Change{Guest: huge}, Deed: DeedStart}}); m.Fits() {
		t.Errorf("%+v fits", m)
	}
	if m := MemoryFor([]Job{{Change: Change{Guest: g, State: StateStopping, PID: 1}, Deed: DeedStart}}); m.Starts != 1 || m.Freed == 0 {
		t.Errorf("the memory of one that is stopping: %+v", m)
	}
	m := MemoryFor(jobs)
	if m.Starts != 2 || m.Stops != 1 || m.Needed != 2*expectedMemory(g, 0) || m.Freed == 0 || m.Available == 0 {
		t.Errorf("%+v", m)
	}
}

// A file is the same by whatever path it is named.
func TestSameSpec(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "lab.toml"), filepath.Join(dir, "link.toml")
	other := filepath.Join(dir, "other.toml")
	for _, file := range []string{path, other} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		a, b string
		want bool
	}{{path, path, true}, {path, link, true}, {link, path, true}, {path, other, false}, {path, "/nosuch", false}, {"/nosuch", path, false}, {"/nosuch", "/nosuch", true}} {
		if got := sameSpec(tt.a)(tt.b); got != tt.want {
			t.Errorf("%s and %s: %t", tt.a, tt.b, got)
		}
	}
}

// Stops of guests that come after each other go on all the same.
func TestScheduleOfACircle(t *testing.T) {
	s := NewSchedule([]Job{{Change: Change{Name: "a"}, After: []string{"b"}}, {Change: Change{Name: "b"}, After: []string{"a"}}}, 0, true)
	for _, want := range []string{"a", "b"} {
		jobs := s.Begin()
		if len(jobs) != 1 || jobs[0].Name != want {
			t.Fatalf("begun: %+v, want %s", jobs, want)
		}
		if more := s.Begin(); more != nil {
			t.Errorf("begun beside %s: %+v", want, more)
		}
		s.Done(want)
	}
	if left := s.Cancel(); left != nil {
		t.Errorf("left: %+v", left)
	}
}
