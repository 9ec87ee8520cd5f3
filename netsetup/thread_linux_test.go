package netsetup

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needRoot skips a test that cannot unshare, or fails it where everything must
// be there. (Package nettest has the same, but imports this one.)
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
		t.Fatal("not root, and VMRUN_TEST_REQUIRE=1")
	}
	t.Skip("needs root for network namespaces: run go test as root")
}

func TestOnThreadIsNeverTheMainOne(t *testing.T) {
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			err := OnThread(func() error {
				if unix.Gettid() == unix.Getpid() {
					return errors.New("on the main thread")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// holdMainThread locks goroutines until one has the main thread, and calls fn
// on it. It reports false when the runtime gives it to none of many.
func holdMainThread(fn func()) bool {
	var wg sync.WaitGroup
	release := make(chan struct{})
	found := make(chan bool, 1)
	for range 200 {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if unix.Gettid() == unix.Getpid() {
				fn()
				select {
				case found <- true:
				default: // the main thread came round a second time
				}
			}
			<-release
		})
	}
	var ok bool
	select {
	case ok = <-found:
	case <-time.After(time.Second):
	}
	close(release)
	wg.Wait()
	return ok
}

// onThread that finds itself on the main thread goes elsewhere.
func TestOnThreadFromTheMainThread(t *testing.T) {
	ran := holdMainThread(func() {
		if err := OnThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("on the main thread")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	if !ran {
		t.Log("no goroutine was given the main thread; nothing to see")
	}
}

// threadsOutside lists the threads of this process in another network
// namespace than the main one.
func threadsOutside(t *testing.T) []string {
	t.Helper()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var outside []string
	for _, path := range paths {
		if ns, err := os.Readlink(path); err == nil && ns != own {
			outside = append(outside, path+" "+ns)
		}
	}
	return outside
}

func TestNoThreadStaysInANamespace(t *testing.T) {
	needRoot(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			ns, err := NewNamespace()
			if err != nil {
				t.Error(err)
				return
			}
			defer ns.Close()
			if err := ns.Do(func() error { return nil }); err != nil {
				t.Error(err)
			}
			// A program started from inside makes the runtime lock and fork.
			if err := ns.Do(func() error {
				p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
				if err != nil {
					return err
				}
				_, err = p.Wait()
				return err
			}); err != nil {
				t.Error(err)
			}
			failing := errors.New("on purpose")
			if err := ns.Do(func() error { return failing }); err != failing {
				t.Errorf("%v, want %v", err, failing)
			}
		})
	}
	wg.Wait()
	// The runtime ends a thread a moment after its goroutine.
	deadline := time.Now().Add(2 * time.Second)
	outside := threadsOutside(t)
	for len(outside) > 0 && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
		outside = threadsOutside(t)
	}
	if len(outside) > 0 {
		t.Errorf("threads in other namespaces: %q", outside)
	}
}
