package launcher

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmrun/configs"
	"vmrun/launcher/guesttest"
	"vmrun/netsetup"
)

// TestAskAgent has agents of all kinds asked: none hurts, and those that can be
// understood are.
func TestAskAgent(t *testing.T) {
	const list = `{"return":[{"name":"eth0","hardware-address":"52:54:00:00:00:01","ip-addresses":[{"ip-address-type":"ipv4","ip-address":"192.0.2.11","prefix":24}]}]}` + "\n"
	sync := func(id int64) string { return fmt.Sprintf("\xff{\"return\": %d}\n", id) }
	for _, test := range []struct {
		name  string
		agent func(id int64) (afterSync, afterAsk string)
		open  bool // it does not hang up
		want  string
	}{
		{"as it should be", func(id int64) (string, string) { return sync(id), list }, true, "192.0.2.11"},
		{"old answers first", func(id int64) (string, string) {
			return `{"return":{}}` + "\n" + sync(id-1) + list + `{"error":{}}` + "\n" + sync(id), list
		}, true, "192.0.2.11"},
		{"an answer cut short first", func(id int64) (string, string) { return `{"return":[{"na` + sync(id), list }, true, "192.0.2.11"},
		{"a cut sync first", func(id int64) (string, string) { return "\xff{\"ret" + sync(id), list }, true, "192.0.2.11"},
		{"no addresses", func(id int64) (string, string) { return sync(id), `{"return":[{"name":"lo"}]}` + "\n" }, true, ""},
		{"nothing", func(int64) (string, string) { return "", "" }, true, "timeout"},
		{"nothing after sync", func(id int64) (string, string) { return sync(id), "" }, true, "timeout"},
		{"half a line", func(id int64) (string, string) { return sync(id), list[:40] }, true, "timeout"},
		{"hangs up", func(int64) (string, string) { return "", "" }, false, "EOF"},
		{"wrong id", func(id int64) (string, string) { return sync(id + 1), list }, true, "timeout"},
		{"no 0xff", func(id int64) (string, string) { return sync(id)[1:], list }, true, "timeout"},
		{"error", func(id int64) (string, string) {
			return sync(id), `{"error":{"class":"CommandNotFound","desc":"\u001b[2J"}}` + "\n"
		}, true, "refuses: ?[2J"},
		{"null", func(id int64) (string, string) { return sync(id), "null\n" }, true, "did not answer"},
		{"another shape", func(id int64) (string, string) { return sync(id), `{"return":{"a":1}}` + "\n" }, true, "did not answer"},
		{"no JSON", func(id int64) (string, string) { return sync(id), "\x1b]0;hello\a\n" }, true, "did not answer"},
		{"deep", func(id int64) (string, string) {
			return sync(id), `{"return":` + strings.Repeat("[", 30000) + "\n"
		}, true, "did not answer"},
		{"endless line", func(id int64) (string, string) { return strings.Repeat("x", 1<<20), "" }, true, "did not answer"},
		{"endless lines", func(id int64) (string, string) { return strings.Repeat(sync(0), 1<<17), "" }, true, "did not answer"},
		{"endless answer", func(id int64) (string, string) {
			return sync(id), `{"return":[` + strings.Repeat(`{"name":"eth0"},`, 1<<16)
		}, true, "did not answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ours, theirs := socketPair(t)
			go func() {
				defer theirs.Close()
				lines := bufio.NewReader(theirs)
				line, _ := lines.ReadBytes('\n')
				var sync struct{ Arguments struct{ ID int64 } }
				if err := json.Unmarshal(bytes.TrimPrefix(line, []byte{0xff}), &sync); err != nil || line[0] != 0xff {
					t.Errorf("asked %q", line)
				}
				first, second := test.agent(sync.Arguments.ID)
				if first == "" && !test.open {
					return
				}
				io.WriteString(theirs, first)
				if second != "" {
					lines.ReadBytes('\n')
					io.WriteString(theirs, second)
				}
				io.Copy(io.Discard, lines) // until we hang up
			}()
			ours.SetDeadline(time.Now().Add(500 * time.Millisecond))
			began := time.Now()
			interfaces, err := askInterfaces(ours, 1<<62+1)
			if took := time.Since(began); took > time.Second {
				t.Errorf("took %v", took)
			}
			got := fmt.Sprint(err)
			if err == nil {
				got = ""
				for _, i := range interfaces {
					for _, a := range i.Addresses {
						got += a.IP
					}
				}
			}
			if !strings.Contains(got, test.want) || test.want == "" && got != "" || strings.Contains(got, "\x1b") {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// askInterfaces has a conversation of one question.
func askInterfaces(channel io.ReadWriter, id int64) (list []agentInterface, err error) {
	c, err := newConversation(channel, id)
	if err != nil {
		return nil, err
	}
	err = c.ask("guest-network-get-interfaces", nil, &list)
	return list, err
}

// socketPair is a connection by a unix socket, as QEMU's are.
func socketPair(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if ours, err = net.Dial("unix", path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	if theirs, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// FuzzAgent holds whatever an agent may answer to the rules, of which the first is
// that what was just seen on the wire stays.
func FuzzAgent(f *testing.F) {
	f.Add([]byte("\xff{\"return\":7}\n{\"return\":[{\"hardware-address\":\"52:54:00:00:00:01\",\"ip-addresses\":[{\"ip-address\":\"192.0.2.11\"}]}]}\n"))
	f.Add([]byte("\xff{\"return\":7}\n{\"error\":{}}\n"))
	f.Fuzz(func(t *testing.T, words []byte) {
		interfaces, err := askInterfaces(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(words), io.Discard}, 7)
		if err != nil {
			return
		}
		now := time.Now()
		word := newAgentWord(now, interfaces, agentWord{})
		for _, list := range word.addresses {
			checkAgentAddresses(t, list, now)
		}
		learned := []netsetup.Address{
			{IP: netip.MustParseAddr("192.0.2.11"), Source: netsetup.SourceARP, Seen: now, Conflict: "02:00:00:00:00:09"},
			{IP: netip.MustParseAddr("2001:db8::11"), Source: netsetup.SourceND, Seen: now.Add(-time.Hour)},
		}
		known := word.over(learned, mustMAC("52:54:00:00:00:01"))
		if i := indexAddress(known, learned[0].IP); i < 0 || known[i] != learned[0] || len(known) > len(learned)+maxAgentAddresses {
			t.Errorf("known by now: %+v", known)
		}
		if other := word.over(learned, nil); !slices.Equal(other, learned) {
			t.Errorf("of a NIC that it cannot name: %+v", other)
		}
	})
}

func checkAgentAddresses(t *testing.T, list []netsetup.Address, at time.Time) {
	t.Helper()
	if len(list) > maxAgentAddresses {
		t.Errorf("%d addresses", len(list))
	}
	for i, a := range list {
		if !netsetup.Learnable(a.IP) || a.IP.Zone() != "" || a.Source != SourceAgent || a.Seen != at || hasAddress(list[:i], a.IP) {
			t.Errorf("%+v", a)
		}
	}
}

func TestAgentWord(t *testing.T) {
	var interfaces []agentInterface
	text := `[
		{"name":"lo","ip-addresses":[{"ip-address":"127.0.0.1"}],"hardware-address":"00:00:00:00:00:00"},
		{"name":"\u001b[2J","ip-addresses":[{"ip-address":"192.0.2.11"},{"ip-address":"fe80::1%eth0"},{"ip-address":"192.0.2.11"}],"hardware-address":"52:54:00:00:00:01"},
		{"name":"br0","ip-addresses":[{"ip-address":"2001:db8::11"},{"ip-address":"::ffff:192.0.2.12"},{"ip-address":"224.0.0.1"},{"ip-address":"0.0.0.0"},{"ip-address":"x"}],"hardware-address":"52:54:00:00:00:01"},
		{"name":"eth1","hardware-address":"52:54:00:00:00:02"},
		{"name":"tun0","ip-addresses":[{"ip-address":"10.0.0.1"}]},
		{"name":"many","hardware-address":"52:54:00:00:00:03","ip-addresses":[MANY]}]`
	var many []string
	for i := range 200 {
		many = append(many, fmt.Sprintf(`{"ip-address":"10.0.1.%d"}`, i))
	}
	if err := json.Unmarshal([]byte(strings.Replace(text, "MANY", strings.Join(many, ","), 1)), &interfaces); err != nil {
		t.Fatal(err)
	}
	before, at := time.Unix(1000, 0), time.Unix(2000, 0)
	old := agentWord{at: before, addresses: map[string][]netsetup.Address{
		"52:54:00:00:00:01": {{IP: netip.MustParseAddr("192.0.2.11"), Since: before}},
	}}
	word := newAgentWord(at, interfaces, old)
	want := map[string]string{
		"00:00:00:00:00:00": "[]", "52:54:00:00:00:01": "[192.0.2.11 fe80::1 2001:db8::11]", "52:54:00:00:00:02": "[]",
	}
	for mac, list := range want {
		checkAgentAddresses(t, word.addresses[mac], at)
		if got := fmt.Sprint(ips(word.addresses[mac])); got != list {
			t.Errorf("%s: %s, want %s", mac, got, list)
		}
	}
	checkAgentAddresses(t, word.addresses["52:54:00:00:00:03"], at)
	if n := len(word.addresses["52:54:00:00:00:03"]); n != maxAgentAddresses {
		t.Errorf("%d addresses of the last interface", n)
	}
	since := []time.Time{}
	for _, a := range word.addresses["52:54:00:00:00:01"] {
		since = append(since, a.Since)
	}
	if diff := cmp.Diff([]time.Time{before, at, at}, since); diff != "" {
		t.Error("since when:", diff)
	}
}

func TestAgentWordOver(t *testing.T) {
	at := time.Unix(2000, 0)
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	learned := func(ip string, seen time.Duration) netsetup.Address {
		return netsetup.Address{IP: netip.MustParseAddr(ip), Source: netsetup.SourceARP, Seen: at.Add(seen)}
	}
	told := func(ips ...string) agentWord {
		w := agentWord{at: at, addresses: map[string][]netsetup.Address{mac.String(): {}}}
		for _, ip := range ips {
			w.addresses[mac.String()] = append(w.addresses[mac.String()], netsetup.Address{IP: netip.MustParseAddr(ip), Source: SourceAgent})
		}
		return w
	}
	for _, test := range []struct {
		name    string
		word    agentWord
		learned []netsetup.Address
		want    string
	}{
		{"no agent", agentWord{}, []netsetup.Address{learned("192.0.2.1", -time.Hour)}, "192.0.2.1 arp"},
		{"another NIC's", agentWord{at: at, addresses: map[string][]netsetup.Address{"52:54:00:00:00:02": {}}},
			[]netsetup.Address{learned("192.0.2.1", -time.Hour)}, "192.0.2.1 arp"},
		{"both know", told("192.0.2.1"), []netsetup.Address{learned("192.0.2.1", -time.Hour)}, "192.0.2.1 arp"},
		{"the agent knows more", told("192.0.2.1", "2001:db8::1"), []netsetup.Address{learned("192.0.2.2", 0)},
			"192.0.2.1 agent, 192.0.2.2 arp, 2001:db8::1 agent"},
		{"the agent knows better", told(), []netsetup.Address{learned("192.0.2.1", -time.Minute)}, ""},
		{"a moment ago", told(), []netsetup.Address{learned("192.0.2.1", -time.Second)}, "192.0.2.1 arp"},
		{"since then", told(), []netsetup.Address{learned("192.0.2.1", time.Hour)}, "192.0.2.1 arp"},
	} {
		before := slices.Clone(test.learned)
		var got []string
		for _, a := range test.word.over(test.learned, mac) {
			got = append(got, fmt.Sprintf("%s %s", a.IP, a.Source))
		}
		if got := strings.Join(got, ", "); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
		if !slices.Equal(before, test.learned) {
			t.Errorf("%s: what was learned has changed", test.name)
		}
	}
}

// TestAgentRefresh has a status wait for an agent that does not answer: not for
// long, and not again soon.
func TestAgentRefresh(t *testing.T) {
	l := newLife(&configs.Guest{Name: "guest"}, Options{RunDir: t.TempDir()})
	if err := l.dir.make(); err != nil {
		t.Fatal(err)
	}
	listener, err := listenUnix(l.dir.path(fileAgent))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	a := newAgent(l)
	l.nics = &nics{life: l, agent: a}
	refresh := func() (may bool, took time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), askTimeout)
		defer cancel()
		began := time.Now()
		may = a.refresh(ctx)
		return may, time.Since(began)
	}
	quickly := func(when string) {
		t.Helper()
		if may, took := refresh(); may || took > 10*time.Millisecond {
			t.Errorf("%s: waited %v, %v", when, took, may)
		}
	}
	a.looked = true // there is no QEMU
	quickly("nobody to ask yet")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { a.run(ctx); close(done) }()
	time.Sleep(50 * time.Millisecond)
	quickly("no agent")
	a.qmpEvent(newEvent("VSERPORT_CHANGE", map[string]any{"id": agentPort, "open": true}))
	if may, took := refresh(); !may || took < agentTimeout/2 || took > askTimeout+100*time.Millisecond {
		t.Errorf("waited %v for an agent that does not answer, %v", took, may)
	}
	time.Sleep(100 * time.Millisecond)
	quickly("an agent that has not answered")
	a.qmpEvent(newEvent("VSERPORT_CHANGE", map[string]any{"id": agentPort, "open": false}))
	quickly("an agent that has gone")
	cancel()
	select {
	case <-done:
	case <-time.After(100 * time.Millisecond):
		t.Error("the agent's goroutine does not end")
	}
}

// TestAgent has a guest tell of its addresses by its agent, without a frame that
// would, and looks at what remains when the agent goes, or is a liar.
func TestAgent(t *testing.T) {
	b := newBench(t)
	b.files = guesttest.AgentImage(t)
	g := b.spec("guest", "", nic("bridge", "host_access = true"), nic("private"))
	b.mustStart(g, order{Force: true})
	c := b.console(g)
	if _, err := c.WaitReady(b.within(60 * time.Second)); err != nil {
		t.Fatalf("%v\n%s", err, c.Transcript())
	}
	b.say(c, "addr eth0 192.0.2.11/24")
	b.say(c, "addr eth1 192.0.2.12/24")
	b.say(c, "gratuitous eth0 192.0.2.11") // by which an address is learned
	b.knows(g, "before the agent", "192.0.2.11 arp", "")

	b.say(c, "exec /start-agent")
	b.knows(g, "with its agent", "192.0.2.11 arp", "192.0.2.12 agent")
	b.say(c, "addr del eth1 192.0.2.12/24")
	b.say(c, "addr eth1 192.0.2.13/24")
	b.knowsWithin(agentFresh+2*time.Second, g, "after a change without a sound", "192.0.2.11 arp", "192.0.2.13 agent")
	if routes := b.hostRoutes(); strings.Contains(routes, "192.0.2.13") || !strings.Contains(routes, "192.0.2.11") {
		t.Errorf("the host's routes:\n%s", routes)
	}

	b.killSupervisor(g.Name)
	b.mustStart(mustLoad(t, g.Path), order{})
	c = b.console(g)
	b.knows(g, "adopted", "192.0.2.11 arp", "192.0.2.13 agent")
	b.say(c, "addr del eth0 192.0.2.11/24")
	b.knowsWithin(agentFresh+2*time.Second, g, "after an address has gone without a sound", "", "192.0.2.13 agent")
	b.say(c, "exec /stop-agent")
	b.knows(g, "without its agent", "192.0.2.11 arp", "")
	b.quickly(g, "without its agent")

	b.say(c, "exec /bad-agent %s", g.NICs[0].MAC)
	b.eventually(2*time.Second, "the bad agent has the port", func() string {
		var list []map[string]any
		b.must(b.control(g.Name).Execute(t.Context(), "query-chardev", nil, &list))
		return other(fmt.Sprint(slices.ContainsFunc(list, func(c map[string]any) bool {
			return c["label"] == agentPort && c["frontend-open"] == true
		})), "true")
	})
	time.Sleep(time.Second + agentTimeout)
	b.knows(g, "with a bad agent", "192.0.2.11 arp", "")
	b.quickly(g, "with a bad agent")
	b.say(c, "exec /stop-agent")
	b.say(c, "exec /start-agent")
	b.knows(g, "with its agent again", "", "192.0.2.13 agent")
	b.stop(g, RungAgent)
	b.clean("agent")
}

// knows waits until a guest's status has these addresses, NIC by NIC, without
// those of IPv6.
func (b *bench) knows(g *configs.Guest, when string, want ...string) {
	b.t.Helper()
	b.knowsWithin(2*time.Second, g, when, want...)
}

func (b *bench) knowsWithin(limit time.Duration, g *configs.Guest, when string, want ...string) {
	b.t.Helper()
	began := time.Now()
	b.eventually(limit, when, func() string {
		var got []string
		for _, n := range b.observe(g).NICs {
			var list []string
			for _, a := range n.Learned {
				if a.IP.Is4() {
					list = append(list, fmt.Sprintf("%s %s", a.IP, a.Source))
				}
			}
			got = append(got, strings.Join(list, ", "))
		}
		return cmp.Diff(want, got)
	})
	b.t.Logf("%s: known after %v", when, time.Since(began).Round(time.Millisecond))
}

// quickly looks at how long a status takes.
func (b *bench) quickly(g *configs.Guest, when string) {
	b.t.Helper()
	best := time.Hour
	for range 5 {
		began := time.Now()
		b.observe(g)
		best = min(best, time.Since(began))
	}
	b.t.Logf("%s: a status takes %v", when, best.Round(10*time.Microsecond))
	if best > 50*time.Millisecond {
		b.t.Errorf("%s: a status takes %v", when, best)
	}
}
