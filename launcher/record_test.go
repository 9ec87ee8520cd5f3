package launcher

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
)

// fullRecord is a record with something in every field.
func fullRecord() *record {
	return &record{
		Version:    recordVersion,
		BootID:     "0e2c1b9a-8c0f-4f7e-9e53-0a1b2c3d4e5f",
		Guest:      &configs.Guest{Name: "web1", Display: configs.DisplayNone, Path: "/srv/web1.toml", CPUs: 2, Memory: 1 << 30, Stop: configs.Stop{Timeout: time.Minute}, Ready: configs.Ready{When: configs.ReadyStarted}},
		UUID:       uuid.MustParse("3f1c9d62-7a0e-4b57-9c35-2e8d41f6ab90"),
		Accel:      configs.AccelTCG,
		Children:   []netsetup.Child{{Name: "net0", Index: firstIndex, NIC: configs.NIC{Parent: "eth0", Mode: configs.ModeBridge, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Queues: 2, Promisc: true}}},
		Supervisor: 100,
		QEMU:       processID{PID: 101, Start: 4711},
		Committed:  true,
		Situation:  situation{Ran: true, Asked: true, Rung: RungPowerdown, Presses: 2},
		Started:    time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Cgroup:     &cgroup{Dir: "/sys/fs/cgroup/system.slice/web1.service", Added: []string{"memory"}, Moved: true},
		Unlimited:  "limits: not all hold",
		Kills:      &kills{File: "/sys/fs/cgroup/system.slice/web1.service/qemu/memory.events.local", Group: 1, Host: 2},
		Ended:      &Outcome{Reason: ReasonCrash, Detail: "QEMU ended with status 1", Log: []string{"its words"}},
	}
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRecordComesBack(t *testing.T) {
	dir := newRunDir(t)
	mustMake(t, dir)
	want := fullRecord()
	if err := dir.writeRecord(want); err != nil {
		t.Fatal(err)
	}
	got, err := dir.readRecord()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(configs.Guest{}, record{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	info, err := os.Stat(dir.path(fileState))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info.Mode(), err)
	}
	if entries, err := os.ReadDir(string(dir)); err != nil || len(entries) != 1 {
		t.Errorf("beside it: %v, %v", entries, err)
	}
}

func mustMake(t testing.TB, d runDir) {
	t.Helper()
	if err := d.make(); err != nil {
		t.Fatal(err)
	}
}

// A state file that no vmrun has written, or not this one, is told apart.
func TestDecodeRecordRefuses(t *testing.T) {
	edit := func(change func(*record)) []byte {
		r := fullRecord()
		change(r)
		return encode(t, r)
	}
	child := func(change func(*netsetup.Child)) []byte {
		return edit(func(r *record) { change(&r.Children[0]) })
	}
	good := encode(t, fullRecord())
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "the state file is empty"},
		{"zeros, as after a crash", make([]byte, 512), "is spoilt: invalid character"},
		{"null", []byte("null"), "has version 0, and this vmrun reads 2 to 3"},
		{"a list", []byte("[]"), "is spoilt: json: cannot unmarshal array"},
		{"two", append(bytes.Clone(good), good...), "is spoilt: invalid character '{' after top-level value"},
		{"the version before the last", edit(func(r *record) { r.Version = 1 }), "has version 1, and this vmrun reads 2 to 3"},
		{"a newer version", edit(func(r *record) { r.Version = 4 }), "has version 4, and this vmrun reads 2 to 3"},
		{"a newer version, of another form", []byte(`{"version":4,"guest":"web1","children":7}`), "has version 4"},
		{"a number too large", []byte(`{"version":3,"guest":{},"qemu":{"pid":1e99}}`), "is spoilt: json: cannot unmarshal number"},
		{"a large slot", edit(func(r *record) { r.Slot = maxSlots }), "there is no slot 65536"},
		{"a negative slot", edit(func(r *record) { r.Slot = -1 }), "there is no slot -1"},
		{"another's slot", edit(func(r *record) { r.Slot = 1 }), `NIC "net0": index 16777216 is not of slot 1`},
		{"a negative pid", edit(func(r *record) { r.QEMU.PID = -1 }), "QEMU's pid is -1"},
		{"no guest", edit(func(r *record) { r.Guest = nil }), "names no guest"},
		{"a guest of no name", edit(func(r *record) { r.Guest.Name = "" }), "the guest's name: a name cannot be empty"},
		{"a guest outside", edit(func(r *record) { r.Guest.Name = "../../etc" }), "the guest's name: \"../../etc\" is not a name"},
		{"a child outside", child(func(c *netsetup.Child) { c.Name = "../net0" }), "a NIC has no such name"},
		{"a child like another", child(func(c *netsetup.Child) { c.Name = "net00" }), "a NIC has no such name"},
		{"another's child", child(func(c *netsetup.Child) { c.Index += maxNICs }), "index 16777280 is not of slot 0"},
		{"the host's link", child(func(c *netsetup.Child) { c.Index = 1 }), "index 1 is not of slot 0"},
		{"a parent outside", child(func(c *netsetup.Child) { c.Parent = "../all" }), "is not an interface's name"},
		{"a group's MAC", child(func(c *netsetup.Child) { c.MAC[0] = 1 }), "is a multicast address"},
		{"no MAC", child(func(c *netsetup.Child) { c.MAC = nil }), "a MAC address has 6 bytes, not 0"},
		{"a VLAN of none", child(func(c *netsetup.Child) { c.VLAN = 1 << 40 }), "there is no VLAN"},
		{"queues without end", child(func(c *netsetup.Child) { c.Queues = 1 << 40 }), "queues"},
		{"a child twice", edit(func(r *record) { r.Children = append(r.Children, r.Children[0]) }), `NIC "net0": there are two`},
		{"a child that is there and being removed", edit(func(r *record) { r.Plugging = &r.Children[0] }), `NIC "net0": there are two`},
		{"children without end", []byte(`{"version":3,"guest":{"Name":"web1"},"children":[{}` + strings.Repeat(",{}", 1_000_000) + "]}"), "it has 1000002 elements"},
		{"a cgroup anywhere", edit(func(r *record) { r.Cgroup.Dir = "../x" }), `cgroup "../x": not a path`},
		{"a cgroup by the way", edit(func(r *record) { r.Cgroup.Dir = "/sys/fs/cgroup/x/../y" }), "not a path"},
		{"another controller", edit(func(r *record) { r.Cgroup.Added = []string{"memory -cpu"} }), "no limit needs the controller"},
		{"too many children", edit(func(r *record) { r.Children = make([]netsetup.Child, maxNICs+1) }), "no guest has 65 NICs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := decodeRecord(tt.data)
			if r != nil || !errors.Is(err, errNoRecord) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v, %v; want an error with %q", r, err, tt.want)
			}
		})
	}
}

// Of a state file that was written in part, at whatever byte it ends, nothing is
// believed.
func TestTornRecord(t *testing.T) {
	for _, version := range []string{"2", "3"} {
		good := encode(t, fullRecord())
		if version == "2" {
			good = bytes.TrimSpace(readFile(t, "testdata/state-2.json"))
		}
		for n := range good {
			if r, err := decodeRecord(good[:n]); r != nil || !errors.Is(err, errNoRecord) {
				t.Fatalf("the first %d of %d bytes are a record: %+v, %v", n, len(good), r, err)
			}
		}
		if _, err := decodeRecord(good); err != nil {
			t.Errorf("the whole of version %s: %v", version, err)
		}
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The state file of the release before is read as it is, and what that release
// did not know has the value of what it did.
func TestRecordOfVersion2(t *testing.T) {
	r, err := decodeRecord(readFile(t, "testdata/state-2.json"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Version != recordVersion || r.Guest.Name != "web2" || !r.Committed || r.state() != StateRunning || len(r.Children) != 2 {
		t.Errorf("%+v", r)
	}
	if r.Guest.Restart.Policy != configs.RestartNo || r.Guest.Confine != (configs.Confine{User: true, Seccomp: true}) {
		t.Errorf("restart %+v, confine %+v", r.Guest.Restart, r.Guest.Confine)
	}
	if r.Children[0].Pin != configs.PinAll || r.Children[0].Model != "virtio-net-pci" || len(r.Addresses["net0"]) == 0 {
		t.Errorf("net0 %+v, addresses %+v", r.Children[0], r.Addresses)
	}
}

func TestReadRecord(t *testing.T) {
	dir := newRunDir(t)
	mustMake(t, dir)
	if _, err := dir.readRecord(); !errors.Is(err, errNoRecord) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	other := fullRecord()
	other.Guest.Name = "web2"
	for _, tt := range []struct {
		name, want string
		make       func(path string) error
	}{
		{"huge", "is larger than 4194304 bytes", func(path string) error { return os.WriteFile(path, make([]byte, maxRecord+1), 0o600) }},
		{"a directory", "is not a regular file", func(path string) error { return os.Mkdir(path, 0o700) }},
		{"a pipe", "is not a regular file", func(path string) error { return unix.Mkfifo(path, 0o600) }},
		{"another guest's", "the state file of web1 is that of guest web2", func(path string) error { return os.WriteFile(path, encode(t, other), 0o600) }},
	} {
		if err := tt.make(dir.path(fileState)); err != nil {
			t.Fatal(err)
		}
		if _, err := dir.readRecord(); !errors.Is(err, errNoRecord) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want an error with %q", tt.name, err, tt.want)
		}
		if err := os.Remove(dir.path(fileState)); err != nil {
			t.Fatal(err)
		}
	}
}

// An old record stays whole when the new one cannot be written.
func TestWriteRecordFails(t *testing.T) {
	dir := runDir(filepath.Join(t.TempDir(), "gone"))
	if err := dir.writeRecord(fullRecord()); err == nil || !strings.HasPrefix(err.Error(), "state file: ") {
		t.Errorf("%v", err)
	}
}

func TestRecordState(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*record)
		want State
	}{
		{"ended", func(*record) {}, StateEnded},
		{"stopping", func(r *record) { r.Ended = nil }, StateStopping},
		{"running", func(r *record) { r.Ended, r.Situation = nil, situation{Ran: true} }, StateRunning},
		{"half started", func(r *record) { r.Ended, r.Committed = nil, false }, StateStarting},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := fullRecord()
			tt.edit(r)
			if got := r.state(); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// Whatever is in the file, it is refused or can be used without harm.
func FuzzDecodeRecord(f *testing.F) {
	good := encode(f, fullRecord())
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(readFile(f, "testdata/state-2.json"))
	f.Add([]byte(`{"version":3,"guest":{"Name":"a"},"children":[{"MAC":"AAAA"},{}],"ended":{}}`))
	f.Add([]byte(`{"version":3,"guest":{"Name":"a","NICs":[{}]},"qemu":{"pid":1,"start":18446744073709551615}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord(data)
		if err != nil {
			if !errors.Is(err, errNoRecord) {
				t.Errorf("%v is not errNoRecord", err)
			}
			return
		}
		status := r.status(0)
		if status.Name == "" || strings.Contains(status.Name, "/") || status.NICs == nil {
			t.Errorf("%+v", status)
		}
		if _, err := json.Marshal(status); err != nil {
			t.Error(err)
		}
		if r.QEMU.PID <= 0 && r.alive() {
			t.Error("a process without a pid is alive")
		}
		if r.Version != recordVersion {
			t.Errorf("version %d", r.Version)
		}
		for _, c := range r.Children {
			if owner(c) != userOf(r.Slot) || strings.ContainsAny(c.Name+c.Parent, "/ ") || nicID(number(c)) != "nic"+c.Name[len("net"):] {
				t.Errorf("slot %d has the child %+v", r.Slot, c)
			}
		}
		if s, _ := next(r.Situation, event{kind: evExit}, times); !s.Ended {
			t.Error("does not end")
		}
	})
}
