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

	"vmrun/configs"
	"vmrun/netsetup"
)

// fullRecord is a record with something in every field.
func fullRecord() *record {
	return &record{
		Version:    recordVersion,
		BootID:     "0e2c1b9a-8c0f-4f7e-9e53-0a1b2c3d4e5f",
		Guest:      &configs.Guest{Name: "web1", Path: "/srv/web1.toml", CPUs: 2, Memory: 1 << 30, Stop: configs.Stop{Timeout: time.Minute}},
		UUID:       uuid.MustParse("3f1c9d62-7a0e-4b57-9c35-2e8d41f6ab90"),
		Accel:      configs.AccelTCG,
		Children:   []netsetup.Child{{Name: "net0", Index: firstIndex, NIC: configs.NIC{Parent: "eth0", Mode: configs.ModeBridge, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Queues: 2, Promisc: true}}},
		Supervisor: 100,
		QEMU:       processID{PID: 101, Start: 4711},
		Committed:  true,
		Situation:  situation{Ran: true, Asked: true, Rung: RungPowerdown, Presses: 2},
		Started:    time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
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
	dir := runDir(t.TempDir())
	want := fullRecord()
	if err := dir.writeRecord(want); err != nil {
		t.Fatal(err)
	}
	got, err := dir.readRecord()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(configs.Guest{})); diff != "" {
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

func TestDecodeRecordRefuses(t *testing.T) {
	edit := func(change func(*record)) []byte {
		r := fullRecord()
		change(r)
		return encode(t, r)
	}
	good := encode(t, fullRecord())
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "state file: unexpected end of JSON input"},
		{"torn", good[:len(good)/2], "state file: unexpected end of JSON input"},
		{"zeros, as after a crash", make([]byte, 512), "invalid character"},
		{"null", []byte("null"), "state file of version 0, this is version 2"},
		{"a list", []byte("[]"), "cannot unmarshal array"},
		{"no guest", edit(func(r *record) { r.Guest = nil }), "names no guest"},
		{"a newer version", edit(func(r *record) { r.Version = 3 }), "state file of version 3, this is version 2"},
		{"a guest of no name", edit(func(r *record) { r.Guest.Name = "" }), "names no guest"},
		{"a guest outside", edit(func(r *record) { r.Guest.Name = "../../etc" }), "names no guest"},
		{"a number too large", []byte(`{"version":1,"guest":{},"qemu":{"pid":1e99}}`), "cannot unmarshal number"},
		{"two", append(bytes.Clone(good), good...), "invalid character '{' after top-level value"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := decodeRecord(tt.data)
			if r != nil || !errors.Is(err, errNoRecord) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v, %v; want an error with %q", r, err, tt.want)
			}
		})
	}
}

func TestReadRecord(t *testing.T) {
	dir := runDir(t.TempDir())
	if _, err := dir.readRecord(); !errors.Is(err, errNoRecord) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	huge := append([]byte(`{"version":1,"guest":{"Name":"`), bytes.Repeat([]byte("x"), 2*maxRecord)...)
	if err := os.WriteFile(dir.path(fileState), huge, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.readRecord(); !errors.Is(err, errNoRecord) {
		t.Errorf("huge: %v", err)
	}
	if err := os.Remove(dir.path(fileState)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir.path(fileState), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.readRecord(); !errors.Is(err, errNoRecord) {
		t.Errorf("a directory: %v", err)
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
	f.Add([]byte(`{"version":1,"guest":{"Name":"a"},"children":[{"MAC":"AAAA"},{}],"ended":{}}`))
	f.Add([]byte(`{"version":1,"guest":{"Name":"a","NICs":[{}]},"qemu":{"pid":-1,"start":18446744073709551615}}`))
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
		if s, _ := next(r.Situation, event{kind: evExit}, times); !s.Ended {
			t.Error("does not end")
		}
	})
}
