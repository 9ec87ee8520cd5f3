package launcher

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"vmrun/configs"
	"vmrun/netsetup"
)

// memory is what a suspended guest is: the file of its memory begins with it. What
// QEMU has written follows, memoryHead bytes from the beginning.
type memory struct {
	record
	Machine string       // QEMU's versioned type, which outlives an upgrade: "pc-q35-7.2"
	Images  []imageState // those of its disks
	At      time.Time    // when it was suspended
	Size    int64        // of the file, in bytes
}

// memoryHead is where QEMU's part of the file begins. What the head does not need of
// it is a hole.
const memoryHead = maxRecord + 1<<20

// memoryMark is the first line of the file, with the version of the head.
const memoryMark = "vmrun memory 1\n"

// imageState is one image, of a disk or of the chain below it, as it was.
type imageState struct {
	Path  string
	Dev   uint64
	Inode uint64
	Size  int64
	Time  time.Time // of its last change; zero for a block device, which has none
}

// encode is the head of the file.
func (m *memory) encode() ([]byte, error) {
	rec, err := json.Marshal(&m.record)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(memoryText{Record: rec, Machine: m.Machine, Images: m.Images, At: m.At, Size: m.Size})
	if err != nil {
		return nil, err
	}
	head := append([]byte(memoryMark), append(text, '\n')...)
	if len(head) > memoryHead {
		return nil, fmt.Errorf("it takes %d bytes to describe the guest", len(head))
	}
	return head, nil
}

type memoryText struct {
	Record  json.RawMessage
	Machine string
	Images  []imageState
	At      time.Time
	Size    int64
}

// decodeMemory reads the head of the file, of which size bytes are there.
func decodeMemory(head []byte, size int64) (*memory, error) {
	text, ok := bytes.CutPrefix(head, []byte(memoryMark))
	if !ok {
		return nil, fmt.Errorf("it does not begin with %q", strings.TrimSpace(memoryMark))
	}
	text, _, _ = bytes.Cut(text, []byte("\n"))
	var t memoryText
	if err := json.Unmarshal(text, &t); err != nil {
		return nil, err
	}
	rec, err := decodeRecord(t.Record)
	if err != nil {
		return nil, err
	}
	if t.Size != size {
		return nil, fmt.Errorf("it has %d bytes, and is to have %d", size, t.Size)
	}
	return &memory{record: *rec, Machine: t.Machine, Images: t.Images, At: t.At, Size: t.Size}, nil
}

// children are the guest's NICs as they were, with the indexes of another slot.
func (m *memory) children(slot int) []netsetup.Child {
	list := slices.Clone(m.Children)
	for i := range list {
		list[i].Index = firstIndex + slot*maxNICs + number(list[i])
	}
	return list
}

func (m *memory) nics() (list []configs.NIC) {
	for _, c := range m.Children {
		list = append(list, c.NIC)
	}
	return list
}

// isPaused reports whether the guest's CPUs stood still by its owner's wish, as they
// do then when it goes on.
func (m *memory) isPaused() bool { return m.Situation.Held || !m.Situation.Ran }

// changed says what is different about an image since, or "".
func (i imageState) changed(now imageState) string {
	switch {
	case now.Dev != i.Dev || now.Inode != i.Inode:
		return "is another file than"
	case now.Size != i.Size || !now.Time.Equal(i.Time):
		return "has changed since"
	}
	return ""
}

// machineNow is the machine word with the type that an alias stands for: that of a
// suspended guest has to be the same under a newer QEMU.
func machineNow(word, resolved string) string {
	_, options, has := strings.Cut(word, ",")
	if has {
		return resolved + "," + options
	}
	return resolved
}
