package launcher

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vmrun/configs"
)

// bootSector is a PC boot sector that writes word to the first serial port and
// halts.
func bootSector(word string) []byte {
	code := []byte{0xfa, 0xba, 0xf8, 0x03} // cli; mov dx, 0x3f8
	for _, c := range []byte(word) {
		code = append(code, 0xb0, c, 0xee) // mov al, c; out dx, al
	}
	code = append(code, 0xf4, 0xeb, 0xfd) // hlt; jmp to it
	sector := make([]byte, 1<<20)
	copy(sector, code)
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// TestBootOrder has firmware boot from disks, in the order of their boot indexes.
func TestBootOrder(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	for _, name := range []string{"first", "second"} {
		if err := os.WriteFile(filepath.Join(dir, name+".img"), bootSector("I am the "+name+" disk."), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ name, first, second, want string }{
		{"as listed", "", "", "I am the first disk."},
		{"by index", "boot_index = 2", "boot_index = 1", "I am the second disk."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, "boot.toml")
			text := fmt.Sprintf("memory = \"64MiB\"\naccel = \"tcg\"\n[[disk]]\npath = \"first.img\"\n%s\n[[disk]]\npath = \"second.img\"\n%s\n%s\n",
				tt.first, tt.second, nic("bridge"))
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			g := mustLoad(t, path)
			b.mustStart(g, order{})
			b.waitConsole(g, tt.want)
			b.kill(g.Name)
			if _, err := Cleanup(t.Context(), b.base); err != nil { // the console's log too
				t.Error(err)
			}
		})
	}
}

// waitConsole waits until the guest has written words to its console.
func (b *bench) waitConsole(g *configs.Guest, words string) {
	b.t.Helper()
	_, _, path := Logs(b.base, g.Name)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if bytes.Contains(text, []byte(words)) {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("the console says %q, %v, not %q", text, err, words)
		}
	}
}
