package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"runtime/metrics"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// cut returns what frames makes of a stream: values, and errors as "!text".
func cut(r io.Reader, max int) []string {
	var got []string
	in := newFrames(r, max)
	for {
		value, err := in.next()
		switch {
		case err == nil:
			got = append(got, string(value))
		case errors.Is(err, errSyntax), errors.Is(err, errDepth):
			got = append(got, "!"+err.Error())
		case errors.Is(err, io.EOF):
			return got
		default:
			return append(got, "!"+err.Error())
		}
	}
}

func TestFrames(t *testing.T) {
	const syntax, eof = "!JSON parse error", "!unexpected EOF"
	for _, tt := range []struct {
		name, in string
		want     []string
	}{
		{"lines", "{\"a\":1}\r\n{\"b\":2}\n", []string{`{"a":1}`, `{"b":2}`}},
		{"no line ends", `{"a":{}}{"b":[{}]}`, []string{`{"a":{}}`, `{"b":[{}]}`}},
		{"many lines", "{\n\t\"a\":\n1 }\n", []string{"{\n\t\"a\":\n1 }"}},
		{"braces in strings", `{"a":"}{\"]"} {}`, []string{`{"a":"}{\"]"}`, `{}`}},
		{"single quotes", `{'a"}':'\'}'}`, []string{`{'a"}':'\'}'}`}},
		{"scalars", "foo 12 \"s t\"\n[1] true\n", []string{"foo", "12", `"s t"`, "[1]", "true"}},
		{"crossed", "{]\n{}", []string{"{]", "{}"}},
		{"closing alone", "} ] , :", []string{"}", "]", ",", ":"}},
		{"stray byte", "\x01\n{}", []string{syntax, "{}"}},
		{"reset", "{\"a\": [\xff{}", []string{syntax, "{}"}},
		{"reset twice", "\xff\xff\n{}", []string{syntax, syntax, "{}"}},
		{"line end in a string", "{\"a\":\"x\n{}", []string{syntax, "{}"}},
		{"recovery skips", "\xff junk \" \t{}", []string{syntax, "{}"}},
		{"cut in a value", `{} {"a":`, []string{"{}", eof}},
		{"cut in a string", `"a`, []string{eof}},
		{"nothing", " \r\n\t ", nil},
		{"deep", strings.Repeat("[", maxDepth+1) + "\n", []string{"!JSON nesting depth limit exceeded"}},
		{"just not deep", strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth), []string{strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, cut(strings.NewReader(tt.in), 1<<20)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.want, cut(iotest.OneByteReader(strings.NewReader(tt.in)), 1<<20)); diff != "" {
				t.Error("byte by byte:", diff)
			}
		})
	}
}

func TestFramesBound(t *testing.T) {
	fits, over := `{"a":"`+strings.Repeat("x", 92)+`"}`, `{"a":"`+strings.Repeat("x", 93)+`"}`
	got := cut(strings.NewReader(strings.Repeat(" ", 1000)+fits+over), 100)
	if diff := cmp.Diff([]string{fits, "!message too large: over 100 bytes"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestCheckStrict(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		ok       bool
	}{
		{"plain", `{"a":[1,{"b":"c"},null,true,"x"],"c":-1.5e3}`, true},
		{"same key in other objects", `{"a":{"a":[{"a":1},{"a":1}]}}`, true},
		{"value like a key", `{"a":"b","b":"a"}`, true},
		{"duplicate key", `{"a":1,"b":{},"a":2}`, false},
		{"duplicate key, escaped", `{"a":1,"\u0061":2}`, false},
		{"duplicate key, deep", `[{"a":[{"b":1,"b":1}]}]`, false},
		{"invalid UTF-8", "\"\xc3\"", false},
		{"surrogate pair", `"\ud83d\ude00"`, true},
		{"raw emoji", `"😀"`, true},
		{"high surrogate alone", `"\ud83d"`, false},
		{"high surrogate, then text", `"\ud83dx"`, false},
		{"high surrogate, then escape", `"\ud83d\n"`, false},
		{"low surrogate alone", `"\uDE00"`, false},
		{"escaped backslash, not a surrogate", `"\\ud83d"`, true},
		{"noncharacter", `"\ufffe"`, false},
		{"raw noncharacter", "\"\uffff\"", false},
		{"replacement character", `"\ufffd"`, true},
		{"nul", `"\u0000"`, true},
		{"two values", `{}{}`, false},
		{"empty", ``, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := checkStrict([]byte(tt.in)); (err == nil) != tt.ok {
				t.Errorf("got %v, want ok %v", err, tt.ok)
			}
		})
	}
}

func TestDecodeRequest(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     incoming
		desc     string
	}{
		{name: "plain", in: `{"execute":"stop"}`, want: incoming{command: "stop"}},
		{name: "all members", in: ` {"id" : {"a": [1, 2.50]}, "arguments":{"x": 1}, "execute":"getfd"}`,
			want: incoming{"getfd", json.RawMessage(`{"x": 1}`), json.RawMessage(`{"a":[1,2.50]}`)}},
		{name: "null id", in: `{"execute":"stop","id":null}`, want: incoming{command: "stop", id: json.RawMessage("null")}},
		{name: "single quotes", in: `{'execute':'a\'"b\n'}`, want: incoming{command: "a'\"b\n"}},
		{name: "not an object", in: `[1]`, desc: "QMP input must be a JSON object"},
		{name: "a string", in: `"x"`, desc: "QMP input must be a JSON object"},
		{name: "null", in: `null`, desc: "QMP input must be a JSON object"},
		{name: "empty", in: `{"id":7}`, want: incoming{id: json.RawMessage("7")}, desc: "QMP input lacks member 'execute'"},
		{name: "execute", in: `{"execute":1}`, desc: "QMP input member 'execute' must be a string"},
		{name: "arguments", in: `{"execute":"a","arguments":null}`, want: incoming{command: ""}, desc: "QMP input member 'arguments' must be an object"},
		{name: "unexpected", in: `{"exec-oob":"a","id":1}`, want: incoming{id: json.RawMessage("1")}, desc: "QMP input member 'exec-oob' is unexpected"},
		{name: "garbage", in: `{]`, desc: "JSON parse error"},
		{name: "duplicate", in: `{"execute":"a","execute":"b","id":1}`, desc: "JSON parse error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, refused := decodeRequest([]byte(tt.in))
			var want *Error
			if tt.desc != "" {
				want = &Error{ClassGeneric, tt.desc}
			}
			if diff := cmp.Diff(want, refused); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(incoming{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEncodeCommand(t *testing.T) {
	type args struct {
		Name string `json:"fdname"`
	}
	for _, tt := range []struct {
		name string
		args any
		want string
		fail bool
	}{
		{"nil", nil, `{"execute":"c","id":"1"}`, false},
		{"nil pointer", (*args)(nil), `{"execute":"c","id":"1"}`, false},
		{"empty raw", json.RawMessage(nil), `{"execute":"c","id":"1"}`, false},
		{"struct", args{"x\n"}, `{"execute":"c","arguments":{"fdname":"x\n"},"id":"1"}`, false},
		{"raw on lines", json.RawMessage("{\n\"a\": 18446744073709551615 }"), `{"execute":"c","arguments":{"a":18446744073709551615},"id":"1"}`, false},
		{"list", []int{1}, "", true},
		{"broken raw", json.RawMessage(`{"a"`), "", true},
		{"two objects", json.RawMessage(`{},"execute":"quit"`), "", true},
		{"duplicate key", json.RawMessage(`{"a":1,"a":2}`), "", true},
		{"lone surrogate", json.RawMessage(`{"a":"\ud800"}`), "", true},
		{"no JSON", make(chan int), "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := encodeCommand("c", tt.args, "1")
			if (err != nil) != tt.fail {
				t.Fatalf("error %v", err)
			}
			if want := tt.want; !tt.fail && string(got) != want+"\n" {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

func TestDecodeMessage(t *testing.T) {
	for _, bad := range []string{``, `[]`, `null`, `{}`, `{"id":1}`, `{"return":inf}`, `{"error":"x"}`} {
		if m, err := decodeMessage([]byte(bad)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %+v, %v", bad, m, err)
		}
	}
	line := []byte(`{"return":null,"id":"x"}`)
	m, err := decodeMessage(line)
	if err != nil || string(m.Return) != "null" {
		t.Fatalf("null is a result too: %v, %v", m, err)
	}
	clear(line)
	if string(m.Return) != "null" || string(m.ID) != `"x"` {
		t.Error("the message aliases the line")
	}
}

// A QEMU that answers with millions of nothings gets none of the host's memory
// for it.
func TestLargeResult(t *testing.T) {
	var filters []RxFilter
	answer := []byte("[" + strings.Repeat("{},", maxResult/3) + "{}]")
	before := allocated()
	if err := decodeResult(answer, &filters); !errors.Is(err, ErrProtocol) || filters != nil {
		t.Errorf("%d filters, %v", len(filters), err)
	}
	var raw json.RawMessage
	if err := decodeResult(answer, &raw); err != nil || len(raw) != len(answer) {
		t.Errorf("passed on: %d bytes, %v", len(raw), err)
	}
	checkAllocated(t, before, 0)
}

// Of what a peer says of itself, and of its refusals, no more is kept than people
// can read: some of it goes into a state file.
func TestLongWords(t *testing.T) {
	long := strings.Repeat("\u00e4", maxMessage/4)
	for _, line := range []string{
		`{"QMP": {"version": {"package": "` + long + `"}, "capabilities": []}}`,
		`{"error": {"class": "GenericError", "desc": "` + long + `"}}`,
		`{"error": {"class": "` + long + `", "desc": ""}}`,
	} {
		m, err := decodeMessage([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		var kept string
		if m.Error != nil {
			kept = m.Error.Class + m.Error.Desc
		} else {
			kept = m.Greeting.Version.Package
		}
		if len(kept) > maxWords+100 || !utf8.ValidString(kept) {
			t.Errorf("%.30s: %d bytes are kept, valid: %t", line, len(kept), utf8.ValidString(kept))
		}
	}
}

func TestEventNumbers(t *testing.T) {
	in := `{"timestamp":{"seconds":1,"microseconds":2},"event":"E","data":{"offset":18446744073709551615}}`
	ev, err := decodeEvent([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	var data struct{ Offset uint64 }
	if err := DecodeEvent(ev, &data); err != nil || data.Offset != 1<<64-1 {
		t.Errorf("offset %d, %v", data.Offset, err)
	}
	out, err := encodeEvent(ev)
	if err != nil || string(out) != in+"\r\n" {
		t.Errorf("relayed as %s, %v", out, err)
	}
}

// The seeds of the fuzz tests are in testdata/fuzz.

// FuzzDecodeStream: how the bytes arrive changes nothing, and a stream of
// objects is cut where encoding/json would cut it.
func FuzzDecodeStream(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		whole := cut(bytes.NewReader(data), 1<<16)
		pieces := cut(iotest.OneByteReader(bytes.NewReader(data)), 1<<16)
		if diff := cmp.Diff(whole, pieces); diff != "" {
			t.Fatal(diff)
		}
		if want, ok := objects(data); ok {
			if diff := cmp.Diff(want, whole); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

// objects splits with encoding/json; ok when data is JSON objects only. That of
// encoding/json need not be UTF-8: where QEMU starts afresh at 0xFF, it reads on.
func objects(data []byte) (list []string, ok bool) {
	if !utf8.Valid(data) {
		return nil, false
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if err == io.EOF {
			return list, true
		}
		if err != nil || raw[0] != '{' || len(raw) > 1000 {
			return nil, false
		}
		list = append(list, string(raw))
	}
}

// checkAllocated fails when more was allocated since before than decoding so
// many bytes may take.
func checkAllocated(t *testing.T, before uint64, bytes int) {
	t.Helper()
	if grown := allocated() - before; grown > uint64(1<<20+200*bytes) {
		t.Errorf("%d bytes took %d", bytes, grown)
	}
}

// allocated is how many bytes were allocated so far.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// FuzzDecodeMessage is what a client makes of any line.
func FuzzDecodeMessage(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		defer checkAllocated(t, allocated(), len(data))
		var filters []RxFilter
		_ = decodeResult(data, &filters)
		m, err := decodeMessage(data)
		if err != nil || m.Event == "" {
			return
		}
		ev, err := decodeEvent(data)
		if err != nil {
			return
		}
		line, err := encodeEvent(ev)
		if err != nil {
			t.Fatalf("%+v: %v", ev, err)
		}
		again, err := decodeEvent(line)
		if err != nil {
			t.Fatal(err)
		}
		if len(ev.Data) == 0 {
			ev.Data, again.Data = nil, nil
		}
		if diff := cmp.Diff(ev, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

// FuzzDecodeRequest is the server's decoder; what it takes must reach QEMU as
// text that QEMU takes, or the answer would carry no id.
func FuzzDecodeRequest(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		defer checkAllocated(t, allocated(), len(data))
		in, refused := decodeRequest(data)
		if refused != nil {
			if line := encodeError(refused, in.id); !json.Valid(line) {
				t.Fatalf("answer %q", line)
			}
			return
		}
		reply, err := encodeReply(nil, in.id)
		if err != nil || !json.Valid(reply) || bytes.IndexByte(reply, '\n') != len(reply)-1 {
			t.Fatalf("answer %q, %v", reply, err)
		}
		line, err := encodeCommand(in.command, in.arguments, "1")
		if err != nil {
			t.Fatalf("cannot be passed on: %v", err)
		}
		again, refused := decodeRequest(line)
		if refused != nil || again.command != in.command {
			t.Fatalf("%q became %q, %v", in.command, again.command, refused)
		}
	})
}
