package launcher

import (
	"io"
	"os"
	"strings"
)

// quoted is how many lines of QEMU's log an error quotes.
const quoted = 8

// tail returns the last lines of a log, at most n and none longer than the 4 KiB
// that are read, of its older part too; nothing when it cannot be read.
func tail(path string, n int) []string {
	const most = 4 << 10
	data := lastBytes(path, most)
	data = append(lastBytes(path+olderPart, most-len(data)), data...)
	text := strings.TrimSpace(string(data))
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-n):]
}

// lastBytes returns the end of a file; nothing when it cannot be read.
func lastBytes(path string, most int) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > int64(most) {
		f.Seek(-int64(most), io.SeekEnd)
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(most)))
	if err != nil {
		return nil
	}
	return data
}
