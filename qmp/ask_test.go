package qmp

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAsk(t *testing.T) {
	s, path := serve(t, echo, &ServerOptions{MaxClients: 4})
	ctx := testContext(t)
	var got struct {
		Command   string
		Arguments map[string]any
		PID       int
	}
	if err := Ask(ctx, path, "x", map[string]any{"a": "b"}, &got); err != nil {
		t.Fatal(err)
	}
	if got.Command != "x" || got.PID != os.Getpid() || !cmp.Equal(got.Arguments, map[string]any{"a": "b"}) {
		t.Errorf("%+v", got)
	}
	var refused *Error
	if err := Ask(ctx, path, "missing", nil, nil); !errors.Is(err, ErrDeviceNotFound) {
		t.Errorf("missing: %v", err)
	}
	if err := Ask(ctx, filepath.Join(t.TempDir(), "none"), "x", nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := Ask(short, path, "wait", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that does not answer: %v", err)
	}
	for end := time.Now().Add(patience); s.clients() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := s.clients(); n != 0 {
		t.Errorf("%d clients are left", n)
	}
	for range 4 {
		dialPath(t, path)
	}
	if err := Ask(ctx, path, "x", nil, nil); !errors.As(err, &refused) {
		t.Errorf("one client too many: %v", err)
	}
}

// TestAskStranger asks peers that are no monitors.
func TestAskStranger(t *testing.T) {
	tests := []struct {
		name, says string
		want       error
	}{
		{"hangs up", "", io.EOF},
		{"hangs up amid a message", hello + `{"return"`, io.ErrUnexpectedEOF},
		{"speaks another language", "220 ready\r\n", ErrProtocol},
		{"answers what it was not asked", hello + `{"return": {}, "id": "7"}` + "\r\n", ErrClosed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				conn, err := l.Accept()
				if err == nil {
					_, _ = conn.Read(make([]byte, 4096))
					_, _ = io.WriteString(conn, tt.says)
					conn.Close()
				}
			}()
			if err := Ask(testContext(t), path, "x", nil, nil); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// BenchmarkAsk and BenchmarkDialExecute are two ways to one answer.
func BenchmarkAsk(b *testing.B) {
	_, path := serve(b, echo, nil)
	for b.Loop() {
		if err := Ask(context.Background(), path, "x", nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDialExecute(b *testing.B) {
	_, path := serve(b, echo, nil)
	for b.Loop() {
		c, err := Dial(context.Background(), path)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Execute(context.Background(), "x", nil, nil); err != nil {
			b.Fatal(err)
		}
		_ = c.Close()
	}
}
