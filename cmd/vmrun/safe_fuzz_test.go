package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/iotest"

	"vmrun/launcher"
)

// FuzzStatus has a supervisor say anything of its guest: what is printed of it is
// text and lines, and what is passed on as JSON is the same for a program.
func FuzzStatus(f *testing.F) {
	for _, status := range []launcher.Status{{}, poisoned[launcher.Status]("net0"), poisoned[launcher.Status](hostile)} {
		data, err := json.Marshal(status)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"name":"web1","state":"running","pid":-1,"cpus":-1,"started":"0000-01-01T00:00:00Z","nics":[{"addresses":["fe80::1%\u001b[2J","x"],"learned":[{"ip":""}]}]}`))
	f.Add([]byte(`{"state":"ended","ended":{"reason":"crash","log":["\u001b]0;x\u0007"],"at":"9999-12-31T23:59:59Z"},"nics":[{"name":"a\tb","bandwidth":{"Inbound":18446744073709551615}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s launcher.Status
		if json.Unmarshal(data, &s) != nil {
			return
		}
		var out bytes.Buffer
		printStatus(&out, s)
		printNICs(&out, s)
		printAddresses(&out, useful(s.GuestAddresses(), true))
		parent := launcher.Parent{Name: s.Name, VLANs: []launcher.Parent{{Name: s.Spec, VLAN: 1}}}
		for _, n := range s.NICs {
			parent.NICs = append(parent.NICs, launcher.PlacedNIC{Guest: s.Name, State: s.State, NICStatus: n})
		}
		printTree(&out, []launcher.Parent{parent}, unicodePen)
		printDot(&out, []launcher.Parent{parent})
		checkClean(t, "output", out.String())
		out.Reset()
		if err := writeJSON(&out, s, " "); err != nil {
			return // a time that JSON cannot have
		}
		checkClean(t, "JSON", out.String())
		var again launcher.Status
		if err := json.Unmarshal(out.Bytes(), &again); err != nil {
			t.Fatal(err)
		}
		var plain, escaped bytes.Buffer
		if err := errors.Join(json.NewEncoder(&plain).Encode(s), json.NewEncoder(&escaped).Encode(again)); err != nil || plain.String() != escaped.String() {
			t.Errorf("%s became %s, %v", &plain, &escaped, err)
		}
	})
}

// FuzzWriteLog has a guest write anything: a terminal is shown text, whichever way
// it came.
func FuzzWriteLog(f *testing.F) {
	for _, log := range []string{hostile, rawHostile, "[\x1b[0;32m  OK  \x1b[0m] Started\r\n", "\x1b[2J\x1b[1;1Hlogin: ", "10%\r20%\r\r\n", "\x1b[" + strings.Repeat("1", maxSequence) + "m"} {
		f.Add([]byte(log))
	}
	f.Fuzz(func(t *testing.T, log []byte) {
		var whole, pieces strings.Builder
		if err := writeLog(&whole, bytes.NewReader(log)); err != nil {
			t.Fatal(err)
		}
		if err := writeLog(&pieces, iotest.OneByteReader(bytes.NewReader(log))); err != nil || pieces.String() != whole.String() {
			t.Errorf("%q at once, %q byte by byte, %v", whole.String(), pieces.String(), err)
		}
		for _, r := range whole.String() {
			if r != '\n' && r != '\t' && visible(r) != string(r) {
				t.Fatalf("%q came to the terminal: %q", r, whole.String())
			}
		}
		if whole.Len() > 10*len(log) {
			t.Errorf("%d bytes became %d", len(log), whole.Len())
		}
	})
}
