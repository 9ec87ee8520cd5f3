package launcher

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(newLimiter(slog.NewTextHandler(&out, nil)))
		other := log.With("guest", "web1").WithGroup("g") // counts with it
		flood := func() {
			for i := range 1000 {
				log.Warn("QEMU says", "data", i)
				other.Warn("QEMU says", "data", i)
				log.Info(fmt.Sprint("MAC is ", i), "nic", "net0", "change", "mac-changed")
				log.Info(fmt.Sprint("MAC is ", i), "nic", "net1", "change", "mac-changed")
			}
			log.Info("guest has ended")
		}
		want := func(last string, kinds int) {
			t.Helper()
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if len(lines) != kinds*hourly+1 || !strings.Contains(lines[len(lines)-1], last) {
				t.Errorf("%d lines that end with %q, want %d and %q", len(lines), lines[len(lines)-1], kinds*hourly+1, last)
			}
			if n := strings.Count(out.String(), "no more of this kind within the hour"); n != kinds {
				t.Errorf("%d of them are the last of a kind, want %d", n, kinds)
			}
			out.Reset()
		}
		flood()
		want("guest has ended", 3)
		time.Sleep(time.Hour - time.Second)
		flood()
		if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "guest has ended") {
			t.Errorf("within the hour: %s", text)
		}
		out.Reset()
		time.Sleep(2 * time.Second)
		flood()
		want("guest has ended", 3)
	})
}
