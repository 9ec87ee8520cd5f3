package netsetup_test

import (
	"testing"
	"time"

	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

// A watch ends at once, whatever the kernel is just telling.
func TestWatchEnds(t *testing.T) {
	nettest.Root(t)
	for range 200 {
		w, err := netsetup.Watch(func() {})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		w.Close()
		if d := time.Since(start); d > time.Second {
			t.Fatalf("the watch took %v to end", d)
		}
	}
}
