package main

import (
	"io"
	"sync"
)

// held is what commands leave open for later ones: captures, groups joined.
type held struct {
	mu    sync.Mutex
	items map[string]io.Closer
}

// put keeps c as key, in place of what was there.
func (h *held) put(key string, c io.Closer) {
	h.drop(key)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.items == nil {
		h.items = make(map[string]io.Closer)
	}
	h.items[key] = c
}

func (h *held) get(key string) io.Closer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.items[key]
}

// drop closes what is kept as key and reports whether there was anything.
func (h *held) drop(key string) bool {
	h.mu.Lock()
	c, ok := h.items[key]
	delete(h.items, key)
	h.mu.Unlock()
	if ok {
		_ = c.Close()
	}
	return ok
}
