package main

import (
	"context"
	"errors"
	"sync"
	"time"
)

// lookEvery is how often those who follow all guests look for new ones: at the
// names in the run directory, and not at the guests.
const lookEvery = 500 * time.Millisecond

// followAll runs fn for each guest of a list, and for those that are on it later,
// until ctx is over. A guest whose fn has returned and that is still on the list,
// or again, is followed anew.
func followAll(ctx context.Context, list func() []string, fn func(ctx context.Context, name string)) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	followed := map[string]bool{}
	defer wg.Wait()
	for {
		for _, name := range list() {
			mu.Lock()
			busy := followed[name]
			followed[name] = true
			mu.Unlock()
			if busy {
				continue
			}
			wg.Go(func() {
				fn(ctx, name)
				mu.Lock()
				defer mu.Unlock()
				delete(followed, name)
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
	}
}

// follow runs fn for several guests at once and waits for all.
func follow(ctx context.Context, names []string, fn func(ctx context.Context, name string) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(names))
	for i, name := range names {
		wg.Go(func() { errs[i] = fn(ctx, name) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
