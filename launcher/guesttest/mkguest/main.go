// Command mkguest writes the test guest's kernel and initramfs, vmlinuz and
// initrd.img, to a directory: for a demonstration, or a benchmark.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vmrun/launcher/guesttest"
)

func main() {
	if len(os.Args) != 2 || strings.HasPrefix(os.Args[1], "-") {
		fmt.Fprintln(os.Stderr, "usage: mkguest DIRECTORY")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "mkguest: %v\n", err)
		os.Exit(1)
	}
	fmt.Println(guesttest.Cmdline)
}

func write(dir string) error {
	cache, err := guesttest.CacheDir()
	if err != nil {
		return err
	}
	files, err := guesttest.Options{}.Build(cache)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, source := range map[string]string{"vmlinuz": files.Kernel, "initrd.img": files.Initrd} {
		data, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		// Replaced, not overwritten: a guest may be booting from the one there.
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".tmp", data, 0o644); err != nil {
			return err
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			return err
		}
	}
	return nil
}
