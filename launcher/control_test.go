package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

// Whatever would change what the supervisor believes is refused before QEMU
// hears of it, with what to do instead.
func TestRefusedCommands(t *testing.T) {
	for _, command := range []string{
		"quit", "device_add", "device_del", "netdev_add", "netdev_del", "set_link", "getfd", "closefd", "add-fd", "remove-fd",
		"chardev-add", "chardev-change", "chardev-remove", "yank", "migrate", "migrate-incoming",
		"set-action", "watchdog-set-action", "human-monitor-command", "qom-set",
		"transaction", "blockdev-add", "blockdev-snapshot-sync", "drive-mirror", "block_resize", "object-add", "nbd-server-start",
		"a-command-of-the-future",
	} {
		t.Run(command, func(t *testing.T) {
			l := &life{} // without a QEMU: anything passed on would panic
			_, err := l.serve(t.Context(), qmp.Request{Command: command})
			var refused *qmp.Error
			if !errors.As(err, &refused) || refused.Desc != refusal(command) {
				t.Fatalf("%v, want a refusal", err)
			}
		})
	}
}

// Commands that send events are followed, and so are let through, but not to a
// guest that is not there yet.
func TestPassedOnCommands(t *testing.T) {
	for _, command := range []string{"stop", "cont", "system_reset", "system_powerdown", "system_wakeup", "query-status", "query-rx-filter"} {
		if _, ok := passOnLimit(command); !ok {
			t.Errorf("%s is refused", command)
		}
	}
	if _, err := (&life{}).serve(t.Context(), qmp.Request{Command: "cont"}); err == nil || !strings.Contains(err.Error(), "still starting") {
		t.Errorf("cont before the commit: %v", err)
	}
}

// FuzzArguments has a client send anything with vmrun's own commands: it is
// refused, or means what it says, and no more of a NIC changes than can.
func FuzzArguments(f *testing.F) {
	for _, text := range []string{
		`{"wait":true}`, `{"wait":1}`, `{"name":"net0","words":["mode=vepa","link=down","pin=true","addresses=192.0.2.10"]}`,
		`{"words":["parent=eth1","mac=02:00:00:00:00:02","bandwidth.inbound=1mbit"],"force":true}`, `{"words":["parent=eth1","` + strings.Repeat("a.", 1<<15) + `=1"]}`,
		`{"words":["queues=8","model=e1000","mode=passthru"]}`, `{"wrods":[]}`, `{"words":[null,""]}`, `{"words":{}}`, "",
	} {
		f.Add([]byte(text))
	}
	child := netsetup.Child{Name: "net0", Index: 7}
	var err error
	if child.NIC, err = configs.NICFromWords(2, []string{"parent=eth0", "mac=02:00:00:00:00:01"}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 0 && (data[0] != '{' || !json.Valid(data)) {
			return // the server refuses what is no object
		}
		var stop StopArguments
		var args NICArguments
		errs := []error{decodeArguments(data, &stop), decodeArguments(data, &args)}
		if errs[0] == nil && errs[1] == nil && bytes.ContainsAny(data, `"`) {
			t.Errorf("%s means two things", data)
		}
		for _, err := range errs {
			var refused *qmp.Error
			if err != nil && (!errors.As(err, &refused) || strings.Contains(refused.Desc, "json: ")) {
				t.Errorf("refused with %v", err)
			}
		}
		if errs[1] != nil {
			return
		}
		var again NICArguments
		if err := decodeArguments(encode(t, args), &again); err != nil || again.Name != args.Name || !slices.Equal(again.Words, args.Words) || again.Force != args.Force {
			t.Errorf("%+v became %+v, %v", args, again, err)
		}
		if n, err := configs.NICFromWords(2, args.Words); err == nil && configs.CheckInterface(n.Parent) != nil {
			t.Errorf("a NIC on %q", n.Parent)
		} else if err != nil && len(err.Error()) > 64<<10+10*len(data) {
			t.Errorf("%d bytes are refused with %d", len(data), len(err.Error()))
		}
		after, err := changed(child, args.Words)
		if err != nil && !reflect.DeepEqual(after, child) {
			t.Errorf("%v, and yet %+v", err, after)
		}
		if after.Name != "net0" || after.Index != 7 || after.Parent != "eth0" || after.MAC.String() != child.MAC.String() || after.Model != child.Model || after.Queues != 2 || isSole(after.Mode) {
			t.Errorf("changed to %+v", after)
		}
	})
}

// queryCommands asks a real QEMU, with nothing in it, for its commands.
func queryCommands(t *testing.T) []string {
	t.Helper()
	bin, err := exec.LookPath(platforms[configs.ArchX86].binary)
	if err != nil {
		lack(t, "needs QEMU: apt-get install qemu-system-x86")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "-machine", "none", "-S", "-display", "none", "-nodefaults", "-qmp", "stdio")
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"query-commands"}{"execute":"quit"}`)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		var reply struct {
			Return []struct{ Name string }
		}
		if json.Unmarshal([]byte(line), &reply) == nil {
			for _, c := range reply.Return {
				names = append(names, c.Name)
			}
		}
	}
	return names
}

// A name that QEMU does not know guards nothing.
func TestPolicyIsAboutQEMUsCommands(t *testing.T) {
	known := queryCommands(t)
	if len(known) < 100 {
		t.Fatalf("QEMU names %d commands", len(known))
	}
	for command := range passedOn {
		if !slices.Contains(known, command) {
			t.Errorf("QEMU has no %s", command)
		}
	}
	for command := range insteadOf {
		if !slices.Contains(known, command) {
			t.Errorf("QEMU has no %s", command)
		}
		if _, ok := passOnLimit(command); ok {
			t.Errorf("%s is both passed on and refused", command)
		}
	}
}

func TestUnresponsiveHasAClass(t *testing.T) {
	other := errors.New("something else")
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"nothing", nil, ""},
		{"deadline", fmt.Errorf("stop: %w", context.DeadlineExceeded), ClassUnresponsive},
		{"deadline of a socket", fmt.Errorf("dial: %w", os.ErrDeadlineExceeded), ClassUnresponsive},
		{"another", other, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := unresponsive(tt.err)
			var classed *qmp.Error
			errors.As(got, &classed)
			if (classed != nil) != (tt.want != "") || (classed != nil && classed.Class != tt.want) || (tt.err == nil) != (got == nil) {
				t.Errorf("%v, want class %q", got, tt.want)
			}
		})
	}
}

func TestKindOf(t *testing.T) {
	g := parseSpec(t, disk)
	for _, tt := range []struct {
		name string
		err  error
		want Kind
	}{
		{"plain", errors.New("no"), KindFailed},
		{"spec", g.Errorf("accel", "no"), KindSpec},
		{"spec, joined and wrapped", fmt.Errorf("start: %w", errors.Join(g.Errorf("accel", "no"), errors.New("undo"))), KindSpec},
		{"busy", &BusyError{Name: "web1"}, KindState},
		{"not found", fmt.Errorf("web1: %w", ErrNotFound), KindState},
		{"state", fmt.Errorf("web1: %w", ErrState), KindState},
		{"unresponsive", fmt.Errorf("web1: %w", ErrUnresponsive), KindTimeout},
		{"deadline", context.DeadlineExceeded, KindTimeout},
		{"cancelled", context.Canceled, KindFailed},
		{"told by a supervisor", fmt.Errorf("web1: %w", &StartError{Kind: KindSpec, Msg: "no"}), KindSpec},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := KindOf(tt.err); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}
