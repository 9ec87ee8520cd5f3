package nettest

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// M runs a package's tests, for its TestMain, and looks for what they leave.
type M struct{ *testing.M }

// Run returns the exit status: 1 also where tests that passed have left
// goroutines or descriptors behind.
func (m M) Run() int {
	known := goleak.IgnoreCurrent()
	before := descriptors()
	if code := m.M.Run(); code != 0 {
		return code
	}
	code := 0
	if err := goleak.Find(known); err != nil {
		fmt.Fprintln(os.Stderr, "goroutines are left:", err)
		code = 1
	}
	var left []string
	for end := time.Now().Add(settleTime); ; time.Sleep(10 * time.Millisecond) {
		left = nil
		for what, n := range descriptors() {
			if n > before[what] {
				left = append(left, fmt.Sprintf("%s (%d, before %d)", what, n, before[what]))
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	if len(left) > 0 {
		fmt.Fprintln(os.Stderr, "descriptors are left:", strings.Join(left, ", "))
		code = 1
	}
	return code
}

// descriptors counts what this process has open, by what it is. Those of the
// runtime itself, which it opens once, are left out.
func descriptors() map[string]int {
	count := map[string]int{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return count
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		switch {
		case err != nil: // the one that read the directory
		case strings.HasPrefix(target, "anon_inode:[event"): // the poller's
		case strings.HasPrefix(target, "pipe:"), strings.HasPrefix(target, "socket:"):
			kind, _, _ := strings.Cut(target, ":")
			count[kind]++
		default:
			count[target]++
		}
	}
	return count
}
