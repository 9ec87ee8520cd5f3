package launcher

import (
	"io"
	"os"
	"strings"
)

// lastWords is how many lines of QEMU's log an error quotes.
const lastWords = 8

// tail returns the last lines of a file, at most n and none longer than the
// 4 KiB that are read; nothing when it cannot be read.
func tail(path string, n int) []string {
	const most = 4 << 10
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > most {
		f.Seek(-most, io.SeekEnd)
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	text := strings.TrimSpace(string(data))
	if err != nil || text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-n):]
}
