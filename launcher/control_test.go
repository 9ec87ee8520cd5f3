package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"vmrun/qmp"
)

// Whatever would change what the supervisor believes is refused before QEMU
// hears of it, with what to do instead.
func TestRefusedCommands(t *testing.T) {
	for _, command := range []string{
		"quit", "device_add", "device_del", "netdev_add", "netdev_del", "set_link", "getfd", "closefd", "add-fd", "remove-fd",
		"chardev-add", "chardev-change", "chardev-remove", "yank", "migrate", "migrate-incoming",
		"set-action", "watchdog-set-action", "human-monitor-command", "qom-set",
	} {
		t.Run(command, func(t *testing.T) {
			l := &life{} // without a QEMU: anything passed on would panic
			_, err := l.serve(t.Context(), qmp.Request{Command: command})
			var refused *qmp.Error
			if !errors.As(err, &refused) {
				t.Fatalf("%v, want a refusal", err)
			}
			want := fmt.Sprintf("%s would change what vmrun knows of the guest: ", command)
			if instead := strings.TrimPrefix(refused.Desc, want); instead == refused.Desc || instead == "" {
				t.Errorf("%q does not say what and why", refused.Desc)
			}
		})
	}
}

// Commands that send events are followed, and so are let through.
func TestCommandsThatAreFollowedAreNotRefused(t *testing.T) {
	for _, command := range []string{"stop", "cont", "system_reset", "system_powerdown", "system_wakeup", "query-status", "blockdev-add", "query-rx-filter"} {
		if why, refused := refusedCommands[command]; refused {
			t.Errorf("%s: %s", command, why)
		}
	}
}

// queryCommands asks a real QEMU, with nothing in it, for its commands.
func queryCommands(t *testing.T) []string {
	t.Helper()
	bin, err := exec.LookPath(platforms["amd64"].binary)
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
func TestRefusedCommandsAreQEMUs(t *testing.T) {
	known := queryCommands(t)
	if len(known) < 100 {
		t.Fatalf("QEMU names %d commands", len(known))
	}
	for command := range refusedCommands {
		if !slices.Contains(known, command) {
			t.Errorf("QEMU has no %s", command)
		}
	}
	for command := range quickCommands {
		if !slices.Contains(known, command) {
			t.Errorf("QEMU has no %s", command)
		}
	}
}

// New ways to touch what is vmrun's are noticed when QEMU gets them.
func TestCommandsThatTouchOurs(t *testing.T) {
	for _, command := range queryCommands(t) {
		ours := strings.HasPrefix(command, "chardev-") || strings.HasPrefix(command, "netdev_") ||
			strings.HasPrefix(command, "device_") || strings.HasSuffix(command, "fd") || strings.HasSuffix(command, "set-action")
		harmless := command == "chardev-send-break"
		if _, refused := refusedCommands[command]; ours && !refused && !harmless {
			t.Errorf("%s is passed on", command)
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
