package qmp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// capabilities is the command that ends negotiation; see "Capabilities
// Negotiation" in docs/interop/qmp-spec.txt.
const capabilities = "qmp_capabilities"

// Greeting is what QEMU says first.
type Greeting struct {
	Version      Version  `json:"version"`
	Capabilities []string `json:"capabilities"`
}

// message is anything a QMP peer may send to a client.
type message struct {
	Greeting *Greeting       `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *Error          `json:"error"`
	Event    string          `json:"event"`
	ID       json.RawMessage `json:"id"`
}

// decodeMessage copies what it keeps: Return and ID do not alias line.
func decodeMessage(line []byte) (*message, error) {
	m := new(message)
	if err := json.Unmarshal(line, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if m.Greeting == nil && m.Return == nil && m.Error == nil && m.Event == "" {
		return nil, fmt.Errorf("%w: a message without a meaning", ErrProtocol)
	}
	if m.Greeting != nil {
		m.Greeting.Version.Package = short(m.Greeting.Version.Package)
	}
	if m.Error != nil {
		m.Error.Class, m.Error.Desc = short(m.Error.Class), short(m.Error.Desc)
	}
	return m, nil
}

// short cuts words of a peer's that are kept, logged and shown.
func short(words string) string {
	if len(words) <= maxWords {
		return words
	}
	return strings.ToValidUTF8(words[:maxWords], "") + " [...]"
}

func decodeEvent(line []byte) (Event, error) {
	var ev Event
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	if err := dec.Decode(&ev); err != nil {
		return Event{}, fmt.Errorf("%w: event: %w", ErrProtocol, err)
	}
	return ev, nil
}

// DecodeEvent puts the data of ev into what into points to, by the rules of
// encoding/json.
func DecodeEvent(ev Event, into any) error {
	data, err := json.Marshal(ev.Data)
	if err != nil {
		return fmt.Errorf("event %s: %w", ev.Event, err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("event %s: %w", ev.Event, err)
	}
	return nil
}

// encodeCommand returns one line. args is nil, or anything that encoding/json
// makes an object of.
func encodeCommand(command string, args any, id string) ([]byte, error) {
	cmd := struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments,omitempty"`
		ID        string          `json:"id"`
	}{Execute: command, ID: id}
	arguments, err := encodeArguments(args)
	if err != nil {
		return nil, fmt.Errorf("arguments: %w", err)
	}
	cmd.Arguments = arguments
	line, err := json.Marshal(cmd)
	if err != nil {
		return nil, err
	}
	if len(line) > maxMessage {
		return nil, fmt.Errorf("%w: over %d bytes", errTooLarge, maxMessage)
	}
	if err := checkStrict(line); err != nil {
		return nil, err
	}
	return append(line, '\n'), nil
}

func encodeArguments(args any) (json.RawMessage, error) {
	if args == nil {
		return nil, nil
	}
	if raw, ok := args.(json.RawMessage); ok && len(raw) == 0 {
		return nil, nil
	}
	data, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	if string(data) == "null" { // a nil pointer, or a nil map
		return nil, nil
	}
	if data[0] != '{' {
		return nil, fmt.Errorf("must be a JSON object")
	}
	return data, nil
}

// incoming is a request as a client of a Server sent it.
type incoming struct {
	command   string
	arguments json.RawMessage
	id        json.RawMessage // nil when there was none
}

// decodeRequest follows qmp_dispatch_check_obj in QEMU's qmp-dispatch.c. The
// id is set even when there is an error, if the request could be read so far.
func decodeRequest(frame []byte) (incoming, *Error) {
	frame = doubleQuotes(bytes.TrimSpace(frame))
	if err := checkStrict(frame); err != nil {
		return incoming{}, Errorf("%v", err)
	}
	var members map[string]json.RawMessage
	if frame[0] != '{' || json.Unmarshal(frame, &members) != nil {
		return incoming{}, Errorf("QMP input must be a JSON object")
	}
	in := incoming{id: compact(members["id"])}
	for _, key := range sortedKeys(members) {
		if err := in.member(key, members[key]); err != nil {
			return in, err
		}
	}
	if _, ok := members["execute"]; !ok {
		return in, Errorf("QMP input lacks member 'execute'")
	}
	return in, nil
}

func (in *incoming) member(key string, value json.RawMessage) *Error {
	switch key {
	case "id":
	case "execute":
		if value[0] != '"' || json.Unmarshal(value, &in.command) != nil {
			return Errorf("QMP input member 'execute' must be a string")
		}
	case "arguments":
		if value[0] != '{' {
			return Errorf("QMP input member 'arguments' must be an object")
		}
		in.arguments = value
	default:
		return Errorf("QMP input member '%s' is unexpected", key)
	}
	return nil
}

// negotiate answers a request that comes before qmp_capabilities has been
// answered; done reports that this was it. A Server offers no capabilities.
func negotiate(in incoming) (reply []byte, done bool) {
	if in.command != capabilities {
		return encodeError(&Error{ClassCommandNotFound,
			"Expecting capabilities negotiation with 'qmp_capabilities'"}, in.id), false
	}
	var members map[string]json.RawMessage
	if in.arguments != nil && json.Unmarshal(in.arguments, &members) != nil {
		return encodeError(Errorf("QMP input member 'arguments' must be an object"), in.id), false
	}
	for _, key := range sortedKeys(members) {
		var names []string
		switch {
		case key != "enable":
			return encodeError(Errorf("Parameter '%s' is unexpected", key), in.id), false
		case json.Unmarshal(members[key], &names) != nil:
			return encodeError(Errorf("Invalid parameter type for 'enable', expected: array"), in.id), false
		case len(names) > 0:
			return encodeError(Errorf("Capability '%s' not available", names[0]), in.id), false
		}
	}
	return line("return", []byte("{}"), in.id), true
}

func sortedKeys(m map[string]json.RawMessage) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func compact(value json.RawMessage) json.RawMessage {
	if value == nil {
		return nil
	}
	var b bytes.Buffer
	if json.Compact(&b, value) != nil {
		return nil
	}
	return b.Bytes()
}

// doubleQuotes turns QEMU's 'strings' into "strings"; the extension is in
// json-lexer.c and people use it when they type. Other text comes back as is.
func doubleQuotes(frame []byte) []byte {
	if bytes.IndexByte(frame, '\'') < 0 {
		return frame
	}
	out := make([]byte, 0, len(frame)+16)
	quote := byte(0)
	for i := 0; i < len(frame); i++ {
		c := frame[i]
		switch {
		case quote == 0 && (c == '"' || c == '\''):
			quote, c = c, '"'
		case quote == 0:
		case c == quote:
			quote, c = 0, '"'
		case c == '"': // inside single quotes
			out = append(out, '\\')
		case c == '\\' && i+1 < len(frame):
			i++
			if frame[i] != '\'' { // JSON knows no escape for it
				out = append(out, c)
			}
			c = frame[i]
		}
		out = append(out, c)
	}
	return out
}

// encodeReply returns one line. A json.RawMessage as the result goes out as
// it is, byte for byte; nil is the empty object.
func encodeReply(result any, id json.RawMessage) ([]byte, error) {
	value, err := encodeResult(result)
	if err != nil {
		return nil, err
	}
	return line("return", value, id), nil
}

func encodeResult(result any) ([]byte, error) {
	if result == nil {
		return []byte("{}"), nil
	}
	raw, ok := result.(json.RawMessage)
	if !ok {
		return json.Marshal(result)
	}
	if !json.Valid(raw) {
		return nil, fmt.Errorf("result is not JSON")
	}
	return raw, nil
}

func encodeError(e *Error, id json.RawMessage) []byte {
	if e.Class == "" {
		e = &Error{Class: ClassGeneric, Desc: e.Desc}
	}
	value, err := json.Marshal(e)
	if err != nil { // two strings always marshal
		panic(err)
	}
	return line("error", value, id)
}

// line ends like QEMU's, with CR LF.
func line(key string, value []byte, id json.RawMessage) []byte {
	b := make([]byte, 0, len(key)+len(value)+len(id)+20)
	b = append(b, `{"`...)
	b = append(b, key...)
	b = append(b, `": `...)
	b = append(b, value...)
	if id != nil {
		b = append(b, `, "id": `...)
		b = append(b, id...)
	}
	return append(b, "}\r\n"...)
}

func encodeGreeting(v Version) ([]byte, error) {
	value, err := json.Marshal(Greeting{Version: v, Capabilities: []string{}})
	if err != nil {
		return nil, err
	}
	return line("QMP", value, nil), nil
}

// encodeEvent leaves data out when there is none, as QEMU does.
func encodeEvent(ev Event) ([]byte, error) {
	out := struct {
		Timestamp any            `json:"timestamp"`
		Event     string         `json:"event"`
		Data      map[string]any `json:"data,omitempty"`
	}{ev.Timestamp, ev.Event, ev.Data}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("event %s: %w", ev.Event, err)
	}
	return append(b, "\r\n"...), nil
}
