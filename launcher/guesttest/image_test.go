package guesttest

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
)

func TestArchive(t *testing.T) {
	image, err := archive([]byte("program"),
		[]module{{name: "virtio", file: []byte("1")}, {name: "virtio_net", file: []byte("2")}},
		map[string][]byte{"/usr/bin/probe": []byte("3")})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	r := cpio.NewReader(bytes.NewReader(image))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Mode.String()+" "+h.Name+" "+string(data))
	}
	want := []string{
		"0100755 init program",
		"040755 modules ", "0100644 modules/virtio.ko 1", "0100644 modules/virtio_net.ko 2",
		"0100644 modules/load virtio.ko\nvirtio_net.ko\n",
		"040755 usr ", "040755 usr/bin ", "0100755 usr/bin/probe 3",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestStripSignature(t *testing.T) {
	signed := "module" + "signature" + "\x00\x00\x02\x00\x00\x00\x00\x00" + "\x00\x00\x00\x09" + "~Module signature appended~\n"
	for _, tt := range []struct{ name, in, want string }{
		{"signed", signed, "module"},
		{"unsigned", "module", "module"},
		{"a length beyond the file", signed[len("modulesign"):], signed[len("modulesign"):]},
		{"nothing but the mark", "~Module signature appended~\n", "~Module signature appended~\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(stripSignature([]byte(tt.in))); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
