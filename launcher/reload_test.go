package launcher

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"vmrun/qmp"
)

// However many read a spec again while it changes, what holds in the end is what it
// says then, also for the next supervisor; and none of them gets in the way of the
// guest's end.
func TestReloadTogether(t *testing.T) {
	b := newBench(t)
	first := b.rawSpec("web1", "", nic("bridge"))
	specs := []string{string(readFile(t, first.Path))}
	specs = append(specs, specs[0]+"[stop]\ntimeout = \"7s\"\n", specs[0]+"bandwidth.inbound = \"50mbit\"\n", strings.Replace(specs[0], "bridge", "vepa", 1))
	write := func(text string) {
		t.Helper()
		next := first.Path + ".next"
		b.must(errors.Join(os.WriteFile(next, []byte(text), 0o600), os.Rename(next, first.Path)))
	}
	b.mustStart(first, order{Paused: true})

	var wg sync.WaitGroup
	reload := func(client *qmp.Client) (r Reload, err error) {
		err = client.Execute(b.within(30*time.Second), CommandReload, nil, &r)
		return r, err
	}
	for range 3 {
		client := b.control(first.Name)
		wg.Go(func() {
			for range 10 {
				if _, err := reload(client); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 40 {
		write(specs[i%len(specs)])
		time.Sleep(20 * time.Millisecond)
	}
	wg.Wait()

	last := specs[3] + nic("private") + "\n"
	write(last)
	if r, err := reload(b.control(first.Name)); err != nil || len(r.Failed)+len(r.Later) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	b.killSupervisor(first.Name)
	if r, err := b.startSoon(first.Path); err != nil || !r.Adopted || len(r.Status.NICs) != 2 {
		t.Fatalf("adopted %+v, %v", r, err)
	}
	if r, err := reload(b.control(first.Name)); err != nil || fmt.Sprint(r) != fmt.Sprint(Reload{}) {
		t.Errorf("adopted, it differs: %+v, %v", r, err)
	}

	client := b.control(first.Name)
	wg.Go(func() {
		for i := 0; ; i++ {
			write(strings.Replace(last, "private", []string{"bridge", "vepa"}[i%2], 1))
			if _, err := reload(client); errors.Is(err, qmp.ErrClosed) {
				return
			}
		}
	})
	time.Sleep(100 * time.Millisecond)
	b.kill(first.Name)
	wg.Wait()
	if s := b.observe(first); s.State != StateEnded || !strings.HasPrefix(s.Ended.String(), "stopped") {
		t.Errorf("%+v", s)
	}
	b.clean("killed amid reloads")
}
