package launcher

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode"
)

// The limits of what an agent may say in answer to one question. It is the
// guest's, and may be anybody.
const (
	maxAgentWords  = 64 << 10 // bytes before it is in step, and of an answer without much in it
	maxAgentDepth  = 16       // of objects and lists in each other
	maxAgentReason = 200      // characters of why it refuses
)

// agentEnd comes before the answer to guest-sync-delimited and nowhere else in
// what an agent says; one sent to it ends a command that was cut short (QEMU,
// qga/qapi-schema.json, guest-sync-delimited).
const agentEnd = 0xff

// errAgentNonsense is an answer that cannot be understood, or is too much. No
// error holds words of the agent's, but a refusal.
var errAgentNonsense = errors.New("the agent did not answer what it was asked")

// agentRefusal is an agent's own word that it does not do something.
type agentRefusal struct{ why string }

func (e *agentRefusal) Error() string { return "the agent in the guest refuses: " + e.why }

// newAgentRefusal makes an agent's reason fit for a log and a line.
func newAgentRefusal(why string) *agentRefusal {
	words := []rune(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, why))
	if len(words) > maxAgentReason {
		words = append(words[:maxAgentReason], '…')
	}
	return &agentRefusal{string(words)}
}

// conversation is one talk with an agent that is in step: the next that it says is
// the answer to the next question. The time that it takes is the channel's to
// bound.
type conversation struct {
	channel io.Writer
	words   *bufio.Reader
}

// newConversation brings an agent into step. The answers that an earlier
// conversation left in the channel are skipped.
func newConversation(channel io.ReadWriter, id int64) (*conversation, error) {
	if _, err := channel.Write([]byte{agentEnd}); err != nil {
		return nil, err
	}
	c := &conversation{channel: channel, words: bufio.NewReader(channel)}
	if err := c.send("guest-sync-delimited", map[string]int64{"id": id}); err != nil {
		return nil, err
	}
	for left := maxAgentWords; ; {
		line, err := c.skip(&left)
		if err != nil {
			return nil, err
		}
		var echo int64
		if end := bytes.LastIndexByte(line, agentEnd); end >= 0 && decodeAgent(line[end+1:], &echo) == nil && echo == id {
			return c, nil
		}
	}
}

// skip reads a line, of which left bytes may be read.
func (c *conversation) skip(left *int) ([]byte, error) {
	var line []byte
	for {
		b, err := c.words.ReadByte()
		if err != nil {
			return nil, err
		}
		if *left--; *left < 0 {
			return nil, errAgentNonsense
		}
		if b == '\n' {
			return line, nil
		}
		line = append(line, b)
	}
}

// ask runs a command and puts its result into what result points to.
func (c *conversation) ask(command string, args, result any) error {
	if err := c.send(command, args); err != nil {
		return err
	}
	return c.answer(maxAgentWords, maxAgentWords, result)
}

func (c *conversation) send(command string, args any) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return err
	}
	_, err = c.channel.Write(append(line, '\n'))
	return err
}

// answer reads the answer to what was sent, of at most this many bytes. Of each
// text in it no more than maxText is kept.
func (c *conversation) answer(maxWords, maxText int, result any) error {
	line, err := c.read(maxWords, maxText)
	if err != nil {
		return err
	}
	return decodeAgent(line, result)
}

// read reads a line. It keeps count of what is text in it and how deep it is, as
// far as a line that is JSON: the decoder judges one that is not.
func (c *conversation) read(maxWords, maxText int) ([]byte, error) {
	var line []byte
	var inText, escaped bool
	depth, text := 0, 0
	for range maxWords {
		b, err := c.words.ReadByte()
		switch {
		case err != nil:
			return nil, err
		case b == '\n':
			return line, nil
		case inText:
			inText = b != '"' || escaped
			escaped = b == '\\' && !escaped
			if text++; inText && text > maxText {
				continue
			}
		case b == '"':
			inText, text = true, 0
		case b == '{' || b == '[':
			if depth++; depth > maxAgentDepth {
				return nil, errAgentNonsense
			}
		case b == '}' || b == ']':
			depth--
		}
		line = append(line, b)
	}
	return nil, errAgentNonsense
}

// decodeAgent puts what an answer returns into what into points to, if that is to be
// known.
func decodeAgent(line []byte, into any) error {
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	switch {
	case json.Unmarshal(line, &answer) != nil:
		return errAgentNonsense
	case answer.Error != nil:
		return newAgentRefusal(answer.Error.Desc)
	case answer.Return == nil || into != nil && json.Unmarshal(answer.Return, into) != nil:
		return errAgentNonsense
	}
	return nil
}
