package configs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"
)

// maxFile is the size of the largest spec, in bytes.
const maxFile = int(mib)

// pipeTimeout is how long a spec that comes through a pipe may take.
const pipeTimeout = 10 * time.Second

// Load reads and checks the spec in a file. What is wrong with the spec comes
// back as Errors; a file that cannot be read as an error of package os.
func Load(path string) (*Guest, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data)
}

// readFile waits for nobody to write to a pipe: whoever boots the host, or looks
// after a guest, reads specs too.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	_ = f.SetReadDeadline(time.Now().Add(pipeTimeout)) // only what can keep one waiting has one
	return io.ReadAll(io.LimitReader(f, int64(maxFile)+1))
}

// Parse checks a spec and returns the guest that it describes, or Errors with
// everything that is wrong with it. It reads nothing but data: path names the
// file in errors, gives the guest its name when the spec does not, and its
// directory is what relative paths in the spec start from. With an empty path
// these start from the working directory, and the spec has to have a name.
func Parse(path string, data []byte) (*Guest, error) {
	doc, err := newDocument(path, data)
	if err != nil {
		return nil, err
	}
	if doc.isFleet() {
		return nil, doc.src.syntaxError(0, "a file of many guests, and the spec of one is wanted here: name the guest")
	}
	return doc.guest()
}

// document is a file of the owner's, as the TOML decoder has read it.
type document struct {
	src   source
	path  string // absolute; "" when it is not in a file
	dir   string // absolute; relative paths start here
	table map[string]any
}

func newDocument(path string, data []byte) (*document, error) {
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	doc := &document{src: source{file: path, text: string(data)}, dir: dir}
	if path != "" {
		doc.path = filepath.Join(dir, filepath.Base(path))
	}
	doc.table, err = decodeTOML(doc.src)
	return doc, err
}

// guest returns the guest of a document that is one guest's.
func (d *document) guest() (*Guest, error) {
	r := &report{src: d.src}
	var raw rawGuest
	decodeTable(r, "", d.table, reflect.ValueOf(&raw).Elem())
	for _, key := range fleetKeys {
		refuse(r, &layer{raw: raw}, key, "only a guest of several in one file has it: write such a guest's keys below [[guest]]")
	}
	g := resolve(r, d.dir, &raw)
	g.Path = d.path
	if err := r.err(); err != nil {
		return nil, err
	}
	return g, nil
}

// decodeTOML returns the document as maps. It refuses what the decoder would
// spend minutes on.
func decodeTOML(src source) (table map[string]any, err error) {
	if len(src.text) > maxFile {
		return nil, src.syntaxError(0, fmt.Sprintf("larger than %s: is this a spec?", Size(maxFile)))
	}
	if deep := scan(src.text).deep; deep > 0 {
		return nil, src.syntaxError(deep, "nested too deeply: a spec has tables of plain values only")
	}
	defer func() {
		// The decoder panics where it meets a state that it thinks
		// impossible; the input is a stranger's, so that is an error.
		if p := recover(); p != nil {
			table, err = nil, src.syntaxError(0, "not valid TOML: "+printable(fmt.Sprint(p)))
		}
	}()
	_, err = toml.Decode(src.text, &table)
	var pe toml.ParseError
	if errors.As(err, &pe) {
		line := pe.Position.Line
		if strings.Contains(pe.Message, `'\n'`) { // then its line may be the next
			line = strings.Count(src.text[:min(pe.Position.Start, len(src.text))], "\n") + 1
		}
		// At the end of a file it can be off by one either way.
		line = min(max(line, 1), strings.Count(src.text, "\n")+1)
		return nil, src.syntaxError(line, syntaxMessage(pe))
	}
	if err != nil {
		return nil, src.syntaxError(0, "not valid TOML: "+printable(err.Error()))
	}
	return table, nil
}

func (s source) syntaxError(line int, msg string) error {
	return Errors{{File: s.file, Line: line, Msg: msg}}
}
